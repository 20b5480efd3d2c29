"""Gates: what ends the waiting of a phase: an answer, a signal, the end of a child run, or that nothing came."""

from __future__ import annotations

from datetime import timedelta

from bus.errors import Refused
from bus.problem import Problem
from bus.rules.commands import Answer, Report, Signal
from bus.rules.draft import Draft
from bus.rules.events import PhaseApproved, PhaseCompleted, PhaseEscalated, PhaseFailed, RunSignalled


def answer(draft: Draft, command: Answer) -> None:
    phase = draft.state.phases.get(command.phase)
    if phase is None:
        raise Refused(f"run {draft.state.run} has no phase {command.phase!r}")
    if phase.status != "waiting":
        raise Refused(f"phase {phase.key} does not wait for an answer: it is {phase.status}")
    if command.expired and phase.expires_at is not None and draft.now < phase.expires_at:
        raise Refused(f"phase {phase.key} waits until {phase.expires_at:%Y-%m-%d %H:%M:%S}")
    signal = draft.state.plan.graph[phase.key].phase.signal
    if signal is not None and not command.expired:
        raise Refused(f"phase {phase.key} waits for signal {signal.signal!r}, not for an answer")
    if phase.child and not command.expired:
        raise Refused(f"phase {phase.key} waits for run {phase.child}, not for an answer")
    if command.gate is not None and command.gate != phase.gate:
        raise Refused(f"phase {phase.key} was opened again since, in pass {phase.gate}: look at it anew")
    if phase.asked and not command.expired and command.by not in phase.asked:
        raise Refused(f"phase {phase.key} is for {', '.join(phase.asked)} to answer, not for {command.by}")
    approval = draft.state.plan.graph[phase.key].phase.approval
    if command.expired and approval is not None and approval.on_expiry == "escalate" and not phase.is_escalated:
        expires_at = draft.now + timedelta(seconds=approval.expires_s)
        draft.emit(PhaseEscalated(phase=phase.key, to=tuple(approval.escalate_to), expires_at=expires_at))
        return
    if command.approve:
        draft.emit(PhaseApproved(phase=phase.key, by=command.by, comment=command.comment))
    elif command.expired:
        missing = f"signal {signal.signal!r} did not come" if signal is not None else "nobody answered"
        if phase.child:
            missing = f"run {phase.child} did not end"
        problem = Problem("expired", f"{missing} in time", "permanent")
        draft.emit(PhaseFailed(phase=phase.key, problem=problem))
    else:
        problem = Problem("rejected", f"rejected by {command.by}", "permanent", detail=command.comment)
        draft.emit(PhaseFailed(phase=phase.key, problem=problem))
    draft.phase_ended(phase.key)


def signal(draft: Draft, command: Signal) -> None:
    draft.must_be_open()
    graph = draft.state.plan.graph
    awaited = {key: node.phase.signal.signal for key, node in graph.items() if node.phase.signal is not None}
    if command.signal not in awaited.values():
        known = ", ".join(dict.fromkeys(awaited.values())) or "none"
        raise Refused(f"no phase of run {draft.state.run} waits for {command.signal!r}; they wait for: {known}")
    waiting = [
        key
        for key, phase in draft.state.phases.items()
        if phase.status == "waiting" and awaited.get(key) == command.signal
    ]
    if not waiting:
        draft.emit(RunSignalled(signal=command.signal, by=command.by, data=command.data))
    for key in waiting:
        draft.emit(PhaseCompleted(phase=key, output=command.data, by=command.by))
    for key in waiting:
        draft.phase_ended(key)


def report(draft: Draft, command: Report) -> None:
    phase = draft.state.phases.get(command.phase)
    if phase is None or phase.status != "waiting" or not phase.child or phase.child != command.child:
        raise Refused(f"phase {command.phase!r} does not wait for run {command.child}")
    if isinstance(command.outcome, Problem):
        draft.emit(PhaseFailed(phase=phase.key, problem=command.outcome))
    else:
        draft.emit(PhaseCompleted(phase=phase.key, output=command.outcome, by=command.child))
    draft.phase_ended(phase.key)
