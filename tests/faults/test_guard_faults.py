"""Breakers and limits shared by real processes: some are killed or frozen, and so is the server."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus import CircuitOpen, Client, LimitReached, Unavailable, connect
from bus.broker.server import Server
from bus.guards.circuit import Circuit
from tests.faults.caller import POLICY, QUOTA
from tests.harness import ROOT, until

CALLER = Path(__file__).with_name("caller.py")


@contextmanager
def callers(
    server: Server, notes: Path, count: int, what: str, *arguments: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of `caller.py`, each with a file to write in; killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(CALLER), what, server.url, str(notes / f"{number}"), *arguments],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def through(notes: Path) -> list[int]:
    """Who was let through so far, once for each time."""
    return [int(path.name) for path in notes.iterdir() for line in path.read_text().splitlines() if line == "through"]


async def fails(circuit: Circuit, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            async with circuit:
                raise ConnectionError


async def test_of_many_processes_one_probes_and_when_it_is_killed_or_frozen_another_does(
    server: Server, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    async with connect(server.url) as client:
        circuit = client.breaker("sick", POLICY)
        await fails(circuit, POLICY.calls)
        await until(lambda: circuit.state.position)
        with callers(server, notes, 4, "probe") as processes:
            await until(lambda: through(notes))
            state = (await client.breakers())[0]
            assert (state.status, len(through(notes))) == ("half_open", 1)
            first = through(notes)[0]
            processes[first].kill()
            await until(lambda: len(through(notes)) > 1)
            second = through(notes)[1 if through(notes)[0] == first else 0]
            assert second != first
            processes[second].send_signal(signal.SIGSTOP)
            await until(lambda: len({*through(notes)}) > 2)
        records = [record.envelope() async for record in client.log.read(client.subjects.breaker("sick"))]
        probes = [record for record in records if record.type == "breaker.probing.v1"]
        # Between two probes one has ended, or its time was over.
        assert len(probes) >= 3


async def test_a_breaker_stays_open_across_a_restart_of_the_server_and_of_the_process(
    server: Server, tmp_path: Path
) -> None:
    async with connect(server.url) as client:
        await client.open_breaker("sick", by="ann", reason="maintenance")
        circuit = client.breaker("sick")
        with pytest.raises(CircuitOpen, match="maintenance"):
            await circuit.enter()
        await server.kill()
        with pytest.raises(CircuitOpen):
            await circuit.enter()
        await server.start()
    async with connect(server.url) as client:
        with pytest.raises(CircuitOpen, match="maintenance"):
            await client.breaker("sick").enter()


async def test_without_a_server_calls_go_through_and_failures_still_open_here(server: Server) -> None:
    async with connect(server.url) as client:
        circuit = client.breaker("sick", POLICY)
        async with circuit:
            pass
        await server.kill()
        await fails(circuit, POLICY.calls - 1)
        with pytest.raises(CircuitOpen):
            await circuit.enter()
        await server.start()
        # What could not be told is told when it can be.
        await until(lambda: _is_open(client))


async def _is_open(client: Client) -> bool:
    try:
        return [state.status for state in await client.breakers()] == ["open"]
    except Unavailable:
        return False


async def test_processes_together_never_take_more_than_the_limit_and_each_has_its_turn(
    server: Server, tmp_path: Path
) -> None:
    with callers(server, tmp_path, 4, "take", "4", "rate") as processes:
        await until(lambda: all(process.poll() is not None for process in processes), bound_s=60)
    taken = [list(map(float, (tmp_path / f"{number}").read_text().splitlines()[1:])) for number in range(4)]
    times = sorted(itertools.chain.from_iterable(taken))
    per_s = QUOTA.calls_per_s
    assert per_s is not None
    # A call is noted a moment after it was allowed: as much as its process was late.
    late_s = 1.0
    for first in range(0, len(times), 10):
        for last in range(first, len(times), 10):
            assert last - first + 1 <= per_s + per_s * (times[last] - times[first] + late_s)
    # None of them was left out.
    counts = list(map(len, taken))
    assert min(counts) > 10, counts


async def test_what_a_frozen_or_killed_process_was_lent_is_lost_but_never_spent_twice(
    server: Server, tmp_path: Path
) -> None:
    async with connect(server.url) as client:
        with callers(server, tmp_path, 3, "take", "600", "rate") as processes:
            await until(lambda: all((tmp_path / f"{number}").exists() for number in range(3)))
            await until(lambda: _has_been_used(client))
            processes[0].kill()
            processes[1].send_signal(signal.SIGSTOP)
            # The third still gets its turns, as do we.
            limit = client.limit("rate", QUOTA)
            for _ in range(10):
                await limit.take(timeout_s=20)
            processes[1].send_signal(signal.SIGCONT)
            await limit.take(timeout_s=20)
        standing = (await client.limits())["rate"]
        loans = standing.accounts["calls_per_s"].loans
        assert sum(amount for _, amount in loans) <= QUOTA.meters[0].loans


async def _has_been_used(client: Client) -> bool:
    return bool(await client.limits())


async def test_a_budget_survives_the_server_and_lets_nobody_through_without_it(server: Server) -> None:
    async with connect(server.url, request_timeout_s=1.0) as client:
        limit = client.limit("dear", calls_per_day=1_000, cost_per_day=10)
        await limit.take(cost=8)
        await server.kill()
        with pytest.raises(Unavailable):
            await limit.take(cost=1)
        await server.start()

        async def is_back() -> bool:
            try:
                await limit.take(cost=1)
            except Unavailable:
                return False
            return True

        await until(is_back)
        with pytest.raises(LimitReached, match="cost_per_day is spent"):
            await limit.take(cost=2)


async def test_a_process_that_ends_in_the_middle_of_a_wait_holds_nobody_up(server: Server) -> None:
    async with connect(server.url) as client:
        limit = client.limit("slow", calls_per_s=2)
        waiting = [asyncio.create_task(limit.take()) for _ in range(6)]
        await asyncio.sleep(0.2)
        for task in waiting[3:]:
            task.cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in done] == [False] * 3 + [True] * 3
        await limit.take()
