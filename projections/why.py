"""Why: what became of a phase, told in a paragraph: why it ran, for what it waited, why it failed, what comes next.

Derived from the run's events and the time alone, so the same log always gives the same account.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from bus.errors import NotFound
from bus.problem import Problem
from bus.rules.events import Commit, Event, PhaseReady, RunPaused, RunRedriven, RunResumed, RunStarted
from bus.rules.folding import fold
from bus.rules.plan import TASK
from bus.rules.run import SUCCEEDED, TERMINAL, Attempt, Item, PhaseState, RunState
from projections.attention import opening

# Shorter than this nobody calls it waiting.
_WORTH_TELLING_S = 0.1
_ATTEMPTS_TOLD = 4
_CHAIN = 4
_NAMED = 3


class Why(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The account of a phase, or of one item of it. What does not apply is empty; `next_step` is a command to type."""

    run: str
    phase: str
    status: str
    opened: str
    waited: str = ""
    failed: str = ""
    next: str = ""
    next_step: str = ""

    @property
    def paragraph(self) -> str:
        return " ".join(part for part in (self.opened, self.waited, self.failed, self.next) if part)


def why(commits: Sequence[Commit], phase: str, now: datetime, item: int | None = None) -> Why:
    """The account of a phase of the run with these commits. Raises NotFound if it has no such phase or item."""
    state = fold(commits)
    if state is None:
        raise NotFound("the run has not started")
    found = state.phases.get(phase)
    if found is None:
        raise NotFound(f"run {state.run} has no phase {phase!r}; it has {', '.join(state.phases)}")
    unit = found.item(item) if item is not None else _told_of(found)
    if item is not None and unit is None:
        raise NotFound(f"phase {phase!r} has no item {item}: it has {len(found.items)}")
    return _Account(state, found, unit, commits, now, is_item=item is not None).told()


def _told_of(phase: PhaseState) -> Item | None:
    """Of many items the one that tells most: the first that failed, then one that is under way, then the last."""
    for status in ("failed", "in_progress", "ready"):
        found = next((item for item in phase.items if item.status == status), None)
        if found is not None:
            return found
    return phase.items[-1] if phase.items else None


class _Account:
    def __init__(
        self,
        state: RunState,
        phase: PhaseState,
        item: Item | None,
        commits: Sequence[Commit],
        now: datetime,
        *,
        is_item: bool,
    ) -> None:
        self.state, self.phase, self.item, self.now = state, phase, item, now
        self.is_item = is_item
        self.events = [(commit.at, event) for commit in commits for event in commit.events]
        self.began_at, self.beginning = self._pass()

    def told(self) -> Why:
        name = self.phase.key if not self.is_item or self.item is None else f"{self.phase.key}:{self.item.index}"
        following, command = self._next()
        return Why(
            run=self.state.run,
            phase=name,
            status=self.item.status if self.is_item and self.item is not None else self.phase.status,
            opened=" ".join([self._opened(), *self._computed()]),
            waited=self._waited(),
            failed=self._failed(),
            next=following,
            next_step=command,
        )

    # Why it ran

    def _pass(self) -> tuple[datetime, RunStarted | RunRedriven]:
        """When the pass began that the phase is in, and the event that began it."""
        found = None
        for at, event in self.events:
            if isinstance(event, RunStarted) or (isinstance(event, RunRedriven) and self.phase.key in event.phases):
                found = at, event
        assert found is not None, "a run begins with its start"
        return found

    def _opened(self) -> str:
        phase, state = self.phase, self.state
        needs = state.plan.graph[phase.key].needs
        if phase.status == "skipped":
            by = f" by {phase.answered_by}" if phase.answered_by else ""
            return f"{phase.key} was skipped{by}: {phase.reason}."
        if phase.opened_at is None or phase.status == "pending":
            missing = [f"{key} ({_said(state.phases[key].status)})" for key in needs if not state.phases[key].lets_pass]
            return (
                f"{phase.key} has not opened: it needs {_listed(missing)}."
                if missing
                else f"{phase.key} has not opened."
            )
        since = phase.opened_at - self.began_at
        if isinstance(self.beginning, RunRedriven) and phase.opened_at - self.began_at < timedelta(milliseconds=1):
            afresh = " afresh" if self.beginning.afresh else ""
            return f"{phase.key} ran again{afresh} because {self.beginning.by} redrove the run."
        last = self._last_need()
        if last is None:
            return f"{phase.key} opened when the run began: it needs no other phase."
        others = f", the last of {_listed(list(needs))}," if len(needs) > 1 else ""
        return f"{phase.key} opened {_words(since)} after the run began, when {last.key}{others} {_ended(last)}."

    def _last_need(self) -> PhaseState | None:
        needs = [self.state.phases[key] for key in self.state.plan.graph[self.phase.key].needs]
        ended = [(each.ended_at, place) for place, each in enumerate(needs) if each.ended_at is not None]
        return needs[max(ended)[1]] if ended else None

    def _computed(self) -> Iterator[str]:
        items = self.phase.items
        if len(items) > 1 and not self.is_item:
            done = sum(1 for each in items if each.status in SUCCEEDED)
            failed = sum(1 for each in items if each.status == "failed")
            bad = f", {failed} failed" if failed else ""
            yield f"Of its {len(items)} items {done} completed{bad}."
        last = self._attempts()[-1] if self._attempts() else None
        if last is not None and last.cached is not None:
            yield f"Its output was taken from the cache: run {last.cached.run} had computed it."
        elif last is not None and last.because:
            yield f"It was computed, not taken from the cache, because {last.because}."

    # For what it waited

    def _waited(self) -> str:
        parts = list(self._waits())
        return f"It waited {_listed(parts)}." if parts else ""

    def _waits(self) -> Iterator[str]:
        phase = self.phase
        opened_at = phase.opened_at
        dependency_s = ((opened_at or self.now) - self.began_at).total_seconds()
        is_pending = phase.status == "pending" and self.state.is_open
        last = self._last_need() if opened_at is not None else None
        if (last is not None or is_pending) and dependency_s >= _WORTH_TELLING_S:
            yield f"{_words_s(dependency_s)} for {last.key if last is not None else 'what it needs'}"
        if phase.gate and opened_at is not None:
            yield self._gate(opened_at)
        queued = delayed = paused = 0.0
        for ready_at, due_at, taken_at in self._queue():
            paused_s = self._paused_s(ready_at, taken_at)
            delay_s = max((min(due_at, taken_at) - ready_at).total_seconds(), 0.0)
            delayed += delay_s
            paused += paused_s
            queued += max((taken_at - ready_at).total_seconds() - delay_s - paused_s, 0.0)
        if queued >= _WORTH_TELLING_S:
            yield f"{_words_s(queued)} in the queue for an instance that offers {self.state.capability(phase.key)!r}"
        if delayed >= _WORTH_TELLING_S:
            yield f"{_words_s(delayed)} between attempts, as its retry policy says"
        if paused >= _WORTH_TELLING_S:
            yield f"{_words_s(paused)} because the run was paused by {_listed(self._pausers())}"

    def _gate(self, opened_at: datetime) -> str:
        phase, node = self.phase, self.state.plan.graph[self.phase.key].phase
        for_s = _words((phase.ended_at or self.now) - opened_at)
        if phase.child:
            return f"{for_s} for run {phase.child}"
        if node.signal is not None:
            came = f", which {phase.answered_by} sent" if phase.answered_by and phase.status == "completed" else ""
            return f"{for_s} for signal {node.signal.signal!r}{came}"
        asked = f" of {_listed(list(phase.asked), 'or')}" if phase.asked else ""
        escalated = " (it was escalated)" if phase.is_escalated else ""
        given = f", which {phase.answered_by} gave" if phase.status == "approved" else ""
        return f"{for_s} for an answer{asked}{escalated}{given}"

    def _queue(self) -> Iterator[tuple[datetime, datetime, datetime]]:
        """Each wait of the item for somebody to take it: since when, from when on it could be, and until when."""
        if self.item is None:
            return
        starts = {attempt.number: attempt.started_at for attempt in self.item.attempts}
        seen: dict[int, tuple[datetime, datetime]] = {}
        for at, event in self._own():
            if isinstance(event, PhaseReady):
                # Resumed, it is made ready once more: it has waited since the first time.
                first = seen[event.attempt][0] if event.attempt in seen else at
                seen[event.attempt] = first, event.due_at or first
        for attempt, (ready_at, due_at) in seen.items():
            yield ready_at, due_at, starts.get(attempt) or self.item.ended_at or self.state.ended_at or self.now

    def _paused_s(self, since: datetime, until: datetime) -> float:
        total, paused_at = 0.0, None
        for at, event in (*self.events, (self.now, None)):
            if isinstance(event, RunPaused):
                paused_at = at
            elif paused_at is not None and (event is None or isinstance(event, RunResumed)):
                total += max((min(at, until) - max(paused_at, since)).total_seconds(), 0.0)
                paused_at = None
        return total

    def _pausers(self) -> list[str]:
        return list(dict.fromkeys(event.by for _, event in self.events if isinstance(event, RunPaused)))

    def _own(self) -> Iterator[tuple[datetime, Event]]:
        """The item's events of this pass."""
        index = self.item.index if self.item is not None else None
        for at, event in self.events:
            is_own = getattr(event, "phase", None) == self.phase.key and getattr(event, "item", None) == index
            if is_own and at >= self.began_at:
                yield at, event

    # Why it failed

    def _attempts(self) -> Sequence[Attempt]:
        return self.item.attempts[self.item.earlier :] if self.item is not None else ()

    def _failed(self) -> str:
        attempts = [each for each in self._attempts() if each.problem is not None]
        told = [self._attempt(each) for each in attempts[-_ATTEMPTS_TOLD:]]
        left_out = len(attempts) - len(told)
        if left_out:
            told.insert(0, f"{left_out} attempts before had failed.")
        problem = self.item.problem if self.is_item and self.item is not None else self.phase.problem
        status = self.item.status if self.is_item and self.item is not None else self.phase.status
        if status == "failed" and problem is not None:
            tries = f" after {len(attempts)} attempt{'s' if len(attempts) > 1 else ''}" if attempts else ""
            told.append(f"It was given up{tries}: {_chain(problem)}.")
        elif status == "cancelled":
            told.append(f"It was stopped: {self.phase.reason or 'the run was'}.")
        return " ".join(told)

    def _attempt(self, attempt: Attempt) -> str:
        assert attempt.problem is not None, "it has failed"
        where = f" (item {self.item.index})" if self.item is not None and self.item.index is not None else ""
        evidence = f"; seen before that: {attempt.evidence}" if attempt.evidence else ""
        how = "failed" if attempt.cause == "error" else f"ended {_said(attempt.cause)}"
        lasted = _words_s(attempt.duration_s or 0.0)
        who = f"agent {attempt.agent}, instance {attempt.instance}"
        return f"Attempt {attempt.number}{where}, by {who}, {how} after {lasted}: {_chain(attempt.problem)}{evidence}."

    # What comes next

    def _next(self) -> tuple[str, str]:
        state, phase, item, run = self.state, self.phase, self.item, self.state.run
        status = item.status if self.is_item and item is not None else phase.status
        if state.paused_at is not None and status in ("ready", "pending"):
            return f"The run is paused by {state.paused_by}: nothing of it is taken.", f"phasebus run resume {run}"
        if status == "waiting":
            until = f" until {_clock(phase.expires_at)}" if phase.expires_at is not None else ""
            return f"It waits{until}.", opening(state, phase)
        if status == "ready" and item is not None and item.ready_at is not None:
            if item.ready_at > self.now:
                return f"The next attempt is due in {_words(item.ready_at - self.now)}.", f"phasebus run follow {run}"
            if state.is_in_line:
                turn = f"It waits for its turn: what was sent before it with key {state.key!r} goes first."
                return turn, f"phasebus dead ls --capability {state.capability(phase.key)}"
            return "It waits to be taken.", "phasebus agent run FILE.py:agent"
        if status == "in_progress" and item is not None and item.holder is not None:
            holder = item.holder
            lasts, left = self.now - holder.started_at, holder.deadline_at - self.now
            bound = f"has until {_clock(holder.deadline_at)}" if left > timedelta(0) else "is past its deadline"
            note = f" ({holder.fraction:.0%}{f': {holder.note}' if holder.note else ''})" if holder.fraction else ""
            text = f"Attempt {holder.number} is under way on {holder.instance} since {_words(lasts)}{note} and {bound}."
            return text, f"phasebus doctor {run}"
        if status == "pending" and state.is_open:
            return "It opens when what it needs has ended.", f"phasebus doctor {run}"
        if status in ("failed", "cancelled") and not state.is_open:
            unlocked = "Redriving the run tries it again; what succeeded is kept."
            if state.plan.name == TASK or state.plan.graph[phase.key].phase.capability is not None:
                return f"{unlocked} Its work is a dead letter." if status == "failed" else unlocked, _redrive(run)
            return unlocked, _redrive(run)
        if status == "failed":
            return "The run goes on without it." if phase.lets_pass else "The run ends as failed when the rest has.", ""
        if phase.ended_at is not None and status in TERMINAL:
            lasted = phase.ended_at - (phase.opened_at or phase.ended_at)
            return f"It was {_said(status)} {_words(lasted)} after it opened.", ""
        return "", ""


def _redrive(run: str) -> str:
    return f"phasebus run redrive {run}"


def _chain(problem: Problem) -> str:
    """The problem, and those behind it."""
    links = [f"{problem} [{problem.code}]"]
    # The first of the exceptions is what the problem itself says.
    links += list(problem.causes[1:_CHAIN])
    cause = problem.cause
    while cause is not None and len(links) < _CHAIN:
        links.append(f"{cause}{f' (agent {cause.agent})' if cause.agent else ''}")
        cause = cause.cause
    return ", because ".join(link.rstrip(".") for link in links)


def _ended(phase: PhaseState) -> str:
    by = f" by {phase.answered_by}" if phase.answered_by else ""
    return f"was {_said(phase.status)}{by}" if phase.status in ("skipped", "approved") else _said(phase.status)


def _said(status: str) -> str:
    return status.replace("_", " ")


def _listed(names: Sequence[str], word: str = "and") -> str:
    shown = list(names[:_NAMED])
    if len(names) > _NAMED:
        shown.append(f"{len(names) - _NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _words(length: timedelta) -> str:
    return _words_s(length.total_seconds())


def _words_s(seconds: float) -> str:
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
