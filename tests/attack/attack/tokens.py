"""Attacks at the door: the broker must not take these credentials."""

import base64
import json
import secrets

import nkeys

from .case import case, withstood
from .wire import Wire, refusal


def parts(credentials: str) -> tuple[str, bytes]:
    """The token and the seed in a credentials file."""
    with open(credentials, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    inside = [line for line in lines if line and not line.startswith(("-", "*", "#", "I"))]
    token = next(line for line in inside if line.count(".") == 2)
    seed = next(line for line in inside if line.startswith("SU"))
    return token, seed.encode()


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(part: str) -> dict:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def new_seed(kind: int) -> bytes:
    """The seed of a key that the attacker makes; `kind` is nkeys' prefix byte."""
    return nkeys.encode_seed(secrets.token_bytes(32), kind)


def made(header: dict, claims: dict, signer: bytes | None) -> str:
    """A token with any header and claims; without a signer its signature is 64 zeros."""
    signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
    signature = nkeys.from_seed(bytearray(signer)).sign(signed.encode()) if signer else bytes(64)
    return f"{signed}.{encoded(signature)}"


# What was refused at the door and must be told: the key in the token, its name and the reason, by
# kind. The record is read last.
TRIED: dict[str, tuple[str, str, str]] = {}

# What the record must say of each kind: the broker itself gives all of them the same reason.
AUTHENTICATION = "Authentication Failure"
REASONS = {"ended": "the token has ended", "early": "the token begins later"}


async def enters(facts: dict, token: str, seed: bytes) -> bool:
    """True if the broker takes the token with a proof by this seed."""
    pair = nkeys.from_seed(bytearray(seed))

    def proof(nonce: str) -> bytes:
        return base64.b64encode(pair.sign(nonce.encode()))

    try:
        wire = await Wire.connect_with(
            facts,
            pair.public_key.decode(),
            user_jwt_cb=lambda: bytearray(token.encode()),
            signature_cb=proof,
        )
        await wire.client.flush(timeout=10)
    except Exception:
        return False
    await wire.close()
    return True


@case("FG-01")
async def a_real_token_opens_the_door(facts: dict) -> None:
    """Without this the other cases of this file would prove nothing."""
    assert await enters(facts, *parts(facts["holders"]["thief"]["credentials"]))


@case("FG-01", "LA-01")
async def nobody_enters_without_credentials(facts: dict) -> None:
    for more in [{}, {"user": "admin", "password": "admin"}, {"token": "s3cr3t"}]:
        try:
            wire = await Wire.connect_with(facts, "anonymous", **more)
            await wire.client.flush(timeout=10)
        except Exception:
            continue
        await wire.close()
        withstood(False, f"the broker took {list(more)}")


@case("TL-23", "TL-07", "TL-29")
async def ended_early_revoked_and_foreign_tokens_do_not_enter(facts: dict) -> None:
    """Each is told with the key that was tried: see `told.py`."""
    # They are made in the same way as this one, which is right.
    assert await enters(facts, *parts(facts["made_credentials"])), "a token that the test made enters"
    kinds = {kind: parts(credentials) for kind, credentials in facts["bad_credentials"].items()}
    assert len(kinds) > 5, f"only {list(kinds)}"
    for kind, (token, seed) in kinds.items():
        claims = decoded(token.split(".")[1])
        TRIED[kind] = (claims["sub"], claims["name"], REASONS.get(kind, AUTHENTICATION))
        withstood(not await enters(facts, token, seed), f"{kind} credentials were taken")


@case("TL-07", "TL-29")
async def nobody_gives_the_broker_an_account_s_token_again(facts: dict) -> None:
    """A token of an account from before a revocation would undo it."""
    for who in ["thief", "stranger", "operator", "auditor"]:
        wire = await Wire.connect(facts, who)
        subject = "$SYS.REQ.CLAIMS.UPDATE"
        refused = await wire.refused_publishes([subject], facts["account_token"].encode())
        withstood(refused == {subject}, f"{who} could say it")
        await wire.close()


@case("TL-23")
async def a_stolen_token_is_nothing_without_its_key(facts: dict) -> None:
    token, _ = parts(facts["holders"]["operator"]["credentials"])
    _, own = parts(facts["holders"]["thief"]["credentials"])
    withstood(not await enters(facts, token, own), "the operator's token with another's key")
    withstood(not await enters(facts, token, new_seed(nkeys.PREFIX_BYTE_USER)), "with a new key")


@case("TL-23")
async def no_field_of_a_token_can_be_changed(facts: dict) -> None:
    token, seed = parts(facts["holders"]["thief"]["credentials"])
    head, body, signature = token.split(".")
    claims = decoded(body)
    changes = {
        "name": "operator",
        "exp": 4_000_000_000,
        "iss": facts["holders"]["operator"]["key"],
        "sub": facts["holders"]["operator"]["key"],
        "iat": 0,
        "nats": {**claims["nats"], "tags": ["run:" + facts["other_run"]]},
    }
    altered = [{**claims, field: value} for field, value in changes.items()]
    rights = {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}, "subs": -1, "data": -1, "payload": -1}
    altered += [
        {**claims, "nats": {**claims["nats"], **rights}},
        {**claims, "nats": {**claims["nats"], "issuer_account": facts["account"][:-1] + "A"}},
        {**claims, "nats": {**claims["nats"], "bearer_token": True}},
    ]
    own = new_seed(nkeys.PREFIX_BYTE_ACCOUNT)
    for number, forged in enumerate(altered):
        payload = encoded(json.dumps(forged).encode())
        withstood(not await enters(facts, f"{head}.{payload}.{signature}", seed), f"change {number}")
        # Signed with an account key that the attacker made, under its own name and under the real one.
        withstood(not await enters(facts, made(decoded(head), forged, own), seed), f"resigned {number}")
    issuer = nkeys.from_seed(bytearray(own)).public_key.decode()
    forged = {**claims, "iss": issuer, "nats": {**claims["nats"], "issuer_account": claims["iss"]}}
    withstood(not await enters(facts, made(decoded(head), forged, own), seed), "a signer of its own")


@case("TL-23")
async def the_algorithm_of_a_token_is_not_the_senders_choice(facts: dict) -> None:
    token, seed = parts(facts["holders"]["thief"]["credentials"])
    head, body, signature = token.split(".")
    for algorithm in ["none", "None", "HS256", "RS256", "ES256", ""]:
        header = encoded(json.dumps({**decoded(head), "alg": algorithm}).encode())
        for ending in [signature, "", encoded(bytes(64))]:
            entered = await enters(facts, f"{header}.{body}.{ending}", seed)
            withstood(not entered, f"alg {algorithm!r}")


@case("TL-23")
async def a_token_cut_or_doubled_does_not_enter(facts: dict) -> None:
    token, seed = parts(facts["holders"]["thief"]["credentials"])
    for altered in [token[:-2], token + token, token.replace(".", "..", 1), "." + token, token[1:], "..", "x" * 5000]:
        withstood(not await enters(facts, altered, seed), f"{altered[:20]}…")


@case("TL-08", "FG-03")
async def the_name_of_a_connection_gives_no_right(facts: dict) -> None:
    """A connection may call itself anything; what counts is its key."""
    token, seed = parts(facts["holders"]["thief"]["credentials"])
    pair = nkeys.from_seed(bytearray(seed))
    wire = await Wire.connect_with(
        facts,
        pair.public_key.decode(),
        user_jwt_cb=lambda: bytearray(token.encode()),
        signature_cb=lambda nonce: base64.b64encode(pair.sign(nonce.encode())),
        name=facts["holders"]["operator"]["key"],
    )
    orders = f"diloco.control.{facts['holders']['operator']['key']}.shutdown"
    refused = await wire.refused_publishes([orders])
    withstood(refused == {orders}, "it could give an order")
    answer = await wire.ask(f"diloco.request.{facts['run']}.{wire.key}.lease.claim", b"x")
    withstood(refusal(answer) is not None, "a claim that is no message was not refused")
    await wire.close()
