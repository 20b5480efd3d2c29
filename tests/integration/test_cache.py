"""The cache on a real server: what was computed before is not computed again, and why something was is said."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from bus import Agent, Cache, Client, Phase, Plan, Reject, connect, ref
from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.cache.cache import CACHED, Entry, components, key
from bus.cache.entries import Entries
from bus.clock import utc_now
from bus.format.envelope import encode, envelope
from bus.log.layout import cache_config
from bus.log.streams import ensure_stream
from bus.rules.commands import Rollback
from bus.rules.events import Source
from bus.rules.run import Attempt, RunState
from bus.rules.verify import violations
from bus.worker.recall import fixed
from tests.harness import BOUND_S, serving, until
from tests.integration import isolated

PLAN = Plan("p", phases=[Phase("a", "do", {"path": ref("input.path"), "config": ref("input.config")})])
PHASEBUS = Path(sys.executable).with_name("phasebus")
GIVEN = {"path": "src", "config": {"depth": 1, "all": True}}


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


class Counter:
    """An agent that writes down what it was asked for, and fails where it is told."""

    def __init__(self, version: str = "1", cache: Cache | bool = True) -> None:
        self.done: list[Any] = []
        self.agent = Agent("counter", version=version)
        self.gate = asyncio.Event()
        self.gate.set()

        @self.agent.capability("do", cache=cache, concurrency=8)
        async def do(query: Any) -> Any:
            self.done.append(query)
            await self.gate.wait()
            if isinstance(query, dict) and query.get("fails"):
                raise Reject("as it was told")
            return {"of": query}

        @self.agent.capability("undo")
        async def undo(query: Any) -> None:
            self.done.append("undone")


def entries_of(client: Client) -> Entries:
    return Entries(client.connection, client.log, client.settings, source="test")


async def kept(client: Client, count: int) -> None:
    """Wait until so many outputs can be found: that comes just after their commits."""

    async def there() -> bool:
        return len([entry async for entry in entries_of(client).all()]) >= count

    await until(there)


async def ran(client: Client, given: object = GIVEN, plan: Plan = PLAN, **how: Any) -> RunState:
    """A run to its end, which keeps what is promised of every run."""
    run = (await client.start(plan, given, **how)).run
    state = await client.result(run, timeout_s=BOUND_S)
    assert not list(violations([commit async for commit in client.ledger.commits(run)], utc_now()))
    return state


def attempt(state: RunState, phase: str = "a", item: int | None = None) -> Attempt:
    found = state.phases[phase].item(item)
    assert found is not None
    return found.attempts[-1]


async def typed(server: Server, *words: str) -> tuple[int | None, str]:
    """A command's exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(PHASEBUS, *words, "--url", server.url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(process.communicate(), BOUND_S)
    return process.returncode, said.decode()


@asynccontextmanager
async def computed(server: Server, client: Client, counter: Counter) -> AsyncIterator[RunState]:
    """One run is done, and what it has computed is kept."""
    async with serving(server, counter.agent):
        first = await ran(client)
        await kept(client, 1)
        yield first


async def test_what_was_computed_before_is_taken_over_and_says_from_where(server: Server, client: Client) -> None:
    counter = Counter()
    async with computed(server, client, counter) as first:
        again = await ran(client, {"config": {"all": True, "depth": 1}, "path": "src"})
    assert counter.done == [GIVEN]
    assert client.output(again, "a") == client.output(first, "a") == {"of": GIVEN}
    assert attempt(first).because == "it is the first time"
    ended_at = first.phases["a"].items[0].ended_at
    assert ended_at is not None
    assert attempt(again).cached == Source(first.run, "a", 1, ended_at)
    assert attempt(again).because == ""


async def test_another_plan_and_a_question_share_what_was_computed(server: Server, client: Client) -> None:
    counter = Counter()
    async with computed(server, client, counter):
        assert await client.ask("do", GIVEN) == {"of": GIVEN}
        other = await ran(client, GIVEN, Plan("other", phases=[Phase("b", "do", ref("input"))]))
    assert attempt(other, "b").cached is not None
    assert counter.done == [GIVEN]


async def test_questions_to_different_capabilities_are_not_compared(server: Server, client: Client) -> None:
    counter = Counter()

    @counter.agent.capability("other", cache=True)
    def other(query: Any) -> int:
        return len(query)

    async def asked(capability: str, value: object) -> str:
        task = Plan("task", phases=[Phase("work", capability, ref("input"))])
        return attempt(await ran(client, value, task), "work").because

    async with computed(server, client, counter):
        assert await asked("other", [1]) == "it is the first time"
        await kept(client, 2)
        assert await asked("do", [2]) == "it is the first time"
        await kept(client, 3)
        assert await asked("other", [3, 4]) == "input changed"


async def test_what_changed_in_the_input_is_named(server: Server, client: Client) -> None:
    async with computed(server, client, Counter()):
        changed = await ran(client, GIVEN | {"config": {"depth": 2}})
        await kept(client, 2)
        both = await ran(client, {"path": "lib", "config": {"depth": 3}})
    assert attempt(changed).because == "input.config changed"
    assert attempt(both).because == "input.config and input.path changed"


async def test_a_new_version_of_the_agent_computes_anew(server: Server, client: Client) -> None:
    async with computed(server, client, Counter()):
        pass
    newer = Counter(version="2")
    async with serving(server, newer.agent):
        state = await ran(client)
    assert attempt(state).because == "agent version changed"
    assert newer.done == [GIVEN]


async def test_changed_code_computes_anew(server: Server, client: Client) -> None:
    async with computed(server, client, Counter()):
        pass
    agent = Agent("counter")

    @agent.capability("do", cache=True)
    async def do(query: Any) -> Any:
        return ["another answer", query]

    # Only the code is another one.
    do.__qualname__ = "Counter.__init__.<locals>.do"
    async with serving(server, agent):
        state = await ran(client)
    assert attempt(state).because == "code changed"


async def test_a_version_of_the_cache_s_own_stands_for_version_and_code(server: Server, client: Client) -> None:
    async with computed(server, client, Counter(cache=Cache(version="7"))):
        pass
    same, other = Counter(version="2", cache=Cache(version="7")), Counter(cache=Cache(version="8"))
    async with serving(server, same.agent):
        assert attempt(await ran(client)).cached is not None
    async with serving(server, other.agent):
        assert attempt(await ran(client)).because == "version changed"


async def test_a_restarted_worker_finds_what_was_computed(server: Server, client: Client) -> None:
    async with computed(server, client, Counter()):
        pass
    later = Counter()
    async with serving(server, later.agent):
        assert attempt(await ran(client)).cached is not None
    assert later.done == []


async def test_a_forced_run_computes_anew_and_keeps_what_comes_of_it(server: Server, client: Client) -> None:
    counter = Counter()
    async with computed(server, client, counter) as first:
        forced = await ran(client, force=True)

        async def replaced() -> bool:
            return [entry.source.run async for entry in entries_of(client).all()] == [forced.run]

        await until(replaced)
        again = await ran(client)
    assert counter.done == [GIVEN, GIVEN]
    assert attempt(forced).because == "it was forced"
    assert (source := attempt(again).cached) is not None and source.run == forced.run != first.run


async def test_what_is_done_again_on_purpose_is_computed(server: Server, client: Client) -> None:
    counter = Counter()
    async with computed(server, client, counter) as first:
        await client.rerun(first.run, by="ann")
        state = await client.result(first.run, timeout_s=BOUND_S)
        assert attempt(state).because == "it was forced"
        undone = Plan("u", phases=[Phase("a", "do", ref("input"), compensate="undo")])
        run = (await ran(client, GIVEN, undone)).run
        await client.runs.submit(run, Rollback("ann", "a"))
        state = await client.result(run, timeout_s=BOUND_S)
        assert attempt(state).because == "it was forced"
    assert counter.done == [GIVEN, GIVEN, "undone", GIVEN]


async def test_a_child_of_a_forced_run_is_forced(server: Server, client: Client) -> None:
    counter = Counter()
    parent = Plan("parent", phases=[Phase("sub", input=ref("input"), plan=PLAN)])
    async with computed(server, client, counter):
        await ran(client, GIVEN, parent)
        assert counter.done == [GIVEN]
        await ran(client, GIVEN, parent, force=True)
        assert counter.done == [GIVEN, GIVEN]


async def test_a_phase_can_opt_out(server: Server, client: Client) -> None:
    counter = Counter()
    plan = Plan("p", phases=[Phase("a", "do", ref("input"), cache=False)])
    async with serving(server, counter.agent):
        first, again = await ran(client, GIVEN, plan), await ran(client, GIVEN, plan)
        assert attempt(first).because == attempt(again).because == "the plan says cache = false"
        assert [entry async for entry in entries_of(client).all()] == []
    assert counter.done == [GIVEN, GIVEN]


async def test_what_is_too_old_is_computed_anew(server: Server, client: Client) -> None:
    counter = Counter(cache=Cache(ttl_s=1))
    async with serving(server, counter.agent):
        await ran(client)

        async def expired() -> bool:
            return attempt(await ran(client)).because == "what was cached has expired"

        await until(expired)
    assert len(counter.done) >= 2


async def test_an_entry_that_outlived_its_time_is_not_believed(server: Server, client: Client) -> None:
    # One instance keeps for ever what another keeps for a second.
    async with computed(server, client, Counter()) as first:
        pass
    ended_at = first.phases["a"].items[0].ended_at
    assert ended_at is not None
    await until(lambda: (utc_now() - ended_at).total_seconds() > 1)
    async with serving(server, Counter(cache=Cache(ttl_s=1)).agent):
        assert attempt(await ran(client)).because == "what was cached has expired"


async def test_a_failure_is_never_cached(server: Server, client: Client) -> None:
    counter = Counter()
    async with serving(server, counter.agent):
        for _ in range(2):
            state = await ran(client, GIVEN | {"fails": True}, Plan("p", phases=[Phase("a", "do", ref("input"))]))
            assert (state.status, attempt(state).because) == ("failed", "it is the first time")
        assert [entry async for entry in entries_of(client).all()] == []
    assert len(counter.done) == 2


async def test_two_runs_at_once_both_compute_and_both_count(server: Server, client: Client) -> None:
    counter = Counter()
    counter.gate.clear()
    async with serving(server, counter.agent):
        runs = [(await client.start(PLAN, GIVEN)).run for _ in range(2)]
        await until(lambda: len(counter.done) == 2)
        counter.gate.set()
        states = [await client.result(run, timeout_s=BOUND_S) for run in runs]
        assert [state.status for state in states] == ["completed"] * 2
        await kept(client, 1)
        assert attempt(await ran(client)).cached is not None


async def test_each_item_is_cached_by_itself(server: Server, client: Client) -> None:
    counter = Counter()
    plan = Plan("p", phases=[Phase("a", "do", each=ref("input")), Phase("b", "do", ref("a"))])
    async with serving(server, counter.agent):
        await ran(client, [{"f": 1}, {"f": 2}, {"f": 3}], plan)
        await kept(client, 4)
        counter.done.clear()
        state = await ran(client, [{"f": 1}, {"f": 9}, {"f": 3}], plan)
    assert [attempt(state, "a", item).because for item in range(3)] == ["", "input.f changed", ""]
    assert attempt(state, "b").because == "input changed"
    assert counter.done == [{"f": 9}, [{"of": {"f": 1}}, {"of": {"f": 9}}, {"of": {"f": 3}}]]


async def test_large_outputs_are_found_where_they_are(server: Server, client: Client) -> None:
    agent = Agent("large")

    @agent.capability("large", cache=True)
    def large(query: int) -> list[str]:
        return [uuid4().hex for _ in range(query)]

    plan = Plan("p", phases=[Phase("a", "large", ref("input"))])
    async with serving(server, agent):
        first = await ran(client, 100_000, plan)
        await kept(client, 1)
        again = await ran(client, 100_000, plan)
    assert attempt(again).cached is not None
    assert client.output(again, "a") == client.output(first, "a")


async def test_handlers_in_processes_and_threads_are_cached_alike(server: Server, client: Client) -> None:
    async with serving(server, isolated.agent):
        first = await client.ask("pid_kept", 1)
        await kept(client, 1)
        assert await client.ask("pid_kept", 1) == first
        assert await client.ask("pid_kept", 2) != first


async def test_what_the_log_does_not_say_is_not_believed(server: Server, client: Client) -> None:
    counter = Counter()
    await ensure_stream(
        client.connection, cache_config(client.subjects, client.settings.replicas), client.settings.request_timeout_s
    )
    parts = components(fixed(counter.agent, counter.agent.capabilities["do"]), GIVEN)
    async with serving(server, counter.agent):
        other = await ran(client, {"path": "x", "config": 1})
        true = Entry(
            capability="do",
            key=key(parts),
            components=parts,
            source=Source(other.run, "a", 1, utc_now()),
            position=other.position,
        )
        forged = [
            encode(envelope(CACHED, entry, id=uuid4().hex, source="somebody", time=utc_now()))
            for entry in (
                true,
                msgspec.structs.replace(true, position=10**9),
                msgspec.structs.replace(true, source=Source("no such", "a", 1, utc_now())),
                msgspec.structs.replace(true, position=1),
            )
        ]
        for body in [*forged, b"\x00 no entry", b"{}"]:
            client.connection.publish(client.subjects.cached("do", key(parts)), body)
            await client.connection.flush(BOUND_S)
            state = await ran(client, GIVEN, force=False)
            assert attempt(state).cached is None
            assert client.output(state, "a") == {"of": GIVEN}
            assert (await entries_of(client).forget("do", by="test")) >= 1


REFUSED: set[int] = set()


class Checked(msgspec.Struct, frozen=True):
    """A type whose own check may change where its schema does not."""

    number: int

    def __post_init__(self) -> None:
        if self.number in REFUSED:
            raise ValueError("not any more")


async def test_an_output_that_does_not_fit_any_more_is_computed_anew(server: Server, client: Client) -> None:
    agent, numbers = Agent("checked"), iter([1, 2])

    @agent.capability("do", cache=True)
    async def do(query: Any) -> Checked:
        return Checked(next(numbers))

    async with serving(server, agent):
        await ran(client)
        await kept(client, 1)
        REFUSED.add(1)
        state = await ran(client)
    assert client.output(state, "a") == {"number": 2}
    assert attempt(state).because == "what was cached does not fit the capability any more"


async def test_without_the_cache_the_work_is_done(server: Server, client: Client) -> None:
    counter = Counter()
    async with computed(server, client, counter):
        async with Connection.open(server.operator_url, name="test") as operator:
            await operator.request(f"$JS.API.STREAM.DELETE.{client.subjects.cache_stream}", timeout_s=BOUND_S)
        state = await ran(client)
        assert attempt(state).because == "the cache did not answer"
        await kept(client, 1)
        assert attempt(await ran(client)).cached is not None
    assert len(counter.done) == 2


async def test_the_command_line_shows_what_is_cached_and_forgets_it(server: Server, client: Client) -> None:
    async def phasebus(*words: str) -> tuple[int | None, str]:
        return await typed(server, *words)

    counter = Counter()
    async with computed(server, client, counter) as first:
        again = await ran(client)
        code, shown = await phasebus("run", "show", again.run)
        assert code == 0
        assert f"cached from {first.run}" in shown
        _, shown = await phasebus("run", "show", first.run)
        assert "ran because it is the first time" in shown
        _, listed = await phasebus("cache", "ls")
        assert f"{first.run}/a" in listed
        [record] = [json.loads(line) for line in (await phasebus("cache", "ls", "do", "--json"))[1].splitlines()]
        assert (await phasebus("cache", "forget", "do", "nothing"))[0] == 3
        assert await phasebus("cache", "forget", "do", record["key"][:8], "--by", "ann") == (0, "1 forgotten\n")
        assert (await phasebus("cache", "forget", "do"))[0] == 3
        said = await client.log.last(client.subjects.ops("cache"))
        assert said is not None
        assert msgspec.json.decode(said.envelope().data) == {"by": "ann", "capability": "do", "key": record["key"]}
        assert attempt(await ran(client)).because == "what was cached is gone"
    assert counter.done == [GIVEN, GIVEN]


async def test_a_plan_file_and_a_start_can_say_so(server: Server, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text('name = "p"\n[[phases]]\nkey = "a"\ncapability = "do"\ncache = false\n')
    counter = Counter()
    async with serving(server, counter.agent):
        code, _ = await typed(server, "run", "start", str(file), "--id", "forced", "--force", "--follow")
        assert code == 0
        state = await client.runs.load("forced")
    assert state.force
    assert not state.plan.phases[0].cache
