"""What a review broke, and must not break again: hostile bytes, lost answers, limits, and a supervisor that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import pytest

from agents.supervisor import Supervisor
from bus import Agent, Client, Context, Phase, Plan, Reject, connect, ref, serving
from bus.broker.connection import Message
from bus.broker.server import Server
from bus.errors import Unavailable
from bus.format.envelope import encode, envelope
from bus.log.layout import work_config
from bus.log.streams import ensure_stream, info
from bus.problem import Problem
from bus.rules.commands import Fail, Take
from bus.rules.dead import DeadLetter, Unreadable
from tests.harness import BOUND_S, supervised, until


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def forged(run: str, *events: dict[str, object]) -> bytes:
    now = datetime.now(UTC)
    return encode(envelope("run.commit.v1", {"events": events}, id=uuid4().hex, source="/forger", time=now, runid=run))


FAR = "9999-12-31T23:59:59Z"
PLAN = {"name": "p", "phases": [{"key": "a", "capability": "x"}]}
STARTED = {"type": "run.started.v1", "plan": PLAN, "input": {}, "deadline_at": FAR}
HOSTILE = {
    "no events": forged("h"),
    "an end without a beginning": forged("h", {"type": "phase.completed.v1", "phase": "a", "attempt": 1}),
    "a time at the end of time": forged(
        "h",
        STARTED,
        {"type": "phase.ready.v1", "phase": "a", "attempt": 1},
        {"type": "phase.started.v1", "phase": "a", "attempt": 1, "agent": "a", "instance": "i", "deadline_at": FAR},
    ),
    "a time without a zone": forged("h", {**STARTED, "deadline_at": "2020-01-01T00:00:00"}),
    "a gate that is none": forged(
        "h", STARTED, {"type": "phase.waiting.v1", "phase": "a", "expires_at": "2020-01-01T00:00:00Z"}
    ),
    "a run that never started": forged("h", {"type": "phase.ready.v1", "phase": "a", "attempt": 1}),
    "another run's name": forged("a b", STARTED),
    "no JSON": b"\xff\x00",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
async def test_no_bytes_on_a_runs_subject_stop_the_supervisor(server: Server, client: Client, body: bytes) -> None:
    async with supervised(server) as supervisor:
        await client.connection.request(client.subjects.run("h"), body, timeout_s=5)
        plan = Plan("late", phases=[Phase("a", "nobody", queue_timeout_s=0.2)])
        state = await client.result((await client.start(plan)).run, timeout_s=BOUND_S)
        assert state.phases["a"].problem is not None
        assert state.phases["a"].problem.code == "unclaimed"
        assert supervisor.leads.is_set()
    async with supervised(server) as another:
        assert another.leads.is_set()


async def test_nobody_but_the_server_can_publish_live_copies(server: Server, client: Client) -> None:
    heard: list[Message] = []
    client.connection.subscribe("live.bus.run.>", heard.append)
    client.connection.publish(
        "live.bus.run.x", b"{}", headers={"Nats-Sequence": "1000000", "Nats-Subject": "bus.run.x"}
    )
    receipt = await client.send("x", {})
    await until(lambda: heard)
    assert [message.subject for message in heard] == [f"live.bus.run.{receipt.run}"]


async def test_a_lost_answer_to_a_batch_with_a_dead_letter_leaves_the_run_whole(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan("four", phases=[Phase(key, "x") for key in "abcd"])
    run = (await client.start(plan)).run
    for key in "abc":
        await client.runs.submit(run, Take(key, None, 1, "x", "agent", "one", 60))
    request, lost = client.connection.request_batch, []

    async def losing(*arguments: object, **named: object) -> Message:
        answer: Message = await request(*arguments, **named)  # type: ignore[arg-type]
        if not lost:
            lost.append(True)
            raise Unavailable("the answer was lost")
        return answer

    monkeypatch.setattr(client.connection, "request_batch", losing)
    for key in "abc":
        problem = Problem("rejected", "no", "permanent")
        decided = await client.runs.submit(run, Fail(key, None, 1, "one", problem))
        assert decided.state.open_phases == {"a": 3, "b": 2, "c": 1}[key]
    assert lost
    async with connect(client.settings.url.get_secret_value()) as fresh:  # type: ignore[union-attr]
        state = await fresh.runs.load(run)
    assert (state.status, state.open_phases, state.phases["d"].status) == ("in_progress", 1, "ready")
    assert len([letter async for letter in client.dead_letters()]) == 3


async def test_an_input_a_handler_changes_is_its_own_copy(client: Client) -> None:
    agent = Agent("changing")

    @agent.capability("change")
    async def change(query: dict[str, int]) -> int:
        query["n"] = query.get("n", 0) + 1
        return query["n"]

    keys = "abcd"
    plan = Plan(
        "chain",
        phases=[
            Phase(key, "change", input=ref("input"), after=[keys[index - 1]] if index else [])
            for index, key in enumerate(keys)
        ],
    )
    async with serving(client, agent):
        state = await client.result((await client.start(plan, {"n": 0})).run, timeout_s=BOUND_S)
    assert [client.output(state, key) for key in keys] == [1, 1, 1, 1]


async def test_inputs_that_are_large_together_reach_their_handler(client: Client) -> None:
    agent = Agent("large")

    @agent.capability("make")
    async def make(_: object) -> str:
        return "x" * 600_000

    @agent.capability("measure")
    async def measure(query: dict[str, str]) -> int:
        return sum(map(len, query.values()))

    plan = Plan(
        "large",
        phases=[
            Phase("one", "make"),
            Phase("two", "make"),
            Phase("both", "measure", input={"one": ref("one"), "two": ref("two")}),
        ],
    )
    async with serving(client, agent):
        state = await client.result((await client.start(plan)).run, timeout_s=BOUND_S)
    assert client.output(state, "both") == 1_200_000


async def test_a_dead_letter_that_would_be_too_large_is_shortened_and_the_work_ends(server: Server) -> None:
    async with connect(server.url, payload_limit_bytes=1_047_000) as client:
        await a_letter_is_shortened(client)


async def a_letter_is_shortened(client: Client) -> None:
    agent = Agent("refusing")

    @agent.capability("refuse")
    async def refuse(_: object) -> None:
        raise Reject("y" * 900)

    async with serving(client, agent):
        receipt = await client.send("refuse", "x" * 1_046_000)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    assert state.status == "failed"
    [letter] = [each.letter async for each in client.dead_letters()]
    assert isinstance(letter, DeadLetter)
    assert letter.shortened


async def test_a_list_of_many_thousands_is_gone_through(client: Client) -> None:
    agent = Agent("many")

    @agent.capability("list")
    async def listed(_: object) -> list[int]:
        return list(range(3_000))

    @agent.capability("each", concurrency=100)
    async def each(number: int) -> int:
        return number

    plan = Plan("many", phases=[Phase("list", "list"), Phase("each", "each", each=ref("list"))])
    async with serving(client, agent):
        state = await client.result((await client.start(plan)).run, timeout_s=60)
    assert client.output(state, "each") == list(range(3_000))


async def test_work_that_can_not_be_read_or_is_too_large_is_buried_once(server: Server, client: Client) -> None:
    agent = Agent("x")

    @agent.capability("x")
    async def handle(_: object) -> int:
        return 1

    async with serving(client, agent):
        await client.connection.request("bus.work.x.run.a.1", b"\xfe" * 900_000, timeout_s=5)
        await client.connection.request("bus.work.x.r u n.a.1".replace(" ", "$"), b"{}", timeout_s=5)
        await until(lambda: _letters(client, 2))
        assert await client.ask("x", {}, int, timeout_s=BOUND_S) == 1
    letters = [each.letter async for each in client.dead_letters()]
    assert all(isinstance(letter, Unreadable) for letter in letters)
    assert {letter.size_bytes for letter in letters if isinstance(letter, Unreadable)} == {900_000, 2}


async def test_work_that_is_in_no_queue_is_a_dead_letter_once_a_supervisor_looks(
    server: Server, client: Client
) -> None:
    astray = ["x.urgent.0.0.run.a.1", "x.normal.0.9.run.a.1", "x.normal.0.00.run.a.1", "$.normal.0.9.run.a.1"]
    async with supervised(server), serving(client, Agent("x")):
        await ensure_stream(
            client.connection, work_config(client.subjects, client.settings.replicas), client.settings.request_timeout_s
        )
        for each in astray:
            await client.connection.request(f"bus.work.{each}", b"\xfe", timeout_s=5)
        await until(lambda: _letters(client, len(astray)))
        await until(lambda: _is_empty(client))
    letters = [each.letter async for each in client.dead_letters()]
    assert {letter.subject for letter in letters if isinstance(letter, Unreadable)} == {
        f"bus.work.{each}" for each in astray
    }


async def test_the_log_outranks_what_a_forged_work_message_says(client: Client) -> None:
    agent, seen = Agent("cheap"), list[object]()

    @agent.capability("x")
    async def handle(query: object) -> int:
        seen.append(query)
        return 1

    run = (await client.start(Plan("pays", phases=[Phase("a", "pay", input={"amount": 1})]))).run
    async with serving(client, agent):
        message = envelope("phase.work.v1", {"input": 999}, id="1", source="/forger", time=datetime.now(UTC), runid=run)
        await client.connection.request(f"bus.work.x.{run}.a.1", encode(message), timeout_s=5)
        assert await client.ask("x", {"amount": 2}, int, timeout_s=BOUND_S) == 1
    assert (seen, (await client.runs.load(run)).phases["a"].status) == ([{"amount": 2}], "ready")


async def test_a_timer_whose_command_failed_is_due_again(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, failed = Supervisor._submit, []

    async def failing(self: Supervisor, run: str, command: object) -> None:
        if not failed:
            failed.append(command)
            raise Unavailable("not now")
        await submit(self, run, command)  # type: ignore[arg-type]

    monkeypatch.setattr(Supervisor, "_submit", failing)
    async with supervised(server):
        plan = Plan("late", phases=[Phase("a", "nobody", queue_timeout_s=0.2)])
        state = await client.result((await client.start(plan)).run, timeout_s=BOUND_S)
    assert failed
    assert state.status == "failed"


async def test_work_nobody_did_before_the_runs_deadline_is_a_dead_letter(server: Server, client: Client) -> None:
    async with supervised(server):
        receipt = await client.send("nobody", {"a": 1}, timeout_s=0.3)
        assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "failed"
    [letter] = [each.letter async for each in client.dead_letters()]
    assert isinstance(letter, DeadLetter)
    assert (letter.problem.code, msgspec.json.decode(letter.payload)) == ("expired", {"a": 1})


async def test_a_closed_client_says_so_instead_of_waiting(server: Server) -> None:
    async with connect(server.url) as client:
        pass
    for _ in range(2):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(client.send("x", {}), BOUND_S)


async def test_a_supervisor_without_the_system_account_goes_by_beats(server: Server, client: Client) -> None:
    stop = asyncio.Event()
    wrong = server.system_url.replace("system:", "system:not-")
    async with connect(server.url) as own:
        own.system_url = wrong
        supervisor = Supervisor(own, "wrong")
        running = asyncio.create_task(supervisor.run(stop))
        await asyncio.wait_for(supervisor.leads.wait(), BOUND_S)
        stop.set()
        await running


async def test_what_a_handler_says_of_its_progress_can_not_fail_it(client: Client) -> None:
    agent = Agent("talker")

    @agent.capability("talk")
    async def talk(_: object, context: Context) -> int:
        await context.progress(float("nan"), "\ud800")
        return 1

    async with serving(client, agent):
        assert await client.ask("talk", {}, int, timeout_s=BOUND_S) == 1


async def _letters(client: Client, count: int) -> bool:
    return len([each async for each in client.dead_letters()]) == count


async def _is_empty(client: Client) -> bool:
    return not (await info(client.connection, client.subjects.work_stream, BOUND_S)).messages
