"""Attacks with overheard messages: said again, by others, and with altered bytes."""

import gzip

import nats.errors

from .bomb import UNPACKED, bomb, unpacks_to
from .case import case, withstood
from .wire import ANSWER_MARK, Wire, refusal


@case("TL-02", "FG-03", "FG-04")
async def what_another_said_counts_for_nothing_in_ones_own_name(facts: dict) -> None:
    """The victim's own bytes, from the thief: join with its proof, its result, its event."""
    wire = await Wire.connect(facts, "thief")
    for verb, payload in facts["overheard"].items():
        if verb == "event":
            subject = f"diloco.event.{facts['run']}.{wire.key}.joined"
        else:
            subject = f"diloco.request.{facts['run']}.{wire.key}.{verb}"
        for _ in range(2):
            code = refusal(await wire.ask(subject, bytes.fromhex(payload)))
            withstood(code is not None, f"{verb} of another worker was not refused")
    await wire.close()


@case("FG-11", "TL-02")
async def each_byte_of_each_message_can_be_wrong(facts: dict) -> None:
    """Every altered message is answered, and no answer says that something was done. The test looks
    afterwards for leases and members that are others than before."""
    wire = await Wire.connect(facts, "thief")
    unanswered, done, refused = [], [], 0
    for verb, payload in facts["overheard"].items():
        if verb == "event":
            continue
        subject = f"diloco.request.{facts['run']}.{wire.key}.{verb}"
        original = bytes.fromhex(payload)
        places = range(0, len(original), max(1, len(original) // 60))
        for place in places:
            altered = bytearray(original)
            altered[place] ^= 0x81
            answer = await wire.ask(subject, bytes(altered))
            if answer is None:
                # An answer is never answered; this byte makes the message one.
                if altered[0] != ANSWER_MARK:
                    unanswered.append((verb, place))
            elif refusal(answer):
                refused += 1
            else:
                done.append((verb, place, answer))
    await wire.close()
    withstood(not unanswered, f"no answer to {unanswered[:5]}")
    withstood(not done, f"{len(done)} altered messages were obeyed: {done[:3]}")
    assert refused > 50, f"only {refused} altered messages were refused"


@case("FG-11")
async def bytes_that_are_no_message_are_refused(facts: dict) -> None:
    wire = await Wire.connect(facts, "thief")
    bombs = [b"", b"\xc0", b"\x91" * 10_000, b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xffx",]
    bombs += [b'{"v":1}', b"PK\x03\x04", b"\x80\x04\x95" + b"\x00" * 20]
    for verb in facts["overheard"]:
        if verb == "event":
            continue
        subject = f"diloco.request.{facts['run']}.{wire.key}.{verb}"
        for bomb in bombs:
            code = refusal(await wire.ask(subject, bomb))
            withstood(code is not None, f"{verb} took {bomb[:8]!r}")
    await wire.close()


@case("FG-11")
async def a_gzip_bomb_is_no_message(facts: dict) -> None:
    """One MiB that unpacks to one GiB; the test looks at the memory of those who got it."""
    wire = await Wire.connect(facts, "thief")
    whole = bomb()
    assert unpacks_to(whole) == UNPACKED, "it is a bomb"
    # Packed twice it is short enough for a message.
    twice = gzip.compress(whole)
    assert len(twice) < 200_000 and gzip.decompress(twice) == whole, "it is short"
    verbs = [verb for verb in facts["overheard"] if verb != "event"]
    for verb in verbs:
        subject = f"diloco.request.{facts['run']}.{wire.key}.{verb}"
        for headers in [None, {"Content-Encoding": "gzip"}]:
            code = refusal(await wire.ask(subject, twice, headers))
            withstood(code is not None, f"{verb} took a gzip bomb with headers {headers}")
    # Whole it is longer than any message of a worker, and the broker ends the connection.
    try:
        answer = await wire.ask(subject, whole, wait=2.0)
        withstood(answer is None or refusal(answer) is not None, "a gzip bomb was taken")
    except (nats.errors.Error, OSError):
        pass
    await wire.close()
