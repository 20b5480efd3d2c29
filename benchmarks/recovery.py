"""How long recovery takes, for each class of fault: from the fault to what noticed it, and to the next start.

python -m benchmarks.recovery [--count 20] [--only CLASS]

All times but that of the fault itself are the server's, from the log. Lease and beat have their defaults (3 s, 1 s).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from agents.leadership import Leadership
from benchmarks.chaos.company import Post, surroundings
from benchmarks.chaos.figures import percentile
from bus import Client, Phase, Plan, connect, logs
from bus.broker.server import Server, embedded
from bus.clock import utc_now
from bus.log.streams import purge
from bus.rules.events import Event, PhaseAttemptFailed, PhaseStarted
from bus.runs.ledger import commit_in
from bus.runs.recovery import AREA, RECOVERED, STARVED

_LEASE_S = 3.0
_BLOCKED_S = 8.0
_BOUND_S = 60.0
# So many samples are taken side by side where each needs processes of its own and much waiting.
_LANES = 4


class Sample(NamedTuple):
    """Seconds from the fault to the event that names it, and to the next start of the work; None if there is none."""

    noticed_s: float | None
    started_s: float | None


class Told(NamedTuple):
    """An event, and when the server stored it."""

    at: datetime
    event: Event


Measure = Callable[["Bench", int], Awaitable[list[Sample]]]


class Bench:
    """A bus, two supervisors, and the workers of the measurement under way."""

    def __init__(self, server: Server, client: Client, folder: Path) -> None:
        self.server = server
        self.client = client
        self._folder = folder
        self._started = 0
        self.supervisors = [self.post("benchmarks.chaos.supervisor") for _ in range(2)]

    def post(self, module: str, *arguments: str, **environment: str) -> Post:
        self._started += 1
        name = f"{module.rpartition('.')[2]}-{self._started}"
        return Post(name, module, self._folder, surroundings(self.server, _LEASE_S) | environment, *arguments)

    @asynccontextmanager
    async def workers(self, capability: str, count: int, **environment: str) -> AsyncIterator[list[Post]]:
        """So many that offer it, one at a time each. The list may be added to."""
        posts = [self.post("benchmarks.holder", capability, **environment) for _ in range(count)]
        try:
            await self.until(lambda: self._offered(capability, count))
            yield posts
        finally:
            for post in posts:
                post.signal(signal.SIGCONT)
                post.end()

    def more(self, posts: list[Post], capability: str, **environment: str) -> None:
        posts.append(self.post("benchmarks.holder", capability, **environment))

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(_BOUND_S):
            while not await condition():
                await asyncio.sleep(0.02)

    async def leader(self) -> Post:
        """Who leads, once somebody does."""
        found: list[Post] = []

        async def look() -> bool:
            name = await Leadership(self.client, "").leader()
            found[:] = [post for post in self.supervisors if post.name == name and not post.has_ended]
            return bool(found)

        await self.until(look)
        return found[0]

    async def begin(self, capability: str, s: float = 0.0) -> str:
        """Work for it, in a run of its own."""
        return (await self.client.send(capability, {"s": s})).run

    async def story(self, run: str) -> list[Told]:
        records = [record async for record in self.client.log.read(self.client.subjects.run(run))]
        return [Told(record.stored_at, event) for record in records for event in commit_in(run, record).events]

    async def starts(self, run: str, count: int) -> list[Told]:
        """The starts of a run's attempts, once there are so many."""
        found: list[Told] = []

        async def enough() -> bool:
            found[:] = [each for each in await self.story(run) if isinstance(each.event, PhaseStarted)]
            return len(found) >= count

        await self.until(enough)
        return found

    async def holder(self, run: str, posts: Iterable[Post]) -> tuple[Post, datetime]:
        """The process that holds a run's first attempt, and since when."""
        [first, *_] = await self.starts(run, 1)
        assert isinstance(first.event, PhaseStarted)
        instance = first.event.instance
        pids: dict[str, int] = {}

        async def heard() -> bool:
            pids.update({beat.instance: beat.pid for beat in await self.client.agents()})
            return instance in pids

        await self.until(heard)
        return next(post for post in posts if post.pid == pids[instance]), first.at

    async def sample(self, run: str, fault: datetime) -> Sample:
        """What the log says of a run whose first attempt was hit, once there was a second."""
        second = (await self.starts(run, 2))[1]
        failed = next(each for each in await self.story(run) if isinstance(each.event, PhaseAttemptFailed))
        return Sample((failed.at - fault).total_seconds(), (second.at - fault).total_seconds())

    async def said(self, kind: str) -> list[tuple[datetime, dict[str, object]]]:
        """All that supervisors have announced of a kind."""
        records = [record async for record in self.client.log.read(self.client.subjects.ops(AREA))]
        return [
            (record.stored_at, msgspec.json.decode(record.envelope().data))
            for record in records
            if record.envelope().type == kind
        ]

    async def close(self) -> None:
        for post in self.supervisors:
            post.end()

    async def _offered(self, capability: str, count: int) -> bool:
        return sum(capability in beat.capabilities for beat in await self.client.agents()) >= count


async def _signalled(bench: Bench, count: int, number: signal.Signals, lanes: int, **environment: str) -> list[Sample]:
    """The holder of an attempt gets a signal; another worker is free."""
    samples: list[Sample] = []
    for _ in range(-(-count // lanes)):
        async with bench.workers("hold", 2 * lanes, **environment) as posts:

            async def one(posts: list[Post] = posts) -> Sample:
                run = await bench.begin("hold")
                holder, _ = await bench.holder(run, posts)
                fault = utc_now()
                holder.signal(number)
                return await bench.sample(run, fault)

            samples += await asyncio.gather(*(one() for _ in range(lanes)))
    return samples


async def killed(bench: Bench, count: int) -> list[Sample]:
    return await _signalled(bench, count, signal.SIGKILL, 1)


async def frozen(bench: Bench, count: int) -> list[Sample]:
    return await _signalled(bench, count, signal.SIGSTOP, _LANES)


async def handed_back(bench: Bench, count: int) -> list[Sample]:
    return await _signalled(bench, count, signal.SIGTERM, 1, PHASEBUS_GRACE_S="0.5")


async def blocked(bench: Bench, count: int) -> list[Sample]:
    """The fault begins with the handler."""
    samples: list[Sample] = []
    for _ in range(-(-count // _LANES)):
        async with bench.workers("block", 2 * _LANES) as posts:

            async def one(posts: list[Post] = posts) -> Sample:
                run = await bench.begin("block", _BLOCKED_S)
                [first, *_] = await bench.starts(run, 1)
                return await bench.sample(run, first.at)

            samples += await asyncio.gather(*(one() for _ in range(_LANES)))
    return samples


async def silent(bench: Bench, count: int) -> list[Sample]:
    async with bench.workers("mute", 2):
        samples: list[Sample] = []
        for _ in range(count):
            run = await bench.begin("mute")
            [first, *_] = await bench.starts(run, 1)
            samples.append(await bench.sample(run, first.at))
        return samples


async def starved(bench: Bench, count: int) -> list[Sample]:
    """Nobody has the capability; it is noticed when that is announced."""
    faults: dict[str, datetime] = {}
    for number in range(count):
        faults[f"nobody.{number}"] = utc_now()
        await bench.begin(f"nobody.{number}")
    found: dict[str, datetime] = {}

    async def all_said() -> bool:
        found.update({str(said["capability"]): at for at, said in await bench.said(STARVED)})
        return faults.keys() <= found.keys()

    await bench.until(all_said)
    return [Sample((found[each] - fault).total_seconds(), None) for each, fault in faults.items()]


async def lost(bench: Bench, count: int) -> list[Sample]:
    """The message of work that waits is removed; whoever would have taken it is free a moment later."""
    samples: list[Sample] = []
    async with bench.workers("nap", 1), connect(bench.server.operator_url, name="operator") as operator:
        while len(samples) < count:
            busy = await bench.begin("nap", 0.5)
            await bench.starts(busy, 1)
            run = await bench.begin("nap")
            fault = utc_now()
            stream = operator.subjects.work_stream
            if not await purge(operator.connection, stream, f"bus.work.nap.{run}.>", _BOUND_S):
                continue  # it was taken before
            [start] = await bench.starts(run, 1)
            told: list[datetime] = []

            async def is_told(run: str = run, told: list[datetime] = told) -> bool:
                told[:] = [at for at, said in await bench.said(RECOVERED) if run in str(said)]
                return bool(told)

            await bench.until(is_told)
            samples.append(Sample((told[0] - fault).total_seconds(), (start.at - fault).total_seconds()))
    return samples


async def leaderless(bench: Bench, count: int) -> list[Sample]:
    """The leader is killed, and with it a worker: noticed when the other leads."""
    samples: list[Sample] = []
    async with bench.workers("hold", 2) as posts:
        for _ in range(count):
            leader = await bench.leader()
            run = await bench.begin("hold")
            holder, _ = await bench.holder(run, posts)
            fault = utc_now()
            leader.end()
            holder.end()
            bench.more(posts, "hold")
            await bench.leader()
            led_s = (utc_now() - fault).total_seconds()
            leader.again()
            samples.append(Sample(led_s, (await bench.sample(run, fault)).started_s))
    return samples


async def serverless(bench: Bench, count: int) -> list[Sample]:
    """The server is killed and started again at once under a run of short naps: noticed when it takes connections."""
    naps = 1_000
    plan = Plan(
        "naps", phases=[Phase(key, "nap", input={"s": 0.02}, after=[key - 1] if key else []) for key in range(naps)]
    )
    samples: list[Sample] = []
    async with bench.workers("nap", 2):
        run = (await bench.client.start(plan)).run
        for _ in range(count):
            await asyncio.sleep(1.2)
            fault = utc_now()
            await bench.server.restart()
            up_s = (utc_now() - fault).total_seconds()
            next_: list[datetime] = []

            async def goes_on(fault: datetime = fault, next_: list[datetime] = next_) -> bool:
                story = await bench.story(run)
                next_[:] = [each.at for each in story if isinstance(each.event, PhaseStarted) and each.at > fault]
                return bool(next_)

            await bench.until(goes_on)
            samples.append(Sample(up_s, (next_[0] - fault).total_seconds()))
        await bench.client.cancel(run, by="bench")
    return samples


CLASSES: dict[str, Measure] = {
    "worker killed (SIGKILL)": killed,
    "worker frozen (SIGSTOP)": frozen,
    "event loop blocked": blocked,
    "handler silent, silence_s = 1": silent,
    "nobody offers it": starved,
    "message of work lost": lost,
    "leader and a worker killed": leaderless,
    "server killed, started again": serverless,
    "worker stopped, grace 0.5 s": handed_back,
}


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="samples of each class, at least")
    parser.add_argument("--only", default="", help="classes whose name has this in it")
    return parser.parse_args(arguments)


async def main(chosen: argparse.Namespace) -> None:
    logs.configure("error")
    print(f"{'':30} {'n':>4} {'noticed p50':>12} {'p99':>9} {'started p50':>12} {'p99':>9}")
    with tempfile.TemporaryDirectory(prefix="phasebus-recovery-") as folder:
        async with embedded(Path(folder, "store")) as server, connect(server.url, name="bench") as client:
            bench = Bench(server, client, Path(folder))
            try:
                await bench.leader()
                for name, measure in CLASSES.items():
                    if chosen.only in name:
                        _show(name, await measure(bench, chosen.count))
            finally:
                await bench.close()


def _show(name: str, samples: list[Sample]) -> None:
    columns = []
    for values in ([each.noticed_s for each in samples], [each.started_s for each in samples]):
        known = [value for value in values if value is not None]
        columns += [f"{percentile(known, share):.3f} s" if known else "" for share in (0.5, 0.99)]
    print(f"{name:30} {len(samples):4} {columns[0]:>12} {columns[1]:>9} {columns[2]:>12} {columns[3]:>9}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(options(sys.argv[1:])))
