"""Large payloads against a real server: stored before they are referred to, verified, shared, readable by others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import uuid4

import nats
import pytest
from nats.js.client import JetStreamContext
from nats.js.object_store import ObjectStore

from bus import Agent, NotFound, Phase, Plan, connect, ref
from bus.broker.connection import Connection
from bus.broker.server import Server, embedded
from bus.errors import MalformedMessage, Misconfigured, PayloadLost, TooLarge, Unavailable
from bus.format.envelope import Envelope, encode, envelope
from bus.format.subjects import Subjects
from bus.log.payloads import Payloads
from bus.rules.events import PhaseCompleted
from bus.settings import Settings
from tests.harness import serving, until

SUBJECT = "bus.run.r"
STREAM = "OBJ_BUS_PAYLOADS"
RANDOM = Random(7)


def message(data: object) -> Envelope:
    return envelope("test.v1", data, id=uuid4().hex, source="/test", time=datetime.now(UTC), runid="r")


def noise(size: int) -> str:
    """Text that can be compressed to half its size at best."""
    return RANDOM.randbytes(size // 2).hex()


def payloads_over(connection: Connection, **settings: float) -> Payloads:
    chosen = {"append_timeout_s": 15, "request_timeout_s": 2, **settings}
    return Payloads(connection, Subjects("bus"), Settings(**chosen))


@pytest.fixture
def payloads(connection: Connection) -> Payloads:
    return payloads_over(connection)


@asynccontextmanager
async def their_client(server: Server) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.operator_url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


async def their_store(jetstream: JetStreamContext) -> ObjectStore:
    return await jetstream.object_store("BUS_PAYLOADS")


def name_in(body: bytes) -> str:
    return str(json.loads(body)["dataref"])


async def messages_in(jetstream: JetStreamContext) -> int:
    return (await jetstream.stream_info(STREAM)).state.messages


@pytest.mark.parametrize("size", [1_000, 500_000, 5_000_000, 40_000_000])
async def test_a_payload_of_any_size_comes_back_byte_for_byte(payloads: Payloads, size: int) -> None:
    large = message({"text": noise(size)})
    body = await payloads.pack(SUBJECT, large)
    assert len(body) < 2**20
    assert await payloads.unpack(body) == encode(large)


async def test_a_payload_that_fits_never_makes_a_bucket(payloads: Payloads, server: Server) -> None:
    for data in ({"a": 1}, [0] * 100_000, noise(500_000)):
        await payloads.unpack(await payloads.pack(SUBJECT, message(data)))
    async with their_client(server) as jetstream:
        assert [each.config.name for each in await jetstream.streams_info()] == []


async def test_a_payload_over_the_limit_is_refused_before_anything_is_stored(
    connection: Connection, server: Server
) -> None:
    payloads = payloads_over(connection, payload_limit_bytes=3_000_000)
    with pytest.raises(TooLarge):
        await payloads.pack(SUBJECT, message(noise(3_000_001)))
    async with their_client(server) as jetstream:
        assert await jetstream.streams_info() == []


async def test_the_object_store_of_another_client_reads_what_we_wrote(payloads: Payloads, server: Server) -> None:
    large = message(noise(3_000_000))
    body = await payloads.pack(SUBJECT, large)
    async with their_client(server) as jetstream:
        store = await their_store(jetstream)
        read = await store.get(name_in(body))
        [listed] = await store.list()
    assert read.data == await payloads.objects.get(name_in(body), limit_bytes=2**30)
    assert (listed.name, listed.size, listed.chunks) == (name_in(body), len(read.data), -(-len(read.data) // 2**18))


async def test_we_read_what_the_object_store_of_another_client_wrote(payloads: Payloads, server: Server) -> None:
    await payloads.pack(SUBJECT, message(noise(3_000_000)))
    theirs = RANDOM.randbytes(700_000)
    async with their_client(server) as jetstream:
        store = await their_store(jetstream)
        await store.put("theirs", theirs)
        assert await payloads.objects.get("theirs", limit_bytes=2**20) == theirs
        await store.delete("theirs")
        with pytest.raises(PayloadLost, match="theirs"):
            await payloads.objects.get("theirs", limit_bytes=2**20)


async def test_the_same_payload_is_stored_once(payloads: Payloads, connection: Connection, server: Server) -> None:
    data = noise(3_000_000)
    others = payloads_over(connection)
    bodies = await asyncio.gather(*(each.pack(SUBJECT, message(data)) for each in (payloads, payloads, others)))
    bodies.append(await others.pack("bus.run.another", message(data)))
    assert len({name_in(body) for body in bodies}) == 1
    [found] = [each async for each in payloads.objects.all()]
    assert await payloads.objects.chunks.count() == {found.meta.nuid: found.meta.chunks}
    async with their_client(server) as jetstream:
        assert await messages_in(jetstream) == found.meta.chunks + 1
    for body in bodies:
        assert json.loads(await payloads.unpack(body))["data"] == data


async def test_a_damaged_object_is_lost_and_not_handed_out(payloads: Payloads, server: Server) -> None:
    body = await payloads.pack(SUBJECT, message(noise(3_000_000)))
    [found] = [each async for each in payloads.objects.all()]
    chunks = f"$O.BUS_PAYLOADS.C.{found.meta.nuid}"
    async with their_client(server) as jetstream:
        last = await jetstream.get_last_msg(STREAM, chunks)
        await jetstream.delete_msg(STREAM, last.seq)
        with pytest.raises(PayloadLost, match="damaged"):
            await payloads.unpack(body)
        await jetstream.publish(chunks, last.data[:-1] + bytes([last.data[-1] ^ 1]))
        with pytest.raises(PayloadLost, match="damaged"):
            await payloads.unpack(body)
        await jetstream.publish(chunks, b"and more")
        with pytest.raises(PayloadLost, match="damaged"):
            await payloads.unpack(body)


async def test_an_object_with_another_payload_under_its_name_is_lost(payloads: Payloads, server: Server) -> None:
    body, other = [await payloads.pack(SUBJECT, message(noise(3_000_000))) for _ in range(2)]
    swapped = json.loads(body)
    theirs = json.loads(other)
    async with their_client(server) as jetstream:
        store = await their_store(jetstream)
        content = (await store.get(theirs["dataref"])).data
        await store.put(swapped["dataref"], content)
    with pytest.raises(PayloadLost, match="its hash is another"):
        await payloads.unpack(body)


async def test_an_object_larger_than_declared_is_not_fetched(payloads: Payloads) -> None:
    body = await payloads.pack(SUBJECT, message(noise(3_000_000)))
    document = json.loads(body)
    with pytest.raises(PayloadLost, match="were declared"):
        await payloads.unpack(json.dumps({**document, "datasize": 1000}).encode())


async def test_a_reference_to_nothing_is_lost_with_and_without_a_bucket(payloads: Payloads) -> None:
    name = "a" * 64
    reference = {"dataref": f"{name}.json", "datasha256": name, "datasize": 10}
    plain = json.loads(encode(message(None)))
    del plain["data"]
    body = json.dumps({**plain, **reference}).encode()
    for _ in range(2):
        with pytest.raises(PayloadLost, match=name):
            await payloads.unpack(body)
        await payloads.pack(SUBJECT, message(noise(3_000_000)))


async def test_a_bucket_that_is_not_as_promised_is_named(payloads: Payloads, server: Server) -> None:
    async with their_client(server) as jetstream:
        await jetstream.create_object_store("BUS_PAYLOADS", description="theirs", storage="memory")
    with pytest.raises(Misconfigured, match="storage"):
        await payloads.pack(SUBJECT, message(noise(3_000_000)))


async def test_a_bucket_that_was_removed_is_made_again(payloads: Payloads, server: Server) -> None:
    await payloads.pack(SUBJECT, message(noise(3_000_000)))
    async with their_client(server) as jetstream:
        await jetstream.delete_stream(STREAM)
    large = message(noise(3_000_000))
    assert await payloads.unpack(await payloads.pack(SUBJECT, large)) == encode(large)


async def test_a_server_killed_in_the_middle_of_an_upload_loses_no_payload(
    payloads: Payloads, server: Server, connection: Connection
) -> None:
    await payloads.pack(SUBJECT, message(noise(3_000_000)))
    large = message(noise(60_000_000))
    packing = asyncio.create_task(payloads.pack(SUBJECT, large))

    async def is_under_way() -> bool:
        return any(count > 12 for count in (await payloads.objects.chunks.count()).values())

    await until(is_under_way)
    assert not packing.done()
    await server.restart()
    body = await packing
    assert connection.disconnects == 1
    assert await payloads.unpack(body) == encode(large)


async def test_a_server_that_is_away_is_waited_for_no_longer_than_an_append_may_take(tmp_path: Path) -> None:
    async with embedded(tmp_path / "away") as server, Connection.open(server.url, name="test") as connection:
        payloads = payloads_over(connection, append_timeout_s=0.5, request_timeout_s=0.2)
        body = await payloads.pack(SUBJECT, message(noise(3_000_000)))
        await server.kill()
        with pytest.raises(Unavailable):
            await payloads.pack(SUBJECT, message(noise(3_000_000)))
        with pytest.raises(Unavailable):
            await payloads.unpack(body)


async def test_a_full_disk_is_named_and_a_failed_upload_leaves_nothing(connection: Connection, server: Server) -> None:
    payloads = payloads_over(connection, append_timeout_s=1)
    await payloads.pack(SUBJECT, message(noise(3_000_000)))
    async with their_client(server) as jetstream:
        config = (await jetstream.stream_info(STREAM)).config
        await jetstream.update_stream(config.evolve(max_bytes=4_000_000))
        before = await messages_in(jetstream)
        with pytest.raises((Misconfigured, Unavailable), match="maximum bytes"):
            await payloads.pack(SUBJECT, message(noise(8_000_000)))
        assert await messages_in(jetstream) == before


async def test_phases_hand_on_what_is_larger_than_any_message(server: Server) -> None:
    text = noise(5 * 2**20)
    agent = Agent("large")

    @agent.capability("make")
    async def make(query: dict[str, str]) -> dict[str, str]:
        return {"text": query["text"] + "!"}

    @agent.capability("count")
    async def count(query: dict[str, str]) -> int:
        return len(query["text"])

    plan = Plan("large", phases=[Phase("make", "make", ref("input")), Phase("count", "count", ref("make"))])
    async with connect(server.url) as client, serving(server, agent):
        receipt = await client.start(plan, {"text": text})
        async with asyncio.timeout(30):
            happened = [each.event async for each in client.watch(receipt.run)]
        state = await client.result(receipt.run, timeout_s=5)
        assert state.status == "completed", state.problem
        assert client.output(state, "count") == len(text) + 1
        assert client.output(state, "make") == {"text": text + "!"}
        assert sum(isinstance(event, PhaseCompleted) for event in happened) == 2
        # What stands in the log are references; any reader who asks through the log gets the whole.
        raw = await client.connection.request("$JS.API.DIRECT.GET.BUS", b'{"seq":1}', timeout_s=2)
        assert len(raw.data) < 2_000


async def test_a_run_whose_payload_got_lost_is_read_as_far_as_it_goes(server: Server) -> None:
    async with connect(server.url) as client:
        receipt = await client.start(Plan("large", phases=[Phase("a", "nobody")]), {"text": noise(3 * 2**20)})
        await client.connection.request(f"$JS.API.STREAM.PURGE.{STREAM}", b"", timeout_s=2)
        [record] = [record async for record in client.log.read(client.subjects.run(receipt.run))]
        with pytest.raises(MalformedMessage):
            record.envelope()
        with pytest.raises(NotFound):
            await client.runs.load("another")
