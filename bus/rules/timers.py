"""Timers: for every open phase, the instant at which it is moved on, whatever else happens. *Never stuck* rests on it.

They are derived from the log and not stored. A live process may act earlier (a worker ends its own attempt at the
deadline); `due` is what a supervisor does if nobody else has.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from bus.problem import Problem
from bus.rules.commands import Answer, Command, Expire, Fail, GiveUp
from bus.rules.run import TERMINAL, RunState

Kind = Literal["dispatch", "unclaimed", "deadline", "expiry", "total", "run"]

# A worker ends its attempt itself; this much later it is taken from it.
_SLACK = timedelta(seconds=2)


class Timer(msgspec.Struct, frozen=True, order=True):
    """What happens at `at`: `command`, or a dispatch of the item's work if there is none."""

    at: datetime
    kind: Kind
    phase: str = ""
    item: int | None = None
    attempt: int = 0

    def command(self, state: RunState) -> Command | None:
        """What to submit when the timer is due; None means: publish the item's work."""
        match self.kind:
            case "dispatch":
                return None
            case "unclaimed":
                missing = f"no free agent for {state.capability(self.phase)!r}"
                problem = Problem("unclaimed", "nobody took the work in time", "dependency", missing)
                return Fail(self.phase, self.item, self.attempt, "", problem, "unclaimed")
            case "deadline":
                holder = _holder(state, self)
                problem = Problem("timed_out", f"no result by {self.at - _SLACK:%H:%M:%S}", "transient")
                return Fail(self.phase, self.item, self.attempt, holder, problem, "timed_out", "deadline passed")
            case "expiry":
                approval = state.plan.graph[self.phase].phase.approval
                opens = approval is not None and approval.on_expiry == "approve"
                return Answer(self.phase, opens, "expiry", expired=True)
            case "total":
                return GiveUp(self.phase)
            case "run":
                return Expire()


def armed(state: RunState) -> Iterator[Timer]:
    """Every timer of an open run, in no order."""
    if not state.is_open:
        return
    yield Timer(state.deadline_at, "run")
    for phase in state.phases.values():
        if phase.status == "waiting" and phase.expires_at is not None:
            yield Timer(phase.expires_at, "expiry", phase.key)
        total_s = state.plan.graph[phase.key].phase.total_timeout_s
        if total_s is not None and phase.opened_at is not None and phase.status not in TERMINAL:
            yield Timer(phase.opened_at + timedelta(seconds=total_s), "total", phase.key)
        if phase.status not in {"ready", "in_progress"}:
            continue
        queue = timedelta(seconds=state.plan.graph[phase.key].phase.queue_timeout_s)
        for item in phase.items:
            if item.holder is not None:
                yield Timer(item.holder.deadline_at + _SLACK, "deadline", phase.key, item.index, item.attempt)
            elif item.status == "ready" and item.ready_at is not None and state.paused_at is None:
                yield Timer(item.ready_at, "dispatch", phase.key, item.index, item.attempt)
                yield Timer(item.ready_at + queue, "unclaimed", phase.key, item.index, item.attempt)


def _holder(state: RunState, timer: Timer) -> str:
    item = state.phases[timer.phase].item(timer.item)
    return item.holder.instance if item is not None and item.holder is not None else ""
