"""Rerouting: work that waits goes another way, because the route has changed, or nobody of its arm lives."""

from __future__ import annotations

from bus.errors import Refused
from bus.rules.commands import Reroute
from bus.rules.draft import Draft
from bus.rules.events import PhaseReady
from bus.rules.holding import find, label


def reroute(draft: Draft, command: Reroute) -> None:
    phase, item = find(draft.state, command.phase, command.item)
    capability = draft.state.capability(phase.key)
    route = draft.routes.get(capability or "")
    arm = route.arm(draft.state.sticks_to, item.arm, command.without) if route is not None else None
    if item.status != "ready" or item.attempt != command.attempt:
        raise Refused(f"attempt {command.attempt} of {label(phase, item)} does not wait to be taken")
    if arm == item.arm or (route is not None and arm is None):
        raise Refused(f"there is no other way for {label(phase, item)}")
    due_at = item.ready_at if item.ready_at is not None and item.ready_at > draft.now else None
    # As it is: without a route it is for anybody.
    draft.emit(PhaseReady(phase=phase.key, item=item.index, attempt=item.attempt, due_at=due_at, arm=arm))
