"""The login that may only read, with the `nats.conf` that ships: it sees everything, and harms nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus import Client, Forbidden, connect
from bus.broker.connection import Connection, Message
from bus.broker.server import _binary
from bus.errors import NotFound
from bus.log.record import Live
from bus.log.streams import info
from tests.harness import BOUND_S, ROOT, serving, until
from tests.integration.test_runner import PLAN, echo
from tests.shipped import ENVIRONMENT, PASSWORDS, Shipped, started


@pytest.fixture
async def shipped(tmp_path: Path) -> AsyncIterator[Shipped]:
    async with started(tmp_path) as running:
        yield running


@asynccontextmanager
async def both(shipped: Shipped) -> AsyncIterator[tuple[Client, Client]]:
    """One who may write, and one who may only read; and one run in the log."""
    async with connect(shipped.url) as client, connect(shipped.auditor_url, request_timeout_s=2) as auditor:
        await client.start(PLAN, run="one")
        # Its work is sent behind the commit.
        await until(lambda: _has_work(client))
        yield client, auditor


async def _has_work(client: Client) -> bool:
    return (await info(client.connection, "BUS_WORK", 5)).messages > 0


async def state(client: Client) -> dict[str, Any]:
    """Every stream with all there is in it, by a login that may see it."""
    answer = await client.connection.request("$JS.API.STREAM.LIST", timeout_s=5)
    return {
        each["config"]["name"]: (each["config"], each["state"] | {"consumer_count": 0})
        for each in json.loads(answer.data)["streams"]
    }


async def test_what_only_reads_works(shipped: Shipped) -> None:
    async with both(shipped) as (client, auditor), serving(shipped, echo()):
        await client.result("one", timeout_s=BOUND_S)
        everything = [(each.position, each.index) async for each in client.events()]
        assert [(each.position, each.index) async for each in auditor.events()] == everything
        assert [each.type async for each in auditor.watch("one")][-1] == "run.completed.v1"
        assert await auditor.runs.load("one") == await client.runs.load("one")
        assert [each.instance for each in await auditor.agents()] == [each.instance for each in await client.agents()]
        assert [each async for each in auditor.dead_letters()] == []


async def test_it_follows_what_happens_also_when_that_is_large(shipped: Shipped) -> None:
    large = {"text": "".join(chr(32 + number % 90) + str(number) for number in range(400_000))}
    async with both(shipped) as (client, auditor):
        async with aclosing(auditor.events(subjects=["bus.topic.>"], follow=True)) as found, asyncio.timeout(BOUND_S):
            coming = asyncio.create_task(anext(found))
            await client.publish("large", large)
            message = (await coming).message
        assert message is not None and json.loads(bytes(message.data)) == large


COMMANDS = [
    "run ls",
    "run show one",
    "run verify",
    "run why one a",
    "run diff one one",
    "run forecasts",
    "events cat",
    "events export",
    "attention",
    "agent ls",
    "dead ls",
    "dead group",
    "lock ls",
    "breaker ls",
    "limit ls",
    "cache ls",
    "payload ls",
    "schedule ls",
    "decision ls",
    "causes one",
    "replay one",
    "projection rebuild --shelf sqlite:///rows.db",
    "projection ls --shelf sqlite:///rows.db",
]
WRITING = [
    "run cancel one",
    "run pause one",
    "run start plan.toml",
    "send echo {}",
    "ask echo {}",
    "publish news {}",
    "agent quarantine echo",
    "schedule add nightly plan.toml --every 1h",
    "decision propose really --option yes --option no --voter ann",
]


def phasebus(shipped: Shipped, folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bus", *words.split()],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={"NATS_URL": shipped.auditor_url, "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        timeout=60,
    )


async def test_commands_that_read_work_and_the_others_say_that_the_login_may_not(
    shipped: Shipped, tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text('name = "p"\nversion = "1"\n[[phases]]\nkey = "a"\ncapability = "echo"\n')
    async with both(shipped) as (client, _):
        before = await state(client)
        for words in COMMANDS:
            done = await asyncio.to_thread(phasebus, shipped, tmp_path, words)
            assert done.returncode == 0, (words, done.stderr)
            assert "refused" not in done.stderr, (words, done.stderr)
        for words in WRITING:
            done = await asyncio.to_thread(phasebus, shipped, tmp_path, words)
            assert done.returncode == 6, (words, done.stdout, done.stderr)
            assert "may only read" in done.stderr, (words, done.stderr)
        assert await state(client) == before


async def test_every_verb_that_writes_is_refused_at_once(shipped: Shipped) -> None:
    async with both(shipped) as (client, auditor):
        before = await state(client)
        verbs: list[Any] = [
            auditor.start(PLAN, run="two"),
            auditor.send("echo", {}),
            auditor.publish("news", {}),
            auditor.cancel("one", by="me"),
            auditor.quarantine_agents("echo", by="me"),
            auditor.schedule("nightly", PLAN, every_s=60),
            auditor.propose("really?", options=["yes", "no"], voters={"ann": 1}),
        ]
        for verb in verbs:
            with pytest.raises(Forbidden, match="may only read"):
                await verb
        assert await state(client) == before


API = [
    *(f"STREAM.{verb}.{{}}" for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "MSG.GET")),
    *(f"STREAM.{verb}.{{}}" for verb in ("SNAPSHOT", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE")),
    *(f"CONSUMER.{verb}.{{}}" for verb in ("CREATE", "LIST", "NAMES")),
    *(f"CONSUMER.{verb}.{{}}.c" for verb in ("CREATE", "DURABLE.CREATE", "DELETE", "PAUSE", "RESET", "UNPIN", "INFO")),
    *(f"CONSUMER.{verb}.{{}}.c" for verb in ("MSG.NEXT", "LEADER.STEPDOWN")),
    "STREAM.LIST",
    "INFO",
    "META.LEADER.STEPDOWN",
    "SERVER.REMOVE",
    "ACCOUNT.PURGE.BUS",
    "DIRECT.GET.BUS_WORK",
    "DIRECT.GET.BUS.bus.run.one",
]
STREAMS = ["BUS", "BUS_WORK", "BUS_TIMERS", "BUS_CACHE", "KV_BUS_LEASES", "KV_BUS_LIMITS", "OBJ_BUS_PAYLOADS"]
SUBJECTS = [
    *("bus.run.one", "bus.work.echo.one.a.1", "bus.topic.news", "bus.ops.schedule", "bus.dead.echo", "bus.mail.a"),
    *("bus.agent.echo.echo-1", "bus.lease.lock.deploy", "bus.beat.echo-1", "bus.halt.echo-1", "bus.ping.echo-1"),
    *(
        "bus.hand.echo",
        "bus.who.echo",
        "bus.tally.echo",
        "bus.changed.runs",
        "bus.rows.runs.0f9e8d7c",
        "bus.decision.d",
    ),
    *(
        "live.bus.run.one",
        "live.bus.run.two",
        "$KV.BUS_LEASES.lock.deploy",
        "$O.BUS_PAYLOADS.M.x",
        "$JS.ACK.BUS_WORK.c.1",
    ),
    *("$JS.FC.x", "$SYS.REQ.SERVER.PING.VARZ", "$SYS.REQ.ACCOUNT.BUS.INFO", "$SYS.REQ.CLAIMS.UPDATE", "$SRV.PING"),
    *("_INBOX.somebody", "audit.STREAM.PURGE.BUS", "anything"),
]


async def test_every_subject_of_the_api_that_changes_something_and_every_one_of_the_bus_is_refused(
    shipped: Shipped,
) -> None:
    async with both(shipped) as (client, auditor):
        before = await state(client)
        api = [f"$JS.API.{each.format(stream)}" for each in API for stream in (STREAMS if "{}" in each else [""])]
        for subject in (*api, *SUBJECTS):
            with pytest.raises(Forbidden) as refused:
                await auditor.connection.request(subject, b'{"seq":1,"name":"BUS"}', timeout_s=5)
            assert refused.value.subject == subject
        assert await state(client) == before


async def test_what_the_server_answers_it_can_not_be_sent_to_anywhere_in_the_bus(shipped: Shipped) -> None:
    heard: list[Message] = []
    async with both(shipped) as (client, auditor):
        await client.publish("news", 1)
        before = await state(client)
        for subject in ("live.>", "bus.>", "$KV.>", "$JS.ACK.>", "_INBOX.>"):
            client.connection.subscribe(subject, heard.append)
        await client.connection.flush(5)
        questions = {
            "$JS.API.DIRECT.GET.BUS": b'{"seq":1,"next_by_subj":"bus.>","batch":10}',
            "$JS.API.STREAM.INFO.BUS": b"",
            "$JS.API.STREAM.NAMES": b"",
            "bus.ping": b"",
        }
        replies = (
            "bus.run.one",
            "bus.topic.news",
            "live.bus.run.one",
            "$KV.BUS_LEASES.x",
            "$JS.API.STREAM.PURGE.BUS_WORK",
        )
        for question, body in questions.items():
            for reply in (*replies, "$JS.API.STREAM.DELETE.BUS", "$JS.ACK.BUS_WORK.echo.1.1.1.1.1", "_R_.x.y"):
                auditor.connection.publish(question, body, reply=reply)
        await auditor.connection.flush(5)
        # Whatever the server did with it, it has done it before it answers this.
        await auditor.connection.request("$JS.API.STREAM.INFO.BUS", timeout_s=5)
        await client.connection.flush(5)
        assert not [each.subject for each in heard if each.subject != "bus.ping" and each.data]
        assert await state(client) == before


@pytest.mark.parametrize("batch", ["", ',"batch":1'], ids=["single", "batch"])
async def test_an_answer_that_an_auditor_has_sent_to_another_s_live_copies_is_not_taken_for_one(
    shipped: Shipped, batch: str
) -> None:
    async with both(shipped) as (client, auditor), connect(shipped.auditor_url) as liar:
        positions = [(await client.publish("news", number)).position for number in range(3)]
        # Of exactly one subject each copy names the one before it; this one would make it pass over the first two.
        live = Live(auditor.connection, ["live.bus.topic.news"])
        await auditor.connection.flush(5)
        request = f'{{"seq":{positions[-1]},"next_by_subj":"bus.topic.news"{batch}}}'.encode()
        liar.connection.publish("$JS.API.DIRECT.GET.BUS", request, reply="live.bus.topic.news")
        async with asyncio.timeout(BOUND_S):
            assert [each.position async for each in live.records(0, idle_s=BOUND_S * 2)] == []
        live.close()


async def test_it_hears_nothing_but_what_is_for_everybody(shipped: Shipped) -> None:
    heard: list[Message] = []
    async with both(shipped) as (client, auditor):
        for subject in (">", "bus.>", "bus.work.>", "bus.hand.*", "_R_.>", "$SYS.>", "$JS.>", "$KV.>", "_INBOX.>"):
            auditor.connection.subscribe(subject, heard.append)
        await auditor.connection.flush(5)
        async with serving(shipped, echo()):
            assert await client.ask("echo", {"secret": 1}, dict, timeout_s=BOUND_S, fast=True) == {"secret": 1}
        await auditor.connection.flush(5)
        assert not [each for each in heard if not each.subject.startswith(auditor.connection._inbox)]


async def test_only_the_auditor_comes_in_by_websocket(shipped: Shipped) -> None:
    for user in ("bus", "operator", "system", "auditor"):
        said = await asyncio.to_thread(_signed_in_by_websocket, shipped.websocket, user)
        assert ("PONG" in said) == (user == "auditor"), said
        assert ("Authorization Violation" in said) == (user != "auditor"), said


def _signed_in_by_websocket(port: int, user: str) -> str:
    """What the server says to who signs in and pings: the protocol in WebSocket frames (RFC 6455), by hand."""
    name = {"bus": "PASSWORD"}.get(user, f"{user.upper()}_PASSWORD")
    login = json.dumps({"user": user, "pass": PASSWORDS[name], "verbose": False})
    line = f"CONNECT {login}\r\nPING\r\n".encode()
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    with socket.create_connection(("127.0.0.1", port), timeout=10) as there:
        there.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        said = b""
        while b"\r\n\r\n" not in said:
            said += there.recv(65_536)
        # A final binary frame, masked with zeros, which leaves the bytes as they are.
        there.sendall(bytes([0x82, 0x80 | 126]) + len(line).to_bytes(2, "big") + bytes(4) + line)
        while not re.search(rb"PONG|Violation", said) and (chunk := there.recv(65_536)):
            said += chunk
    return said.decode(errors="replace")


async def test_a_bus_that_is_not_there_is_not_found_and_not_made(shipped: Shipped) -> None:
    with pytest.raises(NotFound, match="no bus with namespace 'bus'"):
        async with connect(shipped.auditor_url):
            pass
    async with connect(shipped.url) as client:
        assert client.connection.is_connected


async def test_only_the_operator_takes_something_out(shipped: Shipped) -> None:
    async with both(shipped):
        for user in ("bus", "auditor"):
            async with Connection.open(shipped.url_of(user), name="test") as connection:
                with pytest.raises(Forbidden):
                    await connection.request("$JS.API.STREAM.PURGE.BUS", timeout_s=5)
        async with Connection.open(shipped.url_of("operator"), name="test") as operator:
            assert json.loads((await operator.request("$JS.API.STREAM.PURGE.BUS", timeout_s=5)).data)["success"]


def test_the_file_in_the_container_is_the_one_that_ships_with_an_open_websocket(tmp_path: Path) -> None:
    [content] = re.findall(r"content: \|\n((?:      .*\n)+)", (ROOT / "docker-compose.yml").read_text())
    (tmp_path / "container.conf").write_text(re.sub("^ +", "", content, flags=re.MULTILINE))
    (tmp_path / "nats.conf").write_text((ROOT / "nats.conf").read_text())
    checked = subprocess.run(
        [_binary(), "-t", "-c", "container.conf"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert all(f"${{{name}:?" in (ROOT / "docker-compose.yml").read_text() for name in ENVIRONMENT)
