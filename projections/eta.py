"""When a run will be done: what is left of it played through 200 times along the graph, durations drawn from the past.

The same state, history and time give the same answer: the draws are seeded by the run and its number of events.
How long people take to answer is not forecast: a gate, waiting now or still to come, counts as answered at once.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable
from datetime import datetime
from graphlib import TopologicalSorter
from heapq import heapreplace
from operator import add, mul
from random import Random
from statistics import fmean

import msgspec

from bus.rules.run import SUCCEEDED, TERMINAL, Item, PhaseState, RunState
from projections.durations import Durations, deviates
from projections.history import PACE_SPREAD, History, PhaseHistory, begun_at, is_cached, item_s

_SAMPLES = 200
_SCHEDULES = 40
_SCHEDULED_ITEMS = 32
_ENOUGH = 3
_FEW = 10


class Eta(msgspec.Struct, frozen=True):
    """Seconds left until the run ends: 10, 50 and 90 % of the ways it may go on take no longer."""

    p10_s: float
    p50_s: float
    p90_s: float


class _Ground(msgspec.Struct, frozen=True):
    """What a phase's forecast stands on: durations of one unit, the number of units, how many are under way at a time.

    `factors` are what this run's pace makes of them, one per sample.
    """

    durations: Durations
    factors: list[float]
    items: int
    lanes: int


def eta(state: RunState, history: History, now: datetime) -> Eta | None:
    """How long the run will still take, or None: nothing to base it on yet."""
    # Not for secrets: the same state has to give the same numbers.
    random = Random(f"{state.run}/{state.events}")  # noqa: S311
    grounds = _grounds(state, history, random)
    if grounds is None:
        return None
    graph = {key: node.needs for key, node in state.plan.graph.items()}
    zero = [0.0] * _SAMPLES
    done_in = dict.fromkeys(graph, zero)
    for key in TopologicalSorter(graph).static_order():
        if state.phases[key].status not in TERMINAL:
            done_in[key] = _latest((done_in[need] for need in graph[key]), zero)
            if key in grounds:
                left = _left(state.phases[key], grounds[key], now, random)
                done_in[key] = list(map(add, done_in[key], left))
    totals = sorted(_latest(done_in.values(), zero))
    return Eta(*(totals[_SAMPLES * percent // 100] for percent in (10, 50, 90)))


def _latest(columns: Iterable[list[float]], zero: list[float]) -> list[float]:
    """Sample by sample, the time of the last."""
    latest = zero
    for column in columns:
        if column is not zero:
            latest = column if latest is zero else list(map(max, latest, column))
    return latest


def _grounds(state: RunState, history: History, random: Random) -> dict[str, _Ground] | None:
    """A ground for every open phase that is work, or None if one has none."""
    steady = [1.0] * _SAMPLES
    paced = _paces(state, history, random)
    own = _own(state)
    pooled = _enough([span for spans in own.values() for span in spans])
    grounds: dict[str, _Ground] = {}
    for key, phase in state.phases.items():
        node = state.plan.graph[key]
        if phase.status in TERMINAL or node.phase.capability is None:
            continue
        past = history.of(state.plan, key)
        items = len(phase.items) or (1 if node.each is None else past.items if past is not None else None)
        durations = past.item if past is not None else _enough(own[key]) or pooled
        if durations is None or items is None:
            return None
        grounds[key] = _Ground(
            durations=durations,
            factors=paced if past is not None else steady,
            items=items,
            lanes=_lanes(phase, min(node.phase.width or items, items), past),
        )
    return grounds


def _own(state: RunState) -> dict[str, list[float]]:
    """How long this run's finished units took, by phase."""
    return {
        key: [
            item_s(phase, item)
            for item in phase.items
            if item.status in SUCCEEDED and item.attempts and not is_cached(item)
        ]
        for key, phase in state.phases.items()
    }


def _enough(spans: list[float]) -> Durations | None:
    return Durations.of(spans) if len(spans) >= _ENOUGH else None


def _lanes(phase: PhaseState, width: int, past: PhaseHistory | None) -> int:
    """How many units will be under way at a time: what was usual, or is the case now while others wait."""
    running = sum(1 for item in phase.items if item.status == "in_progress")
    if past is not None:
        lanes = max(round(past.lanes), running)
    elif running and any(item.status == "ready" for item in phase.items):
        lanes = running
    else:
        lanes = width
    return max(min(lanes, width), 1)


def _paces(state: RunState, history: History, random: Random) -> list[float]:
    """How fast this run is, as draws of a factor on past durations (2: twice as long), from what it has finished.

    Each finished phase says something, the less the more its durations differ anyway; together they are weighed
    against the expectation that runs are alike, which pulls the factor towards 1.
    """
    precision = history.paces.get(state.plan.name, PACE_SPREAD) ** -2
    weighed = 0.0
    for key, spans in _own(state).items():
        past = history.of(state.plan, key)
        if spans and past is not None:
            weight = 1 / (past.item.spread**2 * (1 / len(spans) + 1 / past.item.count))
            weighed += weight * (Durations.of(spans).center - past.item.center)
            precision += weight
    center, spread = weighed / precision, precision**-0.5
    return [math.exp(center + spread * deviate) for deviate in deviates(random, _SAMPLES)]


def _left(phase: PhaseState, ground: _Ground, now: datetime, random: Random) -> list[float]:
    """Seconds until the phase is done once it can begin, per sample."""
    if ground.items != 1:
        return random.choices(_schedules(phase, ground, now, random), k=_SAMPLES)
    if phase.opened_at is None:
        return list(map(mul, random.choices(ground.durations.draws, k=_SAMPLES), ground.factors))
    return _item_left(phase, phase.items[0], ground, ground.factors, now, random)


def _schedules(phase: PhaseState, ground: _Ground, now: datetime, random: Random) -> list[float]:
    """The units of an `each` phase in its lanes, a few times over: whichever lane is free takes the next unit.

    Beyond 32 waiting, the first are only counted: many together take what they take on average.
    """
    factors = ground.factors[:_SCHEDULES]
    under_way = [item for item in phase.items if item.status == "in_progress"]
    waiting = ground.items - sum(1 for item in phase.items if item.status in TERMINAL) - len(under_way)
    lanes = max(min(ground.lanes, waiting + len(under_way)), 1)
    counted_s = max(waiting - _SCHEDULED_ITEMS, 0) * fmean(ground.durations.draws) / lanes
    columns = [_item_left(phase, item, ground, factors, now, random) for item in under_way]
    idle = [[0.0] * len(factors)] * (lanes - len(under_way))
    schedules: list[float] = []
    for factor, free_in in zip(factors, zip(*columns, *idle, strict=True), strict=True):
        # Sorted it is a heap, whose first is the lane that is free first.
        heap = sorted(free_in)
        for duration in random.choices(ground.durations.draws, k=min(waiting, _SCHEDULED_ITEMS)):
            heapreplace(heap, heap[0] + duration * factor)
        schedules.append(max(heap) + counted_s * factor)
    return schedules


def _item_left(
    phase: PhaseState, item: Item, ground: _Ground, factors: list[float], now: datetime, random: Random
) -> list[float]:
    """What is left of an opened unit, given how long it has been going on and how far its handler says it is."""
    if item.status in TERMINAL:
        return [0.0] * len(factors)
    elapsed_s = max((now - begun_at(phase, item)).total_seconds(), 0.0)
    left = [_residual_s(ground.durations, elapsed_s / factor, random) * factor for factor in factors]
    if item.holder is None or not item.holder.fraction:
        return left
    # Its own word (what it took so far, by the rule of three) and the past, the former weighed by how far it says it
    # is: f x held x (1 - f) / f + (1 - f) x left.
    held_s = max((now - item.holder.started_at).total_seconds(), 0.0)
    return [(1 - item.holder.fraction) * (held_s + left_s) for left_s in left]


def _residual_s(durations: Durations, elapsed_s: float, random: Random) -> float:
    """A draw of what is left of a duration that is over `elapsed_s` already."""
    draws = durations.draws
    below = bisect(draws, elapsed_s)
    longer = len(draws) - below
    if longer >= _FEW:
        return draws[below + int(random.random() * longer)] - elapsed_s
    # Off the end of experience. There a lognormal's tail falls like an exponential one; and further off the past says
    # less and less, up to "as long again".
    usual = durations.spread
    surprise = max(math.log(elapsed_s) - durations.center, usual)
    spread = usual + max(surprise - 3 * usual, 0.0)
    return random.expovariate(1 / (elapsed_s * min(spread**2 / surprise, 1.0)))
