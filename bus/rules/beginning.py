"""Beginning: how a run starts, as a whole, as a part of its plan, or with what another has done."""

from __future__ import annotations

from datetime import datetime, timedelta

from bus.errors import Refused
from bus.rules.commands import Begin
from bus.rules.draft import Draft
from bus.rules.events import Commit, PhaseApproved, PhaseCompleted, PhaseSkipped, RunStarted
from bus.rules.folding import evolve
from bus.rules.priority import NORMAL
from bus.rules.route import Routes
from bus.rules.run import RunState

OUTSIDE = "outside of"
"""How the reason begins why a phase was left out of a run of a part of its plan."""


def begin(command: Begin, run: str, now: datetime, routes: Routes) -> Draft:
    """The events a run begins with: what it is, what it takes over, what is left out of it, and what opens at once."""
    deadline = (command.due_at or command.since or now) + timedelta(seconds=command.plan.timeout_s)
    started = RunStarted(
        plan=command.plan,
        input=command.input,
        deadline_at=deadline,
        parent=command.parent,
        force=command.force,
        key=command.key,
        sticky=command.sticky,
        priority=command.priority or command.plan.priority or NORMAL,
        sender=command.sender,
    )
    born = evolve(None, Commit(run, "", now, 1, [started], correlation=command.correlation))
    draft = Draft(born, now, routes, arm=command.arm, due_at=command.due_at, begun=started)
    adopted = [key for key in command.plan.graph if key in command.adopted]
    for key in adopted:
        draft.emit(_adoption(draft.state, key, command))
    outside = _outside(list(command.plan.graph), command.first, command.last)
    said = f"{OUTSIDE} {command.first or 'the first'} to {command.last or 'the last'}"
    left_out = [key for key in outside if key not in adopted]
    draft.emit(*(PhaseSkipped(phase=key, reason=said, lets_pass=True) for key in left_out))
    draft.open([key for key in command.plan.graph if key not in outside])
    return draft


def _adoption(state: RunState, key: str, command: Begin) -> PhaseApproved | PhaseCompleted:
    """A phase that was done elsewhere, as it ended there."""
    if state.plan.graph[key].phase.approval is not None:
        return PhaseApproved(phase=key, by=command.origin)
    return PhaseCompleted(phase=key, output=command.adopted[key], by=command.origin)


def _outside(keys: list[str], first: str | None, last: str | None) -> list[str]:
    """The phases in front of `first` and behind `last`, in the plan's order."""
    for key in (first, last):
        if key is not None and key not in keys:
            raise Refused(f"the plan has no phase {key!r} to begin or end with")
    begin = keys.index(first) if first is not None else 0
    end = keys.index(last) if last is not None else len(keys) - 1
    if begin > end:
        raise Refused(f"phase {first} comes behind phase {last} in the plan")
    return keys[:begin] + keys[end + 1 :]
