"""Streaming: parts come while the work is done, in order, from any position, and again with a new attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus import Agent, Client, Context, NoLiveAgent, Reject, WorkFailed, connect
from bus.archives.outgoing import select
from bus.archives.retention import Policy
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import SettingsError
from tests.harness import BOUND_S, serving, supervised


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def writer() -> Agent:
    agent = Agent("writer")

    @agent.capability("write", concurrency=4)
    async def write(text: str, context: Context) -> int:
        words = text.split()
        for number, word in enumerate(words):
            await context.emit(word)
            if word == "pause":
                await asyncio.sleep(0.05)
            if word == "fail" and context.attempt == 1:
                raise ConnectionResetError("the line is down")
            if word == "never":
                raise Reject(f"not after {number}")
        return len(words)

    @agent.capability("dictate")
    def dictate(text: str, context: Context) -> int:
        for word in text.split():
            context.emit(word)
        return len(text.split())

    return agent


@pytest.mark.parametrize("capability", ["write", "dictate"])
async def test_parts_come_in_order_and_then_the_answer(server: Server, client: Client, capability: str) -> None:
    text = "one two pause three pause four"
    async with serving(server, writer()):
        stream = client.stream(capability, text, str, timeout_s=BOUND_S)
        parts = [part async for part in stream]
        assert [part.value for part in parts] == text.split()
        assert [part.index for part in parts] == list(range(6))
        assert {part.attempt for part in parts} == {1}
        assert await stream.answer(int) == 6


async def test_the_parts_of_a_run_are_read_again_from_a_position(server: Server, client: Client) -> None:
    text = "one pause two pause three"
    async with serving(server, writer()):
        stream = client.stream("write", text, str, timeout_s=BOUND_S)
        first = await anext(stream)
        await stream.aclose()
        rest = [part async for part in client.parts(stream.run, str, after=first.cursor, timeout_s=BOUND_S)]
        assert [part.value for part in rest] == text.split()[1:]
        again = [part.value async for part in client.parts(stream.run, str, timeout_s=BOUND_S)]
        assert again == text.split()


async def test_going_on_in_the_middle_of_a_record_repeats_no_part_and_leaves_none_out(
    server: Server, client: Client
) -> None:
    text = " ".join(f"word-{number}" for number in range(40)) + " pause " + "last " * 3
    words = text.split()
    async with serving(server, writer()):
        stream = client.stream("write", text, str, timeout_s=BOUND_S)
        parts = [part async for part in stream]
        assert len({part.position for part in parts}) < len(parts)
        for place, part in enumerate(parts):
            rest = [each.value async for each in client.parts(stream.run, str, after=part.cursor, timeout_s=BOUND_S)]
            assert rest == words[place + 1 :]
        behind = parts[0].position
        rest = [each.value async for each in client.parts(stream.run, str, after=behind, timeout_s=BOUND_S)]
        assert rest == [part.value for part in parts if part.position > behind]
    for wrong in ("", "7", "+", "a+b", "-1+2", "7+1.5"):
        with pytest.raises(SettingsError, match="cursor"):
            client.parts(stream.run, str, after=wrong)


async def test_a_new_attempt_begins_again_and_says_so(server: Server, client: Client) -> None:
    async with supervised(server), serving(server, writer()):
        stream = client.stream("write", "one fail two", str, timeout_s=BOUND_S)
        told = [(part.attempt, part.index, part.value) async for part in stream]
        assert told == [(1, 0, "one"), (1, 1, "fail"), (2, 0, "one"), (2, 1, "fail"), (2, 2, "two")]
        assert await stream.answer(int) == 3


async def test_a_stream_of_work_that_is_given_up_ends_and_says_why(server: Server, client: Client) -> None:
    async with serving(server, writer()):
        stream = client.stream("write", "one never", str, timeout_s=BOUND_S)
        assert [part.value async for part in stream] == ["one", "never"]
        with pytest.raises(WorkFailed, match="not after 1"):
            await stream.answer(int)


async def test_what_is_asked_quickly_emits_as_well(server: Server, client: Client) -> None:
    async with serving(server, writer()):
        assert await client.ask("write", "one two", int) == 2
        assert await client.ask("write", "one two", int, fast=True) == 2
        (run,) = await client.ledger.names()
        assert [part.value async for part in client.parts(run, str, timeout_s=BOUND_S)] == ["one", "two"]


async def test_many_small_parts_are_few_records(server: Server, client: Client) -> None:
    text = " ".join(["word"] * 1_000)
    async with serving(server, writer()):
        stream = client.stream("write", text, str, timeout_s=BOUND_S)
        assert sum([1 async for _ in stream]) == 1_000
        records = [record async for record in client.log.read(client.subjects.parts(stream.run))]
        assert len(records) < 100


async def test_a_stream_from_nobody_is_told_at_once(client: Client) -> None:
    with pytest.raises(NoLiveAgent):
        await anext(client.stream("write", "one"))


async def test_partial_results_leave_the_log_with_their_run_and_not_before(server: Server, client: Client) -> None:
    agent = writer()
    release = asyncio.Event()

    @agent.capability("hold")
    async def hold(_: int, context: Context) -> None:
        await context.emit("one")
        await release.wait()

    async with serving(server, agent):
        streams = [client.stream("write", "one two", str), client.stream("hold", 1, str)]
        for stream in streams:
            await anext(stream)
        await client.result(streams[0].run, timeout_s=BOUND_S)
        chosen = await select(client.log, Policy.of(["run=0s"]), utc_now())
        done, held = (client.subjects.part(stream.run, "work", None) for stream in streams)
        assert client.subjects.run(streams[0].run) in chosen.upto
        assert done in chosen.upto and held not in chosen.upto
        release.set()
