"""The record of refusals: it is read last, when all others have been refused."""

import asyncio
import base64
import collections
import json

import msgpack

from .case import case, withstood
from .store import MISUSED
from .tokens import TRIED
from .wire import Wire

# The audit service looks at the broker's log twice a second, and the broker copies what it records.
TOLD_WITHIN = 30.0
# Each kind is told by 256 events at once, and then by three a minute. This suite causes five kinds, and
# floods two of them.
EVENTS_MAX = 900
# So many different refusals of one sender are told one by one.
ONE_BY_ONE = 16
# Of each sender and kind so many are looked for.
LOOKED_FOR = 4


async def security_events(wire: Wire, first: int) -> tuple[list[tuple[str, dict]], int]:
    """The security events from position `first` on, each with its kind and what was seen, and the
    position after the last message."""
    info = await wire.ask("$JS.API.STREAM.INFO.AUDIT", b"")
    assert info, "an auditor reads the record"
    found, last = [], info["state"]["last_seq"]
    for sequence in range(first, last + 1):
        question = json.dumps({"seq": sequence}).encode()
        answer = await wire.ask("$JS.API.STREAM.MSG.GET.AUDIT", question)
        assert answer and "message" in answer, answer
        message = answer["message"]
        if message["subject"].startswith("diloco.security."):
            signed = msgpack.unpackb(base64.b64decode(message["data"]))
            event = msgpack.unpackb(signed["body"])["event"]["security"]
            if isinstance(event, dict):
                ((kind, fields),) = event.items()
                found.append((kind, {**fields.get("seen", {}), "by": fields.get("by")}))
    return found, last + 1


def untold(events: list[tuple[str, dict]]) -> list[str]:
    """The first refusals of each sender and kind in this suite about which there is no event with
    their reason, senders of many whose further ones are not summed up, and credentials and URLs
    that were tried and about which there is no event of their own."""
    denied = {
        (seen["user"], seen["reason"], seen["subject"])
        for kind, seen in events
        if kind == "permission_denied" and "user" in seen
    }
    missing = []
    for (key, reason), subjects in Wire.refused.items():
        for subject in list(dict.fromkeys(subjects))[:LOOKED_FOR]:
            if (key, reason, subject) not in denied:
                missing.append(f"{reason} of {key} to {subject}")
        further = [one for one in denied if one[:2] == (key, f"{reason}: further ones of this sender")]
        if len(set(subjects)) > ONE_BY_ONE and not further:
            missing.append(f"further refusals ({reason}) of {key}")
    failed = [seen for kind, seen in events if kind == "authentication_failed"]
    for kind, (key, name, reason) in TRIED.items():
        own = [one for one in failed if one.get("user") == key and one["name"] == name]
        if not any(one["address"] == "127.0.0.1" and reason in one["reason"] for one in own):
            missing.append(f"{kind} credentials of {key} ({reason})")
    misused = [seen for kind, seen in events if kind == "request_refused" and seen["by"] == "store"]
    for address, (kind, request, reason) in MISUSED.items():
        own = [one for one in misused if one["address"] == address and one["subject"] == request]
        if not any(reason in one["reason"] and one["count"] == 1 for one in own):
            missing.append(f"a URL that is {kind} ({reason}): {[one for one in misused if one['address'] == address]}")
    return missing


@case("FG-07", "TL-29")
async def each_sender_is_told_with_its_first_refusal_of_a_kind_and_many_are_summed_up(facts: dict) -> None:
    assert len(Wire.refused) > 4 and len(TRIED) > 5 and len(MISUSED) > 5, "the other cases were refused"
    wire = await Wire.connect(facts, "auditor")
    events, first = [], 1
    deadline = asyncio.get_running_loop().time() + TOLD_WITHIN
    while True:
        more, first = await security_events(wire, first)
        events += more
        missing = untold(events)
        if not missing:
            break
        late = asyncio.get_running_loop().time() > deadline
        withstood(not late, f"no event about {missing[:3]}")
        await asyncio.sleep(0.2)
    await wire.close()
    kinds = collections.Counter((kind, seen.get("user", "")[:5]) for kind, seen in events)
    withstood(len(events) < EVENTS_MAX, f"{len(events)} events: {kinds.most_common(8)}")
