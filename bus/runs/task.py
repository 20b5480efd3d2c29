"""A task: work outside a run is a run of one phase, with the same attempts, deadlines, recovery and dead letters."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from bus.rules.plan import DAY_S, TASK, Phase, Plan
from bus.rules.references import ref

WORK = "work"
"""The key of its phase."""


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """Work for whoever has `capability`, given up after `timeout_s`."""

    capability: str
    timeout_s: float = DAY_S

    @property
    def plan(self) -> Plan:
        """The plan of its run. Raises PlanError."""
        return _plan(self)


@lru_cache(maxsize=1_000)
def _plan(task: Task) -> Plan:
    return Plan(TASK, phases=[Phase(WORK, task.capability, input=ref("input"))], timeout_s=task.timeout_s)
