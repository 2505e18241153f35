"""A connection to the broker, and the form of answers, as `docs/bus.md` describes them."""

import asyncio
import itertools
import json
import ssl

import msgpack
import nats
import nats.errors

ANSWER_MARK = 0xC1
# Time in which an answer comes, if one comes at all.
ANSWER_WAIT = 10.0


def tls(facts: dict) -> ssl.SSLContext:
    """Trusts the deployment's authority and nobody else."""
    context = ssl.create_default_context(cafile=facts["ca"])
    context.check_hostname = True
    return context


class Wire:
    """A connection that remembers what the broker refused."""

    # What the broker refused to all of them, by key and by what was refused, in the broker's order.
    refused: dict[tuple[str, str], list[str]] = {}
    # The codes with which services refused what was asked on each subject.
    codes: dict[str, set[str]] = {}

    def __init__(self, client, complaints: list[str], key: str):
        self.client = client
        self.complaints = complaints
        self.key = key
        self.numbers = itertools.count()

    @classmethod
    async def connect(cls, facts: dict, who: str) -> "Wire":
        """Connects with the credentials of somebody in the facts."""
        holder = facts["holders"][who]
        return await cls.connect_with(facts, holder["key"], user_credentials=holder["credentials"])

    @classmethod
    async def connect_with(cls, facts: dict, key: str, **credentials) -> "Wire":
        """Connects with any credentials; raises if the broker does not take them."""
        complaints: list[str] = []

        async def remember(error):
            complaints.append(str(error))

        client = await nats.connect(
            facts["bus"],
            tls=tls(facts),
            error_cb=remember,
            allow_reconnect=False,
            connect_timeout=ANSWER_WAIT,
            # An answer comes to an inbox below the asker's own key.
            inbox_prefix=f"_INBOX.{key}".encode(),
            **credentials,
        )
        return cls(client, complaints, key)

    async def refused_publishes(self, subjects: list[str], payload: bytes = b"x") -> set[str]:
        """Publishes on each subject, and returns those that the broker refused."""
        return await self._refused("publish", subjects, lambda s: self.client.publish(s, payload))

    async def refused_subscriptions(self, subjects: list[str]) -> set[str]:
        """Subscribes to each subject, and returns those that the broker refused."""
        return await self._refused("subscription", subjects, self.client.subscribe)

    async def _refused(self, kind: str, subjects: list[str], act) -> set[str]:
        self.complaints.clear()
        for number, subject in enumerate(subjects):
            await act(subject)
            if number % 200 == 199:
                await self._handled()
        await self._handled()
        text = set(self.complaints)
        refused = [s for s in subjects if f'nats: permissions violation for {kind} to "{s.lower()}"' in text]
        if refused:
            reason = {"publish": "publish", "subscription": "subscribe"}[kind]
            Wire.refused.setdefault((self.key, reason), []).extend(refused)
        return set(refused)

    async def _handled(self) -> None:
        """Waits until the broker has handled all that was sent: it complains in order, and nobody
        may publish this."""
        sentinel = f"sentinel.{next(self.numbers)}"
        await self.client.publish(sentinel, b"")
        await self.client.flush(timeout=30)
        deadline = asyncio.get_running_loop().time() + 30
        while not any(f'"{sentinel}"' in complaint for complaint in self.complaints[-300:]):
            assert asyncio.get_running_loop().time() < deadline, "the broker does not complain"
            await asyncio.sleep(0.01)

    async def ask(
        self, subject: str, payload: bytes, headers: dict | None = None, wait: float = ANSWER_WAIT
    ) -> dict | None:
        """Asks and returns the decoded answer; none if nobody answers."""
        inbox = f"_INBOX.{self.key}.{next(self.numbers)}"
        answers = await self.client.subscribe(inbox)
        await self.client.publish(subject, payload, reply=inbox, headers=headers)
        try:
            message = await answers.next_msg(timeout=wait)
        except (nats.errors.TimeoutError, asyncio.TimeoutError):
            return None
        finally:
            # A token allows few subscriptions.
            if self.client.is_connected:
                await answers.unsubscribe()
        if message.data[:1] == bytes([ANSWER_MARK]):
            answer = msgpack.unpackb(message.data[1:], strict_map_key=False)
            code = refusal(answer)
            if code:
                Wire.codes.setdefault(subject, set()).add(code)
            return answer
        # The broker's own answers: from JetStream, or that nobody listens.
        return json.loads(message.data) if message.data else {"status": dict(message.headers or {})}

    async def close(self) -> None:
        await self.client.close()


def refusal(answer: dict | None) -> str | None:
    """The code in an answer, if it is a refusal."""
    reply = (answer or {}).get("reply")
    if isinstance(reply, dict):
        for name, value in reply.items():
            if name == "refused" or (isinstance(value, dict) and "code" in value):
                return str(value["code"])
    return None


def channels(facts: dict) -> list[tuple[str, list[str]]]:
    """Each subject pattern of the bus, with the roles that may say it."""
    with open(facts["asyncapi"], encoding="utf-8") as file:
        described = json.load(file)
    senders: dict[str, list[str]] = {name: [] for name in described["channels"]}
    for operation in described["operations"].values():
        if operation["action"] == "send":
            senders[operation["channel"]["$ref"].rsplit("/", 1)[1]].append(operation["x-role"])
    return [(described["channels"][name]["address"], roles) for name, roles in senders.items()]
