"""Every way in which work can die, walked for real: each ends in one dead letter that has all there is to know."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus import Agent, Client, Phase, Plan, Reject, Retry, connect
from bus.broker.server import Server
from bus.errors import Unavailable
from bus.letters.letters import Letter
from bus.rules.commands import Expire
from bus.rules.dead import DeadLetter
from bus.rules.events import PhaseFailed
from tests.harness import BOUND_S, agent_process, agent_processes, agents_there, serving, supervised, until

MORTAL = Path(__file__).with_name("mortal.py")
REDRIVER = Path(__file__).with_name("redriver.py")
SOON = Retry(transient=1, dependency=1, unknown=1, lost=1, transient_s=0.01, dependency_s=0.01, unknown_s=0.01)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def capability_that_raises(error: Exception) -> Agent:
    agent = Agent("dying")

    @agent.capability("die")
    async def die(_: object) -> None:
        raise error from OSError("deep down")

    return agent


async def the_letter(client: Client, run: str) -> Letter:
    """The one letter there is, once the run has ended: it has what every letter must have."""
    await client.result(run, timeout_s=BOUND_S)
    [found] = [each async for each in client.dead_letters()]
    letter = found.letter
    assert isinstance(letter, DeadLetter)
    commits = [commit async for commit in client.ledger.commits(run)]
    # Behind it there may be more: what the holder of the work said of it too late.
    [giving_up] = [commit for commit in commits if any(isinstance(each, PhaseFailed) for each in commit.events)]
    assert (letter.run, found.causation) == (run, giving_up.id)
    assert found.correlation == run
    assert letter.began == commits[0].position
    assert letter.origin == commits[0].position
    assert msgspec.json.decode(letter.payload) == {"how": "poison"}
    return found


def told(found: Letter) -> list[tuple[str, str]]:
    """Of each attempt, how it ended and the code of its problem."""
    assert isinstance(found.letter, DeadLetter)
    attempts = found.letter.attempts
    assert all(each.agent and each.instance and each.ended_at for each in attempts)
    return [(each.cause, each.problem.code if each.problem else "") for each in attempts]


def once(**more: Any) -> Plan:
    return Plan("once", phases=[Phase("work", "die", input={"how": "poison"}, retry=SOON, **more)])


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ConnectionResetError("peer"), 2),
        (ConnectionRefusedError("nobody there"), 2),
        (ImportError("no module"), 1),
        (ZeroDivisionError("by zero"), 2),
    ],
    ids=["transient", "dependency", "configuration", "unknown"],
)
async def test_a_handler_that_gives_up_leaves_a_letter_with_each_chain_of_errors(
    server: Server, client: Client, error: Exception, attempts: int
) -> None:
    async with serving(server, capability_that_raises(error)), supervised(server):
        found = await the_letter(client, (await client.start(once())).run)
    assert told(found) == [("error", "handler_error")] * attempts
    assert isinstance(found.letter, DeadLetter)
    for each in found.letter.attempts:
        assert each.problem is not None
        assert each.problem.causes == (f"{type(error).__name__}: {error}", "OSError: deep down")
        assert "deep down" in each.problem.trace


async def test_a_rejection_leaves_a_letter_at_once(server: Server, client: Client) -> None:
    async with serving(server, capability_that_raises(Reject("never"))):
        found = await the_letter(client, (await client.start(once())).run)
    assert told(found) == [("error", "rejected")]


@pytest.mark.parametrize(
    ("bounds", "timeout_s", "wanted", "code"),
    [
        ({"timeout_s": 0.1}, 60.0, [("timed_out", "timed_out")] * 2, "timed_out"),
        ({"silence_timeout_s": 0.1}, 60.0, [("silent", "silent")] * 2, "silent"),
        ({"total_timeout_s": 0.3}, 60.0, [("cancelled", "expired")], "expired"),
        ({}, 0.3, [("cancelled", "expired")], "expired"),
    ],
    ids=["attempt", "silence", "phase", "run"],
)
async def test_a_deadline_leaves_a_letter(
    server: Server, client: Client, bounds: dict[str, float], timeout_s: float, wanted: list[Any], code: str
) -> None:
    agent = Agent("endless")

    @agent.capability("die")
    async def die(_: object) -> None:
        await asyncio.sleep(60)

    plan = Plan("late", phases=once(**bounds).phases, timeout_s=timeout_s)
    async with serving(server, agent), supervised(server):
        found = await the_letter(client, (await client.start(plan)).run)
    assert told(found) == wanted
    assert isinstance(found.letter, DeadLetter)
    assert (found.letter.problem.code, found.letter.cause) == (code, code)


async def test_an_input_that_does_not_fit_leaves_a_letter(server: Server, client: Client) -> None:
    agent = Agent("strict")

    @agent.capability("die")
    async def die(number: int) -> int:
        return number

    async with serving(server, agent):
        found = await the_letter(client, (await client.start(once())).run)
    assert told(found) == [("error", "undecodable")]


async def test_nobody_for_the_work_leaves_a_letter_without_attempts(server: Server, client: Client) -> None:
    async with supervised(server):
        found = await the_letter(client, (await client.start(once(queue_timeout_s=0.2))).run)
    assert told(found) == []
    assert isinstance(found.letter, DeadLetter)
    assert found.letter.cause == "unclaimed"


async def test_poison_that_kills_its_process_each_time_leaves_a_letter_when_its_class_is_used_up(
    server: Server, client: Client
) -> None:
    phase = Phase("work", "mortal.do", input={"how": "poison"}, retry=Retry(lost=2, lost_s=0.05))
    async with supervised(server):
        with agent_processes(server, MORTAL, 2) as processes:
            await agents_there(client, 2)
            reviving = asyncio.create_task(_revive(server, processes))
            found = await the_letter(client, (await client.start(Plan("poison", phases=[phase]))).run)
            reviving.cancel()
            with suppress(asyncio.CancelledError):
                await reviving
    assert told(found) == [("crashed", "lost")] * 3
    assert isinstance(found.letter, DeadLetter)
    assert len({each.instance for each in found.letter.attempts}) == 3
    assert all(each.evidence == "its connection closed" for each in found.letter.attempts)


async def test_a_redrive_of_many_killed_in_its_middle_goes_on_and_each_letter_is_sent_once(
    server: Server, client: Client
) -> None:
    broken, done = [True], list[int]()
    agent = Agent("counting")

    @agent.capability("count", concurrency=8)
    async def count(number: int) -> int:
        if broken:
            raise Reject("not yet")
        done.append(number)
        return number

    async with serving(server, agent):
        for number in range(12):
            await client.result((await client.send("count", number)).run, timeout_s=BOUND_S)
        broken.clear()
        command = [sys.executable, str(REDRIVER), server.url]
        first = await asyncio.create_subprocess_exec(*command, "20", stdout=subprocess.PIPE)
        assert first.stdout is not None
        lines = [await asyncio.wait_for(first.stdout.readline(), BOUND_S) for _ in range(4)]
        first.kill()
        await first.wait()
        operation = lines[0].split()[0].decode()
        assert await _open(client)
        # Two resume it at once, and one who knows nothing of it sends what it finds.
        others = [
            await asyncio.create_subprocess_exec(*command, *how, stdout=subprocess.DEVNULL)
            for how in (("-", operation), ("-", operation), ("-",))
        ]
        for each in others:
            assert await asyncio.wait_for(each.wait(), BOUND_S) in (0, 1)
        await until(lambda: _all_resolved(client, 12))
    assert sorted(done) == list(range(12)), "each was done once"


async def test_processes_that_redrive_the_same_letters_at_once_do_it_once(server: Server, client: Client) -> None:
    broken, done = [True], list[int]()
    agent = Agent("counting")

    @agent.capability("count", concurrency=8)
    async def count(number: int) -> int:
        if broken:
            raise Reject("not yet")
        done.append(number)
        return number

    async with serving(server, agent):
        for number in range(10):
            await client.result((await client.send("count", number)).run, timeout_s=BOUND_S)
        broken.clear()
        command = [sys.executable, str(REDRIVER), server.url, "-"]
        racing = [await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE) for _ in range(3)]
        counts = [int((await asyncio.wait_for(each.communicate(), BOUND_S))[0]) for each in racing]
        assert sum(counts) == 10
        await until(lambda: _all_resolved(client, 10))
    assert sorted(done) == list(range(10))


async def _revive(server: Server, processes: list[subprocess.Popen[bytes]]) -> None:
    """What died is started again, as a process manager would."""
    seen = 0
    while True:
        gone = sum(each.poll() is not None for each in processes)
        processes += [agent_process(server, MORTAL) for _ in range(gone - seen)]
        seen = gone
        await asyncio.sleep(0.05)


async def _open(client: Client) -> bool:
    return bool([each async for each in client.dead_letters(status=["open"])])


async def _all_resolved(client: Client, count: int) -> bool:
    return len([each async for each in client.dead_letters(status=["resolved"])]) == count


async def test_letters_that_do_not_fit_into_one_batch_are_made_again_if_whoever_stores_them_dies(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 1_200
    phases = [Phase(key, "nobody", each="input", width=600) for key in ("a", "b")]
    receipt = await client.start(Plan("wide", phases=phases, timeout_s=0.2), list(range(count // 2)))
    together = client.log.append_together

    async def dying(parts: Any) -> int:
        if parts[0].expected is None:
            raise Unavailable("it died before the rest of the letters")
        return await together(parts)

    monkeypatch.setattr(client.log, "append_together", dying)
    await asyncio.sleep(0.3)
    with pytest.raises(Unavailable):
        await client.runs.submit(receipt.run, Expire())
    assert len([each async for each in client.dead_letters()]) == 500
    async with supervised(server):
        await until(lambda: _all_dead(client, count))
        # Whoever was only slow stores them too, and they are there once.
        await asyncio.sleep(0.5)
        assert await _all_dead(client, count)
    found = [each async for each in client.dead_letters(status=["open"])]
    assert len({each.id for each in found}) == count
    assert {each.causation for each in found} == {[each async for each in client.ledger.commits(receipt.run)][-1].id}


async def _all_dead(client: Client, count: int) -> bool:
    return len([each async for each in client.dead_letters()]) == count
