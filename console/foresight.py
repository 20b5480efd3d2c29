"""Foresight: what past runs say of one that goes on, and how often that has held."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime

import msgspec

from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError
from bus.rules.run import RunState
from console.text import duration
from projections.catchup import build
from projections.eta import Eta
from projections.history import History, learn
from projections.progress import Progress, progress
from projections.runs import RUNS
from projections.scoring import Scored, score

_BOUND_S = 2.0


class Foresight(msgspec.Struct, frozen=True):
    """What was learned, and how good the forecasts of the same plan have been: None if there is nothing to tell."""

    history: History = History()
    scored: Scored | None = None

    def left(self, state: RunState, eta: Eta | None) -> str:
        """The interval that 8 of 10 runs like this one end in, and how often it has held. Nothing while all there is
        waits for people."""
        statuses = {phase.status for phase in state.phases.values()}
        if eta is None or ("waiting" in statuses and not statuses & {"ready", "in_progress"}):
            return ""
        low, high = round(eta.p10_s), round(eta.p90_s)
        span = f"{duration(low)} to {duration(high)}"
        if high < 60:
            span = f"{low} to {high} s" if low < high else f"{high} s"
        return f"{span} left{self.held}"

    @property
    def held(self) -> str:
        """How often such intervals have held, in brackets."""
        if self.scored is None or not self.scored.forecasts:
            return ""
        return f" (held {self.scored.held} of {self.scored.forecasts})"


class Forecast(msgspec.Struct, frozen=True):
    """An open run of a list: `left` is for people, the rest for programs. `scored` is how good such forecasts were."""

    left: str
    progress: Progress
    scored: Scored | None


async def foresee_all(client: Client, wanted: Collection[str], now: datetime) -> dict[str, Forecast]:
    """Of open runs of a list, from all that has ended by now. Raises Unavailable."""
    runs = (await build(client, RUNS)).rows
    history = learn(runs.values())
    scored: dict[str, Scored] = {}
    found: dict[str, Forecast] = {}
    for state in (runs[run] for run in wanted if run in runs):
        plan = state.plan.name
        if plan not in scored:
            scored[plan] = await asyncio.to_thread(score, runs.values(), plan)
        far = progress(state, history, now)
        left = Foresight(history, scored[plan]).left(state, far.eta)
        found[state.run] = Forecast(left, far, scored[plan])
    return found


async def foresee(client: Client, run: str) -> Foresight:
    """What a run can have learned from those that had ended when it began, so that it is always told the same way.

    Nothing if it takes over two seconds to learn, for nobody should wait for a forecast.
    """
    try:
        async with asyncio.timeout(_BOUND_S):
            runs = (await build(client, RUNS)).rows
            began_at = runs[run].started_at if run in runs else utc_now()
            before = [each for each in runs.values() if each.ended_at is not None and each.ended_at <= began_at]
            plan = runs[run].plan.name if run in runs else ""
            # Twenty runs are forecast three times each: what waits for that is only this.
            return await asyncio.to_thread(lambda: Foresight(learn(before), score(before, plan)))
    except (TimeoutError, BusError):
        return Foresight()
