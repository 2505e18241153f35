"""Attacks over the bus with real credentials of the wrong holder."""

import asyncio
import re

import nats.errors

from .case import case, withstood
from .wire import Wire, channels, refusal

JETSTREAM = [
    "STREAM.CREATE", "STREAM.DELETE", "STREAM.UPDATE", "STREAM.PURGE", "STREAM.RESTORE",
    "STREAM.SNAPSHOT", "STREAM.MSG.DELETE", "STREAM.PEER.REMOVE", "STREAM.LEADER.STEPDOWN",
    "STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.LIST", "CONSUMER.NAMES",
]
CONSUMER = ["CREATE", "DURABLE.CREATE", "DELETE", "INFO", "PAUSE", "UNPIN", "MSG.NEXT"]


def fill(pattern: str, key: str, run: str, account: str) -> str:
    """A subject of this pattern, with the names of one sender."""
    names = {"run": run, "worker": key, "operator": key, "holder": key, "emitter": key, "account": account}
    return re.sub(r"{(\w+)}", lambda found: names.get(found[1], "0"), pattern)


def broker_subjects(facts: dict, key: str) -> list[str]:
    """The broker's own subjects: its interfaces, its acknowledgements, other clients' inboxes."""
    subjects = ["$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES", "$SYS.REQ.SERVER.PING"]
    subjects += ["$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.DELETE"]
    subjects += ["$SRV.PING", "$SRV.INFO", "$KV.state.x", "_R_.x", "_INBOX.x"]
    for stream in facts["streams"]:
        subjects += [f"$JS.API.{verb}.{stream}" for verb in JETSTREAM]
        subjects += [f"$JS.API.CONSUMER.{verb}.{stream}.thief" for verb in CONSUMER]
        # Acknowledgements as they were written by old and by new brokers.
        subjects += [f"$JS.ACK.{stream}.lease.1.1.1.1.0", f"$JS.ACK._._.{stream}.lease.1.1.1.1.0.x"]
        subjects += [f"$JS.FC.{stream}.lease.x", f"$JS.API.CONSUMER.MSG.NEXT.{stream}.lease"]
    subjects += [f"_INBOX.{one['key']}.x" for one in facts["holders"].values() if one["key"] != key]
    return subjects


def everyone(facts: dict) -> list[tuple[str, str]]:
    """Each key in each run."""
    runs = [facts["run"], facts["other_run"]]
    return [(one["key"], run) for one in facts["holders"].values() for run in runs]


async def says_only(facts: dict, who: str, role: str, runs: list[str]) -> None:
    """`who` may say what its role may say in its own name, and nothing else."""
    wire = await Wire.connect(facts, who)
    may, may_not = set(), set(broker_subjects(facts, wire.key))
    for pattern, roles in channels(facts):
        for key, run in everyone(facts):
            subject = fill(pattern, key, run, facts["account"])
            # In the name of another, in another run, or of another role.
            own = role in roles and key == wire.key and ("{run}" not in pattern or run in runs)
            (may if own else may_not).add(subject)
            # As the broker passes it on: with the sender's account.
            head, kind, *rest = subject.split(".")
            may_not.add(".".join([head, kind, facts["account"], *rest]))
    refused = await wire.refused_publishes(sorted(may | may_not))
    await wire.close()
    withstood(not may_not - refused, f"{who} could say {sorted(may_not - refused)[:5]}")
    withstood(not may & refused, f"{who} could not say {sorted(may & refused)[:5]}")
    assert len(may_not) > 200 and may, "the subjects were made from the pages"


@case("FG-01", "FG-02", "FG-05", "TL-25", "LS-02")
async def a_worker_speaks_for_itself_in_its_run_and_gives_no_orders(facts: dict) -> None:
    await says_only(facts, "thief", "worker", [facts["run"]])


@case("FG-01", "TL-25")
async def a_worker_of_another_run_speaks_in_that_run_alone(facts: dict) -> None:
    await says_only(facts, "stranger", "worker", [facts["other_run"]])


@case("FG-05", "TL-15")
async def an_operator_writes_no_stream_and_speaks_for_no_other(facts: dict) -> None:
    await says_only(facts, "operator", "operator", [])


@case("FG-01", "TL-08")
async def nobody_hears_what_is_for_others(facts: dict) -> None:
    wide = [">", "*", "*.>", "diloco.>", "diloco.*.>", "_INBOX.>", "_INBOX.*", "_INBOX.*.>", "_R_.>"]
    wide += ["$JS.>", "$JS.API.>", "$JS.ACK.>", "$JS.EVENT.>", "$SYS.>", "$SRV.>", "$KV.>"]
    for who in ["thief", "stranger"]:
        wire = await Wire.connect(facts, who)
        subjects = set(wide) | set(broker_subjects(facts, wire.key))
        for pattern, _ in channels(facts):
            for key, run in everyone(facts):
                subject = fill(pattern, key, run, facts["account"])
                if not subject.startswith(f"diloco.command.{facts[wire_run(who)]}.{wire.key}."):
                    subjects.add(subject)
            subjects.add(re.sub(r"{\w+}", "*", pattern))
        refused = await wire.refused_subscriptions(sorted(subjects))
        await wire.close()
        withstood(not subjects - refused, f"{who} hears {sorted(subjects - refused)[:5]}")


def wire_run(who: str) -> str:
    return "other_run" if who == "stranger" else "run"


@case("FG-01", "TL-15")
async def an_answer_sent_to_a_stream_is_no_event(facts: dict) -> None:
    """The asker chooses where its answer goes; the test looks at the streams afterwards."""
    wire = await Wire.connect(facts, "thief")
    victim = facts["holders"]["victim"]["key"]
    targets = [fill(pattern, victim, facts["run"], facts["account"]) for pattern, _ in channels(facts)]
    targets += broker_subjects(facts, wire.key)
    for pattern, roles in channels(facts):
        if "worker" in roles:
            question = fill(pattern, wire.key, facts["run"], facts["account"])
            for target in targets:
                await wire.client.publish(question, b"x", reply=target)
        # The broker limits what a connection may have in flight.
        await wire.client.flush(timeout=30)
    await wire.close()


@case("TL-02", "TL-15")
async def headers_that_steer_a_stream_steer_nothing(facts: dict) -> None:
    wire = await Wire.connect(facts, "thief")
    subject = f"diloco.event.{facts['run']}.{wire.key}.joined"
    ledger = f"diloco.ledger.{facts['run']}.{facts['coordinator_key']}.run-completed"
    for headers in [
        {"Nats-Rollup": "all"},
        {"Nats-Rollup": "sub"},
        {"Nats-Msg-Id": "1"},
        {"Nats-Expected-Last-Sequence": "0"},
        {"Nats-Expected-Stream": "LEDGER"},
        {"Nats-Schedule": "@at 2030-01-01T00:00:00Z", "Nats-Schedule-Target": ledger},
        {"Nats-TTL": "1s"},
        {"Nats-Marker-Reason": "Purge"},
        {"KV-Operation": "PURGE"},
        {"Nats-Batch-Id": "thief", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
        {"Nats-Request-Info": '{"acc":"' + facts["account"] + '"}'},
    ]:
        # The audit service answers a worker that asked too much of it only after a while.
        for _ in range(20):
            answer = await wire.ask(subject, b"no event", headers)
            if answer is not None:
                break
        withstood(refusal(answer) is not None, f"an event with {headers} was not refused")
    await wire.close()


@case("FG-01", "LS-02")
async def an_auditor_reads_one_stream_and_nothing_else(facts: dict) -> None:
    wire = await Wire.connect(facts, "auditor")
    reads = {f"$JS.API.{verb}.AUDIT" for verb in ["STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET"]}
    others = set(broker_subjects(facts, wire.key)) - reads
    for pattern, roles in channels(facts):
        for key, run in everyone(facts):
            if not ("auditor" in roles and key == wire.key):
                others.add(fill(pattern, key, run, facts["account"]))
    refused = await wire.refused_publishes(sorted(others))
    withstood(not others - refused, f"it could say {sorted(others - refused)[:5]}")
    answer = await wire.ask("$JS.API.STREAM.INFO.AUDIT", b"")
    assert answer and answer["state"]["messages"] > 0, "an auditor reads the record"
    await wire.close()


@case()
async def a_flood_of_questions_stops_nobody_else(facts: dict) -> None:
    """The test's honest worker renews its lease all the while."""
    wire = await Wire.connect(facts, "thief")
    subject = f"diloco.request.{facts['run']}.{wire.key}.lease.claim"
    for number in range(20_000):
        await wire.client.publish(subject, b"x", reply=f"_INBOX.{wire.key}.flood")
        if number % 500 == 0:
            await wire.client.flush(timeout=30)
    await wire.client.flush(timeout=30)
    await wire.close()


@case()
async def two_hundred_connections_of_one_worker_stop_nobody_else(facts: dict) -> str:
    """While they stand, other workers connect, and are answered."""

    async def one():
        try:
            return await Wire.connect(facts, "thief")
        except Exception:
            return None

    wires = [wire for wire in await asyncio.gather(*(one() for _ in range(200))) if wire]
    assert len(wires) > 100, f"only {len(wires)} are connected"
    for who, run in [("stranger", "other_run"), ("victim", "run")]:
        other = await Wire.connect(facts, who)
        answer = await other.ask(f"diloco.request.{facts[run]}.{other.key}.lease.claim", b"x")
        withstood(refusal(answer) is not None, f"{who} was not answered beside {len(wires)} connections")
        await other.close()
    stand = sum(wire.client.is_connected for wire in wires)
    assert stand > 100, f"only {stand} stood all the while"
    for wire in wires:
        await wire.close()
    return f"{stand} connections"


@case()
async def subjects_of_any_length_and_depth_stop_nobody(facts: dict) -> None:
    wire = await Wire.connect(facts, "thief")
    own = f"diloco.event.{facts['run']}.{wire.key}"
    for subject in [f"{own}.{'x' * 3000}", f"{own}.{'x.' * 1000}x", f"{own}.é", f"{own}.%2e", f"{own}.\x01"]:
        try:
            # Most of these are nobody's, so nobody answers.
            answer = await wire.ask(subject, b"x", wait=1.0)
            withstood(answer is None or refusal(answer) is not None, f"{subject[:60]} was taken")
        except (nats.errors.Error, OSError):
            # The broker ends the connection of a client that writes too long a line.
            await wire.close()
            wire = await Wire.connect(facts, "thief")
    await wire.close()
