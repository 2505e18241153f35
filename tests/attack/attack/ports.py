"""The ports themselves: what they speak, and how many clients that never say anything they bear."""

import asyncio
import resource
import socket
import ssl
import time
import warnings
from urllib.parse import urlsplit

import nats.errors

from .case import case, withstood
from .store import Http
from .wire import Wire, refusal, tls

# Longest wait for a handshake, on a busy machine.
HANDSHAKE = 20.0
# The old versions are asked for on purpose.
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=RuntimeWarning)

VERSIONS = {
    "TLS 1.0": ssl.TLSVersion.TLSv1,
    "TLS 1.1": ssl.TLSVersion.TLSv1_1,
    "TLS 1.2": ssl.TLSVersion.TLSv1_2,
    "TLS 1.3": ssl.TLSVersion.TLSv1_3,
}


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname, parts.port


def ports(facts: dict) -> dict[str, tuple[str, int]]:
    return {"the bus": address(facts["bus"]), "the store": address(facts["store"])}


def offer(facts: dict, version: ssl.TLSVersion, ciphers: str = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"):
    """A client that offers one version, and the oldest ciphers beside the newest."""
    context = tls(facts)
    context.set_ciphers(ciphers)
    context.minimum_version = version
    context.maximum_version = version
    return context


def shake(port: tuple[str, int], is_bus: bool, context: ssl.SSLContext):
    """The version and the cipher that were agreed on; none if there was no handshake."""
    with socket.create_connection(port, timeout=HANDSHAKE) as plain:
        if is_bus:
            # The broker greets before the handshake.
            greeting = plain.recv(65536)
            assert greeting.startswith(b"INFO "), greeting[:40]
        try:
            with context.wrap_socket(plain, server_hostname=port[0]) as wrapped:
                return wrapped.version(), wrapped.cipher()[0], wrapped.compression()
        except (ssl.SSLError, ConnectionError):
            return None


@case("TL-21")
async def only_tls_of_today_is_spoken(facts: dict) -> None:
    """Each version, and each cipher of TLS 1.2 that this machine's OpenSSL knows."""
    for name, port in ports(facts).items():
        is_bus = name == "the bus"
        agreed = {}
        for version, wanted in VERSIONS.items():
            agreed[version] = await asyncio.to_thread(shake, port, is_bus, offer(facts, wanted))
        withstood(agreed["TLS 1.0"] is None and agreed["TLS 1.1"] is None, f"{name} speaks {agreed}")
        assert agreed["TLS 1.3"] is not None, f"{name} speaks TLS 1.3"
        withstood(all(found is None or found[2] is None for found in agreed.values()), f"{name} compresses")
        known = offer(facts, ssl.TLSVersion.TLSv1_2).get_ciphers()
        old = [one for one in known if one["protocol"] != "TLSv1.3"]
        taken = []
        for cipher in old:
            context = offer(facts, ssl.TLSVersion.TLSv1_2, f"{cipher['name']}:@SECLEVEL=0")
            if await asyncio.to_thread(shake, port, is_bus, context):
                taken.append(cipher)
        # Keys of the moment, so that a stolen key opens no recorded talk; and authentic encryption.
        bad = [one["name"] for one in taken if one["kea"] != "kx-ecdhe" or not one["aead"]]
        assert len(old) > 40, "this OpenSSL offers the old ciphers"
        withstood(not bad, f"{name} takes {bad}")


@case("TL-02", "LA-01")
async def nobody_is_served_without_tls(facts: dict) -> None:
    bus, store = ports(facts).values()

    async def answer(port, sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*port)
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read(65536), HANDSHAKE)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    said = await answer(store, b"GET /blobs HTTP/1.1\r\nhost: localhost\r\n\r\n")
    withstood(not said.startswith(b"HTTP/1.1 2"), f"the store answered {said[:60]}")
    reader, writer = await asyncio.open_connection(*bus)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":true,"tls_required":false}\r\nPING\r\nSUB > 1\r\nPUB diloco.x 1\r\nx\r\n')
    try:
        said = await asyncio.wait_for(reader.read(65536), HANDSHAKE)
    except ConnectionError:
        said = b""
    writer.close()
    withstood(b"+OK" not in said and b"PONG" not in said, f"the broker answered {said[:60]}")


def room_for(connections: int) -> int:
    """Raises this process's limit of open files, and returns how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(connections, hard - 500)


async def silent(port: tuple[str, int], number: int) -> socket.socket | None:
    """A connection that says nothing, from one of 200 addresses of this machine."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    client.bind((f"127.1.0.{1 + number % 200}", 0))
    try:
        await asyncio.wait_for(loop.sock_connect(client, port), HANDSHAKE)
    except (OSError, asyncio.TimeoutError):
        client.close()
        return None
    return client


# A crowd of the full size is one of at least so many.
CROWD_MIN = 9_000


async def crowd(port: tuple[str, int]) -> list[socket.socket]:
    """Ten thousand silent connections, a few hundred at a time, or as many as this process may have."""
    size, open_now = room_for(10_000), []
    for first in range(0, size, 250):
        batch = (silent(port, number) for number in range(first, min(first + 250, size)))
        open_now += [client for client in await asyncio.gather(*batch) if client]
    least = CROWD_MIN if size == 10_000 else size // 2
    assert len(open_now) >= least, f"only {len(open_now)} of {size} were connected"
    return open_now


def stands(client: socket.socket) -> bool:
    """True if the other side has not ended this connection."""
    try:
        # The broker greets, and closes.
        while client.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def counted(clients: list[socket.socket]) -> str:
    """How many there were, and how many the other side has left there."""
    left = sum(stands(client) for client in clients)
    return f"{len(clients)} connections, {left} of them stand at the end"


@case()
async def ten_thousand_silent_connections_keep_nobody_off_the_bus(facts: dict) -> str:
    """The test's honest worker renews its lease all the while."""
    clients = await crowd(ports(facts)["the bus"])
    try:
        # The broker ends what says nothing after three seconds; until then it may be full.
        deadline = time.monotonic() + 30
        late = None
        while late is None:
            try:
                late = await Wire.connect(facts, "thief")
            except (nats.errors.Error, OSError, asyncio.TimeoutError):
                withstood(time.monotonic() < deadline, "a worker cannot connect any more")
                await asyncio.sleep(0.5)
        await late.client.flush(timeout=30)
        await late.close()
        return counted(clients)
    finally:
        for client in clients:
            client.close()


async def fresh_url(facts: dict) -> dict:
    """A URL that the coordinator gives the honest worker now. The thief is silent, and so no member any more."""
    wire = await Wire.connect(facts, "victim")
    question = facts["question"]
    subject = f"diloco.request.{facts['run']}.{wire.key}.{question['verb']}"
    answer = await wire.ask(subject, bytes.fromhex(question["hex"]))
    await wire.close()
    assert answer and not refusal(answer), f"a member may read its run's data: {answer}"
    return answer["reply"]["ok"]["grants"][0]["action"]


@case()
async def ten_thousand_silent_connections_keep_nobody_off_the_store(facts: dict) -> str:
    clients = await crowd(ports(facts)["the store"])
    try:
        grant = await fresh_url(facts)
        status = await Http(facts).status(grant["method"], grant["href"], grant["headers"], None, 60.0)
        withstood(status == 200, f"the store answers a worker with {status}")
        return counted(clients)
    finally:
        for client in clients:
            client.close()


@case()
async def a_client_that_reads_nothing_stops_nobody(facts: dict) -> None:
    """It asks and asks, and leaves every answer in the broker's buffers."""
    wire = await Wire.connect(facts, "thief")
    inbox = f"_INBOX.{wire.key}.deaf"
    await wire.client.subscribe(inbox)
    await wire.client.flush(timeout=30)
    # nats-py reads in a task of its own; without it the bytes stay in the socket.
    wire.client._reading_task.cancel()
    wire.client._ping_interval_task.cancel()
    subject = f"diloco.request.{facts['run']}.{wire.key}.lease.claim"
    asked = 0
    try:
        for asked in range(20_000):
            await wire.client.publish(subject, b"x" * 3000, reply=inbox)
            if asked % 100 == 99:
                await asyncio.wait_for(wire.client._transport.drain(), 5)
    except (nats.errors.Error, OSError, asyncio.TimeoutError):
        # The broker has ended the connection, or takes no more from it.
        pass
    assert asked > 100, "it asked for a while"
    other = await Wire.connect(facts, "stranger")
    await other.client.flush(timeout=30)
    await other.close()
    wire.client._transport.close()
