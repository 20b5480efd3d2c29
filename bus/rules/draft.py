"""A draft: events being decided, and everything that follows from them within the same commit.

Phases open as soon as what they need has succeeded, are skipped as soon as it can't any more, and the run ends
with its last phase. Nobody orchestrates: whoever commits an ending commits its consequences with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import UNSET
from msgspec.structs import replace

from bus.errors import Refused
from bus.problem import Problem
from bus.rules.events import (
    Arm,
    Event,
    PhaseCancelled,
    PhaseCompleted,
    PhaseExpanded,
    PhaseFailed,
    PhaseReady,
    PhaseSkipped,
    PhaseUndoing,
    PhaseWaiting,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunRedriven,
    RunRollingBack,
    RunStarted,
)
from bus.rules.folding import Folding
from bus.rules.inputs import child_name, input_of, is_wanted, items_of
from bus.rules.plan import Plan, WaitFor
from bus.rules.references import Unresolved
from bus.rules.route import NO_ROUTES, Routes
from bus.rules.run import TERMINAL, Item, PhaseState, RunState
from bus.rules.undoing import to_undo, undoing_of

# Items of an `each` phase that are ready or under way at once, unless its width says less: one commit holds them all.
WIDEST = 1_000
_CHILD_SLACK = timedelta(minutes=1)
PLAN = "the plan"
"""Who rolls a run back that has failed, if its plan says so."""


class Draft:
    """Events decided so far, and the state as it is with them: later rules see what earlier ones did.

    What becomes ready is due at `due_at` and goes to `arm`, if told. A state that is just born is of the same commit:
    `begun` is the event it was born of.
    """

    def __init__(
        self,
        state: RunState,
        now: datetime,
        routes: Routes = NO_ROUTES,
        *,
        arm: Arm | None = None,
        due_at: datetime | None = None,
        begun: RunStarted | None = None,
    ) -> None:
        self.now = now
        self.routes = routes
        self.events: list[Event] = [] if begun is None else [begun]
        self._arm = arm
        self._due_at = due_at
        position = state.position + (begun is None)
        self._folding = Folding(state, position)
        assert self._folding.state is not None, "a draft begins with a state"
        self.state = self._folding.state
        """As if the commit of these events stood right behind the one before; it moves with them."""
        self.state.position = position

    def must_be_open(self) -> None:
        """Raises Refused if the run has ended."""
        if not self.state.is_open:
            raise Refused(f"run {self.state.run} has ended: it is {self.state.status}")

    def emit(self, *events: Event) -> None:
        if self.routes or self._arm is not None or self._due_at is not None:
            events = tuple(self._on_its_way(each) if isinstance(each, PhaseReady) else each for each in events)
        self.events.extend(events)
        self._folding.apply(events, self.now)

    def _on_its_way(self, event: PhaseReady) -> PhaseReady:
        """When it is due, and with whom a route gives it to, if there is one: retries go where the attempt before
        went."""
        if self._due_at is not None:
            event = replace(event, due_at=self._due_at)
        if event.arm is not None or self._arm is not None:
            return replace(event, arm=event.arm or self._arm)
        route = self.routes.get(self.state.capability(event.phase) or "")
        if route is None:
            return event
        item = self.state.phases[event.phase].item(event.item)
        return replace(event, arm=route.arm(self.state.sticks_to, item.arm if item is not None else None))

    def item_ended(self, key: str, item: Item) -> None:
        """An item has ended: let the next one of a bounded `each` go, or end the phase, and see what follows."""
        phase = self.state.phases[key]
        if item.index is not None:
            has_failed = phase.items[item.index].status == "failed"
            if has_failed and self.state.plan.graph[key].phase.fail_fast:
                left = [other.index for other in phase.items if other.status not in TERMINAL]
                self.emit(
                    *(PhaseCancelled(phase=key, item=index, reason=f"item {item.index} failed") for index in left)
                )
            self.advance(phase.key)
            if self.state.phases[key].status not in TERMINAL:
                return
        self.phase_ended(key)

    def phase_ended(self, key: str) -> None:
        """A phase has ended: open what waited for it, skip what can't run any more, end the run after the last one."""
        phase = self.state.phases[key]
        if phase.undoing is not None and phase.status == "failed":
            self._stop_rolling_back(phase)
            return
        if phase.undoing is not None:
            self.roll_back()
            return
        self.open(self.state.plan.graph[key].feeds)

    def roll_back(self) -> None:
        """Undo the next phase of a rollback; when all are undone, begin the new pass, or end a run that has failed, or
        is cancelled."""
        rollback = self.state.rollback
        assert rollback is not None, "a phase is undone in a rollback"
        if not rollback.left and rollback.problem is not None:
            self.emit(RunFailed(problem=rollback.problem))
            return
        if not rollback.left and rollback.cancels:
            self.emit(RunCancelled(by=rollback.by, reason=rollback.reason))
            return
        if not rollback.left:
            deadline_at = self.state.deadline_at
            self.emit(RunRedriven(by=rollback.by, phases=rollback.phases, deadline_at=deadline_at, afresh=True))
            self.open(list(self.state.phases))
            return
        key = rollback.left[0]
        about = undoing_of(self.state, key)
        effects = UNSET if about.effects is None else about.effects.raw
        self.emit(PhaseUndoing(phase=key, input=about.input.raw, output=about.output.raw, effects=effects))
        item = self.state.phases[key].items[0]
        self.emit(PhaseReady(phase=key, attempt=item.attempt + 1))

    def _stop_rolling_back(self, phase: PhaseState) -> None:
        """What can't be undone needs a person: the run ends as it is."""
        title = f"{phase.key} could not be undone, so the rollback stopped"
        cause = phase.problem.as_cause() if phase.problem is not None else None
        problem = Problem("rollback_failed", title, "permanent", str(phase.problem), cause=cause)
        still_open = [other.key for other in self.state.phases.values() if other.status not in TERMINAL]
        self.emit(*(PhaseCancelled(phase=key, reason=title) for key in still_open))
        self.end_failed(problem)

    def end_failed(self, problem: Problem) -> None:
        """No phase is open any more, and the run has failed. If its plan says so, what it did is undone first."""
        state, rollback = self.state, self.state.rollback
        if rollback is not None and rollback.left:
            if rollback.problem is not None:
                detail = "; ".join(filter(None, [problem.detail, f"it was undone because {rollback.problem}"]))
                problem = replace(problem, detail=detail)
            self.emit(RunFailed(problem=problem))
            return
        undo = to_undo(state, state.phases) if state.plan.on_failure == "rollback" else ()
        if not undo:
            self.emit(RunFailed(problem=problem))
            return
        self.emit(RunRollingBack(by=PLAN, phases=(), undo=undo, deadline_at=extended(state, self.now), problem=problem))
        self.roll_back()

    def open(self, keys: Sequence[str]) -> None:
        """Open those of `keys` whose time has come, and whatever follows from that at once."""
        if self.state.rollback is not None and self.state.rollback.left:
            # Nothing begins while something is being undone; the new pass opens what can be.
            return
        frontier = deque(keys)
        while frontier:
            key = frontier.popleft()
            phase = self.state.phases[key]
            if phase.status != "pending":
                continue
            needs = [self.state.phases[need] for need in self.state.plan.graph[key].needs]
            lost = next((need for need in needs if need.status in TERMINAL and not need.lets_pass), None)
            if lost is not None:
                self.emit(PhaseSkipped(phase=key, reason=f"{lost.key} {lost.status}"))
            elif all(need.lets_pass for need in needs):
                self._open(key)
            if self.state.phases[key].status in TERMINAL:
                frontier.extend(self.state.plan.graph[key].feeds)
        self._end_run()

    def _open(self, key: str) -> None:
        node = self.state.plan.graph[key]
        try:
            if not is_wanted(self.state, key):
                self.emit(PhaseSkipped(phase=key, reason=f"not so: {node.phase.when}", lets_pass=True))
                return
        except Unresolved as error:
            self.emit(PhaseFailed(phase=key, problem=Problem("unresolved", str(error), "configuration")))
            return
        if node.phase.signal is not None:
            self._await_signal(key, node.phase.signal)
            return
        if node.phase.plan is not None:
            self._await_child(key, node.phase.plan)
            return
        if node.phase.approval is not None:
            approval = node.phase.approval
            expires_at = self.now + timedelta(seconds=approval.expires_s)
            if approval.on_expiry == "wait":
                expires_at = self.state.deadline_at
            self.emit(PhaseWaiting(phase=key, expires_at=expires_at, prompt=approval.prompt, who=tuple(approval.who)))
            return
        try:
            if node.each is None:
                input_of(self.state, key, None)
                item = self.state.phases[key].item(None)
                self.emit(PhaseReady(phase=key, attempt=(item.attempt if item else self.state.phases[key].epoch) + 1))
                return
            # A later pass goes over the items of the first one, unless the list was given anew and is another.
            count, before = len(items_of(self.state, key)), len(self.state.phases[key].items)
            if not before or count != before:
                self.emit(PhaseExpanded(phase=key, items=count))
        except Unresolved as error:
            self.emit(PhaseFailed(phase=key, problem=Problem("unresolved", str(error), "configuration")))
            return
        self.advance(key)

    def _await_signal(self, key: str, awaited: WaitFor) -> None:
        early = self.state.signals.get(awaited.signal)
        if early is not None:
            self.emit(PhaseCompleted(phase=key, output=early.raw))
        else:
            expires_at = self.now + timedelta(seconds=awaited.expires_s)
            self.emit(PhaseWaiting(phase=key, expires_at=expires_at, signal=awaited.signal))

    def _await_child(self, key: str, plan: Plan) -> None:
        """Wait for a run of the phase's own plan; whoever commits this starts it."""
        try:
            input_of(self.state, key, None)
        except Unresolved as error:
            self.emit(PhaseFailed(phase=key, problem=Problem("unresolved", str(error), "configuration")))
            return
        # The child ends itself before that; this is for when nothing is heard of it.
        expires_at = self.now + timedelta(seconds=plan.timeout_s) + _CHILD_SLACK
        child = child_name(self.state.run, key, self.state.passes)
        self.emit(PhaseWaiting(phase=key, expires_at=expires_at, child=child))

    def advance(self, key: str) -> None:
        """Make pending items ready while there is room in the phase's width; end the phase after its last item."""
        phase = self.state.phases[key]
        width = self.state.plan.graph[phase.key].phase.width or WIDEST
        room = width - (phase.open_items - phase.pending)
        events: list[Event] = []
        for item in phase.waiting():
            if room <= 0:
                break
            try:
                input_of(self.state, key, item.index)
            except Unresolved as error:
                problem = Problem("unresolved", str(error), "configuration")
                events.append(PhaseFailed(phase=key, item=item.index, problem=problem))
            else:
                events.append(PhaseReady(phase=key, item=item.index, attempt=item.attempt + 1))
                room -= 1
        self.emit(*events)
        phase = self.state.phases[key]
        if not phase.open_items:
            self._close(phase)

    def _close(self, phase: PhaseState) -> None:
        failed = [item for item in phase.items if item.status == "failed"]
        if not failed:
            self.emit(PhaseCompleted(phase=phase.key))
            return
        detail = f"the first, item {failed[0].index}: {failed[0].problem}"
        title = f"{len(failed)} of {len(phase.items)} items failed"
        problem = Problem("items_failed", title, "permanent", detail, cause=_first_cause(failed))
        self.emit(PhaseFailed(phase=phase.key, problem=problem))

    def _end_run(self) -> None:
        state = self.state
        if state.open_phases or not state.is_open:
            return
        if all(phase.lets_pass for phase in state.phases.values()):
            self.emit(RunCompleted(failures=tuple(state.failures)))
            return
        failed = [phase for phase in state.phases.values() if phase.status == "failed" and not phase.lets_pass]
        stopped = [phase for phase in state.phases.values() if phase.status == "cancelled"]
        detail = "; ".join(
            [f"{phase.key}: {phase.problem}" for phase in failed] + [f"{p.key}: cancelled" for p in stopped]
        )
        title = (
            f"{len(failed) or len(stopped)} of {len(state.phases)} phases {'failed' if failed else 'were cancelled'}"
        )
        self.end_failed(Problem("phases_failed", title, "permanent", detail, cause=_first_cause(failed)))


def extended(state: RunState, now: datetime) -> datetime:
    """The deadline of a run that does something again: as if it began now, and not before the one it had."""
    return max(state.deadline_at, now + timedelta(seconds=state.plan.timeout_s))


def _first_cause(failed: Sequence[Item] | Sequence[PhaseState]) -> Problem | None:
    """The problem of the first of them that has one."""
    return next((each.problem.as_cause() for each in failed if each.problem is not None), None)
