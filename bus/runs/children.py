"""Children: runs that a phase of another run waits for; started, reported and stopped by whoever commits the reason.

Like dispatching work this follows the commit, and is no part of it: what gets lost on the way the supervisor sees, who
looks at parents and children and does it again. Each step is refused if it was done before.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from bus.problem import Problem
from bus.rules.commands import Begin, Cancel, Command, Report
from bus.rules.events import Parent
from bus.rules.inputs import input_of
from bus.rules.run import PhaseState, RunState

Step = tuple[str, Command]
"""A command for another run."""


def steps(before: RunState | None, after: RunState) -> Iterator[Step]:
    """What follows for other runs from one having become `after`."""
    for key, phase in after.phases.items():
        was = before.phases[key] if before is not None else None
        if was is phase:
            continue
        if phase.child and phase.status == "waiting" and not (was and was.child == phase.child):
            yield begin(after, phase)
        if was is not None and was.child and was.status == "waiting" and not _waits(after, key, was.child):
            yield was.child, Cancel(by=after.run, reason=f"phase {key} of its parent is {phase.status}")
    if after.parent is not None and not after.is_open and (before is None or before.is_open):
        yield report(after)


def begin(parent: RunState, phase: PhaseState) -> Step:
    """Start the child that a phase waits for."""
    plan = parent.plan.graph[phase.key].phase.plan
    assert plan is not None, "only a plan makes a child"
    given = msgspec.Raw(msgspec.json.encode(input_of(parent, phase.key, None)))
    return phase.child, Begin(
        plan,
        given,
        parent=Parent(parent.run, phase.key),
        force=parent.force or phase.forced,
        correlation=parent.correlation,
        sticky=parent.sticky,
        priority=plan.priority or parent.level(phase.key),
        sender=parent.sender,
    )


def report(child: RunState) -> Step:
    """Tell the parent how the child has ended."""
    assert child.parent is not None and not child.is_open, "a child that has ended is reported"
    if child.status == "completed":
        outputs = {key: phase.output.raw for key, phase in child.phases.items() if phase.output is not None}
        outcome: msgspec.Raw | Problem = msgspec.Raw(msgspec.json.encode(outputs))
    else:
        why = str(child.problem) if child.problem is not None else child.status
        cause = child.problem.as_cause() if child.problem is not None else None
        outcome = Problem("child_failed", f"run {child.run} is {child.status}", "permanent", why, cause=cause)
    return child.parent.run, Report(child.parent.phase, child.run, outcome)


def is_wanted(child: RunState, parent: RunState | None) -> bool:
    """Whether somebody still waits for an open child. A parent that nobody knows does not."""
    assert child.parent is not None, "a child has a parent"
    return parent is not None and _waits(parent, child.parent.phase, child.run)


def _waits(parent: RunState, key: str, child: str) -> bool:
    phase = parent.phases.get(key)
    return parent.is_open and phase is not None and phase.status == "waiting" and phase.child == child
