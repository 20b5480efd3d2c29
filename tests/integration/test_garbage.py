"""Garbage among the payloads: what no record refers to goes, everything else stays, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import uuid4

import nats
import pytest

from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.errors import PayloadLost
from bus.format.envelope import Envelope, encode, envelope
from bus.format.subjects import Subjects
from bus.log import garbage
from bus.log.garbage import Garbage
from bus.log.log import Log
from bus.log.payloads import Payloads
from bus.settings import Settings

SUBJECTS = Subjects("bus")
SETTINGS = Settings(append_timeout_s=15, request_timeout_s=2)
RUN = "bus.run.r"
RANDOM = Random(7)


def message(seed: int = 0) -> Envelope:
    """One with a payload that no message can hold; the same seed, the same payload."""
    data = (Random(seed) if seed else RANDOM).randbytes(1_200_000).hex()
    return envelope("test.v1", data, id=uuid4().hex, source="/test", time=datetime.now(UTC), runid="r")


@pytest.fixture
async def payloads(connection: Connection) -> Payloads:
    await Log(connection, SUBJECTS, SETTINGS).set_up()
    return Payloads(connection, SUBJECTS, SETTINGS)


async def append(connection: Connection, subject: str, body: bytes) -> None:
    answer = await connection.request(subject, body, timeout_s=2)
    assert json.loads(answer.data)["seq"]


async def find(payloads: Payloads, connection: Connection, older_than_s: float = 0) -> Garbage:
    return await garbage.find(payloads.objects, connection, SUBJECTS, older_than_s=older_than_s, timeout_s=2)


async def names(payloads: Payloads) -> set[str]:
    return {each.meta.name async for each in payloads.objects.all()}


def name_in(body: bytes) -> str:
    return str(json.loads(body)["dataref"])


async def test_what_a_record_refers_to_is_kept_and_the_rest_removed(payloads: Payloads, connection: Connection) -> None:
    used = await payloads.pack(RUN, message())
    await append(connection, RUN, used)
    unused = await payloads.pack(RUN, message())
    found = await find(payloads, connection)
    assert [each.meta.name for each in found.objects] == [name_in(unused)]
    assert found.kept == 1
    assert await names(payloads) == {name_in(used), name_in(unused)}
    assert await garbage.remove(payloads.objects, found) == found
    assert await names(payloads) == {name_in(used)}
    await payloads.unpack(used)
    with pytest.raises(PayloadLost):
        await payloads.unpack(unused)
    assert len(await payloads.objects.chunks.count()) == 1


async def test_a_reference_on_another_subject_than_was_said_is_found_too(
    payloads: Payloads, connection: Connection
) -> None:
    for number, hint in enumerate(["bus.dead.c", "", "bus.run.*", "other.run.r", "bus.run.r r"]):
        body = await payloads.pack(hint, message())
        await append(connection, f"bus.run.{number}", body)
    found = await find(payloads, connection)
    assert (len(found.objects), found.kept) == (0, 5)


async def test_one_of_several_records_is_enough(payloads: Payloads, connection: Connection) -> None:
    """The object says only on which subject the last one was to be appended, and that append never happened."""
    await append(connection, RUN, await payloads.pack(RUN, message(seed=1)))
    await payloads.pack("bus.run.never", message(seed=1))
    found = await find(payloads, connection)
    assert (len(found.objects), found.kept) == (0, 1)


async def test_what_is_young_is_kept(payloads: Payloads, connection: Connection) -> None:
    await payloads.pack(RUN, message())
    found = await find(payloads, connection, older_than_s=3600)
    assert (len(found.objects), found.kept) == (0, 1)


async def test_putting_a_payload_again_makes_it_young(payloads: Payloads, connection: Connection) -> None:
    await payloads.pack(RUN, message(seed=1))
    [before] = [each async for each in payloads.objects.all()]
    await payloads.pack(RUN, message(seed=1))
    [after] = [each async for each in payloads.objects.all()]
    assert after.at > before.at
    assert after.meta.nuid == before.meta.nuid


async def test_what_a_writer_uses_again_after_it_was_found_is_not_removed(
    payloads: Payloads, connection: Connection
) -> None:
    await payloads.pack(RUN, message(seed=1))
    found = await find(payloads, connection)
    assert len(found.objects) == 1
    again = await payloads.pack(RUN, message(seed=1))
    removed = await garbage.remove(payloads.objects, found)
    assert (removed.objects, removed.kept) == ([], 1)
    await append(connection, RUN, again)
    await payloads.unpack(again)


async def test_what_was_removed_can_be_put_again(payloads: Payloads, connection: Connection) -> None:
    for _ in range(3):
        again = message(seed=1)
        body = await payloads.pack(RUN, again)
        assert await payloads.unpack(body) == encode(again)
        await garbage.remove(payloads.objects, await find(payloads, connection))
        assert await names(payloads) == set()


async def test_writers_and_collectors_at_once_lose_no_payload(payloads: Payloads, connection: Connection) -> None:
    """Whatever they did to each other, in the end what is referred to is there, and nothing else."""
    done = asyncio.Event()

    async def collect() -> int:
        count = 0
        while not done.is_set():
            count += len((await garbage.remove(payloads.objects, await find(payloads, connection))).objects)
        return count

    async def write(seed: int) -> None:
        for _ in range(8):
            body = await payloads.pack(RUN, message(seed=seed))
            # No record refers to it yet, and the collector grants no time: it may be gone, but never be half there.
            with suppress(PayloadLost):
                assert json.loads(await payloads.unpack(body))["data"]

    collecting = asyncio.create_task(collect())
    await asyncio.gather(*(write(seed) for seed in (1, 1, 2)))
    done.set()
    assert await collecting
    body = await payloads.pack(RUN, message(seed=1))
    await append(connection, RUN, body)
    await payloads.unpack(body)
    await garbage.remove(payloads.objects, await find(payloads, connection))
    await payloads.unpack(body)
    assert await names(payloads) == {name_in(body)}
    assert len(await payloads.objects.chunks.count()) == 1


async def test_what_a_broken_upload_left_is_removed_and_one_under_way_is_not(
    payloads: Payloads, connection: Connection, server: Server
) -> None:
    used = await payloads.pack(RUN, message())
    await append(connection, RUN, used)
    await append(connection, "$O.BUS_PAYLOADS.C.broken", b"half of it")
    assert (await find(payloads, connection, older_than_s=3600)).uploads == []
    found = await find(payloads, connection)
    assert (found.uploads, found.objects) == (["broken"], [])
    await garbage.remove(payloads.objects, found)
    assert "broken" not in await payloads.objects.chunks.count()
    await payloads.unpack(used)


async def test_what_a_collector_that_was_killed_left_is_removed_by_the_next(
    payloads: Payloads, connection: Connection
) -> None:
    """It dies between saying that an object is gone and removing its chunks."""
    await payloads.pack(RUN, message())
    [found] = (await find(payloads, connection)).objects
    gone = json.dumps({"name": found.meta.name, "nuid": found.meta.nuid, "deleted": True}).encode()
    headers = {"Nats-Rollup": "sub"}
    about = payloads.objects._about(found.meta.name)
    await connection.request(about, gone, headers=headers, timeout_s=2)
    rest = await find(payloads, connection)
    assert (len(rest.remains), rest.uploads) == (1, [found.meta.nuid])
    await garbage.remove(payloads.objects, rest)
    assert await find(payloads, connection) == Garbage(objects=[], remains=[], uploads=[])
    assert await names(payloads) == set()


async def test_what_is_left_of_a_removed_object_goes_and_the_object_put_again_stays(
    payloads: Payloads, connection: Connection
) -> None:
    await payloads.pack(RUN, message(seed=1))
    [found] = (await find(payloads, connection)).objects
    gone = json.dumps({"name": found.meta.name, "nuid": found.meta.nuid, "deleted": True}).encode()
    about = payloads.objects._about(found.meta.name)
    await connection.request(about, gone, headers={"Nats-Rollup": "sub"}, timeout_s=2)
    rest = await find(payloads, connection)
    again = message(seed=1)
    body = await payloads.pack(RUN, again)
    await garbage.remove(payloads.objects, rest)
    assert await payloads.unpack(body) == encode(again)


async def test_objects_of_somebody_else_are_left_alone(
    payloads: Payloads, connection: Connection, server: Server
) -> None:
    await append(connection, RUN, await payloads.pack(RUN, message()))
    client = await nats.connect(server.url)
    store = await client.jetstream().object_store("BUS_PAYLOADS")
    await store.put("theirs", b"x")
    await client.close()
    await append(connection, "$O.BUS_PAYLOADS.M.junk", b"no description")
    found = await find(payloads, connection)
    assert (list(found.objects), found.kept) == ([], 2)


async def test_a_namespace_without_large_payloads_has_no_garbage(payloads: Payloads, connection: Connection) -> None:
    assert await find(payloads, connection) == Garbage()


async def phasebus(server: Server, folder: Path, *words: str) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
    environment |= {"NATS_URL": server.url, "PHASEBUS_APPEND_TIMEOUT_S": "0.5"}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("phasebus"),
        "payload",
        *words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def test_an_operator_lists_payloads_and_collects_garbage(
    payloads: Payloads, connection: Connection, server: Server, tmp_path: Path
) -> None:
    code, out, errors = await phasebus(server, tmp_path, "ls")
    assert (code, out, errors) == (0, "", "no payload was too large for a message so far\n")
    used, unused = [await payloads.pack(RUN, message()) for _ in range(2)]
    await append(connection, RUN, used)
    code, out, errors = await phasebus(server, tmp_path, "ls")
    assert code == 0
    assert name_in(used) in out
    assert RUN in out
    assert "nats object get BUS_PAYLOADS" in errors
    code, out, errors = await phasebus(server, tmp_path, "gc")
    assert (code, out) == (0, "")
    assert "removed: 0 objects" in errors
    code, _, errors = await phasebus(server, tmp_path, "gc", "--older-than", "0s")
    assert code == 2
    assert "--older-than 1s" in errors
    await asyncio.sleep(1.1)  # the least age there is
    code, out, errors = await phasebus(server, tmp_path, "gc", "--older-than", "1s", "--dry-run", "--json")
    assert [(each["object"], each["removed"]) for each in map(json.loads, out.splitlines())] == [
        (name_in(unused), False)
    ]
    code, out, errors = await phasebus(server, tmp_path, "gc", "--older-than", "1s")
    assert name_in(unused) in out
    assert "kept: 1 objects" in errors
    code, out, _ = await phasebus(server, tmp_path, "ls", "--json")
    assert [json.loads(line)["object"] for line in out.splitlines()] == [name_in(used)]
    said = await Log(connection, SUBJECTS, SETTINGS).last("bus.ops.payload")
    assert said is not None
    assert json.loads(said.body)["data"]["objects"] == 1
