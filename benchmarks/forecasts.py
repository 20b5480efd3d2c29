"""Forecasts against what happened: how often the interval of the ETA holds, how far its middle is off, and how good the
learned limits are at telling a hang from a slow attempt. Seeded: the same figures everywhere.

python -m benchmarks.forecasts
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from statistics import median

import msgspec

from bus.problem import Problem
from bus.rules.commands import Begin, Command, Complete, Fail, Take
from bus.rules.decide import decide
from bus.rules.events import Commit, PhaseReady
from bus.rules.folding import evolve
from bus.rules.plan import Phase, Plan
from bus.rules.run import RunState
from projections.eta import eta
from projections.history import History, learn

START = datetime(2026, 1, 1, tzinfo=UTC)
PHASES = 24
_MOMENTS = (5, 12, 19)
"""After so many ends of phases a run's ETA is asked for."""

_BROKEN = Problem("handler_error", "the line is down", "transient")


class World(msgspec.Struct, frozen=True):
    """How work goes. Spreads are standard deviations of the logarithm of seconds.

    `usual` is how phases of a plan differ from each other, `phase` how a phase differs from run to run (the narrowest
    and the widest phase), `pace` how whole runs do. Of the attempts, `fails` break off and are tried again.
    """

    usual: float = 0.9
    phase: tuple[float, float] = (0.15, 0.35)
    pace: float = 0.15
    fails: float = 0.05


class Work(msgspec.Struct, frozen=True):
    """A plan of 24 phases in a random graph, each with its own usual time (log of seconds) and spread."""

    plan: Plan
    usual: dict[str, float]
    spread: dict[str, float]
    world: World

    @classmethod
    def made(cls, random: Random, world: World, name: str) -> Work:
        keys = [str(number) for number in range(PHASES)]
        phases = [
            Phase(key, "work", after=random.sample(keys[max(0, at - 4) : at], min(at, 1 + at % 2)))
            for at, key in enumerate(keys)
        ]
        return cls(
            plan=Plan(name, phases=phases),
            usual={key: random.gauss(3, world.usual) for key in keys},
            spread={key: random.uniform(*world.phase) for key in keys},
            world=world,
        )

    def attempt_s(self, random: Random, key: str, pace: float) -> float:
        return math.exp(self.usual[key] + pace + random.gauss(0, self.spread[key]))

    def pace(self, random: Random) -> float:
        return random.gauss(0, self.world.pace)


def played(work: Work, random: Random, run: str, *, at_s: float = 0.0) -> list[tuple[float, RunState]]:
    """A run by the rules of the bus: its state when it has started and after each end of a phase, with the seconds
    since `START`; it began at `at_s`."""
    pace = work.pace(random)
    state: RunState | None = None
    now_s, commits = at_s, 0
    story: list[tuple[float, RunState]] = []
    due: list[tuple[float, int, str, str, int]] = []

    def do(command: Command) -> RunState:
        nonlocal state, commits
        at = START + timedelta(seconds=now_s)
        events = decide(state, command, run=run, now=at)
        commits += 1
        state = evolve(state, Commit(run, f"c{commits}", at, commits, events))
        for event in events:
            if isinstance(event, PhaseReady):
                ready_s = (event.due_at - START).total_seconds() if event.due_at is not None else now_s
                heapq.heappush(due, (ready_s, len(due) + commits * 100, "take", event.phase, event.attempt))
        return state

    story.append((at_s, do(Begin(work.plan, msgspec.Raw(b"{}")))))
    while due:
        now_s, order, what, key, attempt = heapq.heappop(due)
        if what == "take":
            do(Take(key, None, attempt, "work", "worker", "worker-1", 86_400.0))
            takes_s = work.attempt_s(random, key, pace)
            if random.random() < work.world.fails:
                heapq.heappush(due, (now_s + takes_s * random.random(), order, "fail", key, attempt))
            else:
                heapq.heappush(due, (now_s + takes_s, order, "complete", key, attempt))
        elif what == "fail":
            do(Fail(key, None, attempt, "worker-1", _BROKEN))
        else:
            story.append((now_s, do(Complete(key, None, attempt, "worker-1", msgspec.Raw(b"null")))))
    return story


class Score(msgspec.Struct, frozen=True):
    """One forecast: whether P10-P90 held what was left, and the relative errors of P50 and of the naive formula,
    elapsed / phases done x phases left."""

    held: bool
    error: float
    naive: float


def scores(random: Random, world: World, *, plans: int, past: int, runs: int) -> Iterator[Score]:
    """The forecasts of so many runs of each plan, with so many past ones to learn from."""
    for number in range(plans):
        work = Work.made(random, world, f"plan-{number}")
        history = learn(played(work, random, f"past-{run}")[-1][1] for run in range(past))
        for run in range(runs):
            story = played(work, random, f"run-{run}")
            end_s, last = story[-1]
            if last.status != "completed":
                continue
            for done in _MOMENTS:
                at_s, state = story[done]
                found = eta(state, history, START + timedelta(seconds=at_s))
                assert found is not None, "every phase has a past"
                left_s, naive_s = end_s - at_s, at_s / done * (PHASES - done)
                yield Score(
                    found.p10_s <= left_s <= found.p90_s,
                    abs(found.p50_s - left_s) / left_s,
                    abs(naive_s - left_s) / left_s,
                )


class Limits(msgspec.Struct, frozen=True):
    """Of attempts that were well, the share over their learned limit; and of each limit, how many medians it is."""

    false: float
    delays: Sequence[float]


def limits(random: Random, world: World, *, plans: int, past: int, attempts: int) -> Limits:
    """The limits learned from so many past runs, tried on so many attempts of each phase in runs to come."""
    false = total = 0
    delays = []
    for number in range(plans):
        work = Work.made(random, world, f"plan-{number}")
        history = learn(played(work, random, f"past-{run}")[-1][1] for run in range(past))
        for key in work.usual:
            limit_s = _limit_s(history, work.plan, key)
            delays.append(limit_s / math.exp(work.usual[key]))
            total += attempts
            false += sum(work.attempt_s(random, key, work.pace(random)) > limit_s for _ in range(attempts))
    return Limits(false / total, sorted(delays))


def _limit_s(history: History, plan: Plan, key: str) -> float:
    found = history.of(plan, key)
    assert found is not None and found.limit_s is not None, "from 8 past runs on there is a limit"
    return found.limit_s


_PLANS, _PAST, _RUNS = 6, 30, 50
_PLANS_OF_LIMITS = 40
_PASTS = (8, 16, 30)


def main() -> int:
    """Print each figure with what is wanted of it; returns how many are not what they should be."""
    missed = 0

    def say(what: str, value: str, wanted: str, is_met: bool) -> None:
        nonlocal missed
        missed += not is_met
        print(f"{what:<52} {value:>9}  (wanted: {wanted}){'' if is_met else '  MISSED'}")

    found = list(scores(Random(1), World(), plans=_PLANS, past=_PAST, runs=_RUNS))
    held = sum(each.held for each in found) / len(found)
    error, naive = median(each.error for each in found), median(each.naive for each in found)
    print(
        f"{_PLANS * _RUNS} runs of {PHASES} phases, {len(found)} forecasts, {_PAST} past runs of each of {_PLANS} plans"
    )
    say("P10-P90 holds what happened", f"{held:.1%}", "75-85 %", 0.75 <= held <= 0.85)
    say("median error of P50", f"{error:.1%}", f"under half of the naive {naive:.1%}", error < naive / 2)
    for past in _PASTS:
        limit = limits(Random(2), World(), plans=_PLANS_OF_LIMITS, past=past, attempts=200)
        false, delays = limit.false, limit.delays
        nearly_all, worst = delays[len(delays) * 99 // 100], delays[-1]
        say(f"{past} past runs: sound attempts over their limit", f"{false:.2%}", "at most 0.5 %", false <= 0.005)
        said = f"at most 4 medians in every phase; in 99 % of them {nearly_all:.1f}"
        say(f"{past} past runs: a hang is told after", f"{worst:.1f} x", said, worst <= 4)
    return missed


if __name__ == "__main__":
    sys.exit(main())
