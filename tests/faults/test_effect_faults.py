"""A process that dies at any step of doing something outside: it is done at most once, whatever is known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus import Client, Done, NotDone, RunState, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.rules.verify import violations
from tests.harness import BOUND_S, agent_process, agent_processes, supervised, until

CHARGER = Path(__file__).with_name("charger.py")
STEPS = ["before intent", "before act", "after act", "after outcome"]
TURNS = range(0, 24, 3)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def key_of(state: RunState) -> str:
    """What the outside knows the charge of a task by."""
    return "/".join([state.run, "work", "charge"])


def books(file: Path) -> Counter[str]:
    return Counter(file.read_text().splitlines() if file.exists() else [])


async def charged(
    server: Server, client: Client, how: str, file: Path, die: str, turns: int = 0, *, reconciles: bool
) -> RunState:
    """The run of one charge whose first attempt dies, once it has ended."""
    order = {"file": str(file), "die": die, "turns": turns, "reconciles": reconciles}
    with agent_processes(server, CHARGER) as processes:
        receipt = await client.send(f"charge.{how}", order)
        if how != "process":
            await until(lambda: processes[0].poll() is not None)
            processes.append(agent_process(server, CHARGER))
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    commits = [commit async for commit in client.ledger.commits(receipt.run)]
    assert not list(violations(commits, utc_now()))
    return state


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["async", "thread", "process"])
async def test_without_anybody_who_can_find_out_it_is_never_repeated(
    server: Server, client: Client, tmp_path: Path, how: str, step: str
) -> None:
    file = tmp_path / "books"
    async with supervised(server):
        state = await charged(server, client, how, file, step, reconciles=False)
    item = state.phases["work"].items[0]
    if step in ("before intent", "after outcome"):
        assert (state.status, client.output(state, "work")) == ("completed", 1)
        assert books(file) == {key_of(state): 1}
        return
    assert (state.status, item.unknown) == ("failed", ["charge"])
    assert item.problem is not None and item.problem.code == "outcome_unknown"
    assert books(file).total() == (step == "after act")


@pytest.mark.parametrize(("how", "step"), [*(("async", step) for step in STEPS), ("process", "after act")])
async def test_whoever_can_find_out_goes_on_and_it_is_done_once(
    server: Server, client: Client, tmp_path: Path, how: str, step: str
) -> None:
    file = tmp_path / "books"
    async with supervised(server):
        state = await charged(server, client, how, file, step, reconciles=True)
    assert (state.status, client.output(state, "work"), state.phases["work"].items[0].attempt) == ("completed", 1, 2)
    assert books(file) == {key_of(state): 1}


async def test_a_death_in_the_middle_of_writing_it_down_leaves_it_done_once(
    server: Server, client: Client, tmp_path: Path
) -> None:
    """Wherever the bytes of intention and outcome had got, the books and the log agree in the end."""
    attempts = Counter[int]()
    async with supervised(server):
        with agent_processes(server, CHARGER) as processes:
            for turns in TURNS:
                file = tmp_path / str(turns)
                order = {"file": str(file), "die": "some turns later", "turns": turns, "reconciles": True}
                receipt = await client.send("charge.async", order)
                # With many turns left it dies when all is done.
                await until(processes[-1].poll)
                processes.append(agent_process(server, CHARGER))
                state = await client.result(receipt.run, timeout_s=BOUND_S)
                assert (state.status, client.output(state, "work")) == ("completed", 1), turns
                assert books(file) == {key_of(state): 1}, turns
                attempts[state.phases["work"].items[0].attempt] += 1
    assert attempts[2], "some died on the way"


async def test_a_person_who_found_out_settles_it_and_redrives(server: Server, client: Client, tmp_path: Path) -> None:
    async with supervised(server):
        ended = [
            await charged(server, client, "async", tmp_path / step, step, reconciles=False)
            for step in ("before act", "after act")
        ]
        await client.settle(ended[0].run, "work", "charge", NotDone(), by="ann", reason="not in the books")
        await client.settle(ended[1].run, "work", "charge", Done(41), by="ann")
        with agent_processes(server, CHARGER):
            for state in ended:
                await client.redrive(state.run, by="ann")
            settled = [await client.result(state.run, timeout_s=BOUND_S) for state in ended]
    assert [client.output(state, "work") for state in settled] == [1, 41]
    assert [books(tmp_path / step).total() for step in ("before act", "after act")] == [1, 1]
