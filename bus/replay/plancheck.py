"""Plan check: what would have become of a run if its plan were another one, told from its commits.

A run keeps its plan, so this is for the moment before a fork onto a new plan, and before the next runs of it. What was
asked of the run is asked again of one with the new plan: who took what, which results came, how gates were answered.
Where the two part is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from bus.history.diff import first_difference
from bus.replay.alternative import BY, Alternative, Finding
from bus.rules.events import Commit
from bus.rules.inputs import given_to
from bus.rules.plan import Phase, Plan
from bus.rules.references import Unresolved
from bus.rules.run import SUCCEEDED, PhaseState

Outcome = Literal["unaffected", "differs", "breaks"]


class Check(msgspec.Struct, frozen=True):
    """What the new plan means for one run; `findings` in the order of the log."""

    run: str
    plan: str
    outcome: Outcome
    findings: Sequence[Finding] = ()


def check(commits: Sequence[Commit], plan: Plan) -> Check:
    """Replay a run's commits, from its first on, through `plan` and the rules as they are now.

    New phases are taken to succeed, unless the output of one is needed: what waits for that can't be told further.
    What an ended run has done is history, and a plan without a place for it is only different; of a run that is still
    open, which would be moved onto the plan, that breaks.
    """
    alternative = Alternative(plan)
    for commit in commits:
        alternative.commit(commit)
    findings = sorted(_Comparison(alternative).findings(), key=lambda each: each.position)
    outcome: Outcome = "unaffected"
    if findings:
        outcome = "breaks" if any(each.breaks for each in findings) else "differs"
    was = alternative.was
    return Check(was.run, f"{was.plan.name} {was.plan.version}", outcome, findings)


class _Comparison:
    """The run as it was and as it would be, phase by phase."""

    def __init__(self, alternative: Alternative) -> None:
        self._alternative = alternative
        self._was, self._now = alternative.was, alternative.now

    def findings(self) -> Iterator[Finding]:
        """Where the two part, phase by phase; how an event alone differs is said if nothing else is."""
        found = [*self._alternative.findings]
        for key in dict.fromkeys([*self._was.phases, *self._now.phases]):
            found += self._of_phase(key)
        if not found and self._was.status != self._now.status:
            said = f"the run would be {self._now.status}, and is {self._was.status}"
            found.append(Finding(self._alternative.position, "", said, self._now.status == "failed"))
        if not found and self._alternative.parted is not None:
            found.append(self._alternative.parted)
        yield from found

    def _of_phase(self, key: str) -> Iterator[Finding]:
        was, now = self._was.phases.get(key), self._now.phases.get(key)
        opened, would_open = (opened.get(key) for opened in self._alternative.opened)
        if was is None:
            if would_open is not None:
                yield self._new(key, would_open)
        elif now is None:
            if opened is not None:
                breaks = self._was.is_open and _has_done(was)
                yield Finding(opened, key, f"is {was.status}, and the plan has no such phase", breaks)
        elif opened is not None and would_open is None:
            needs = [need for need in self._now.plan.graph[key].needs if not self._now.phases[need].lets_pass]
            said = f"opened here, and would still wait for {', '.join(needs) or 'the run'}"
            yield Finding(opened, key, said, self._was.is_open and _has_done(was))
        elif opened is not None or would_open is not None:
            yield from self._opened_in_both(was, now, opened, would_open or 0)

    def _new(self, key: str, position: int) -> Finding:
        now = self._now.phases[key]
        if now.status == "failed":
            return Finding(position, key, f"is new, and would be failed ({now.problem})", True)
        if now.status == "skipped" and now.answered_by != BY:
            return Finding(position, key, f"is new, and would be skipped ({now.reason})")
        done = [
            other for other in self._behind(key) if other in self._was.phases and _has_done(self._was.phases[other])
        ]
        if done:
            said = f"is new, and comes before {', '.join(done)}, which had begun without it"
            return Finding(position, key, said, self._was.is_open)
        if key in self._alternative.needed:
            return Finding(position, key, "is new and would open here; what needs its output can't be told")
        return Finding(position, key, "is new, and would open here")

    def _behind(self, key: str) -> Iterator[str]:
        """Every phase of the new plan that directly or indirectly waits for this one."""
        seen, frontier = {key}, deque([key])
        while frontier:
            for later in self._now.plan.graph[frontier.popleft()].feeds:
                if later not in seen:
                    seen.add(later)
                    frontier.append(later)
                    yield later

    def _opened_in_both(
        self, was: PhaseState, now: PhaseState, opened: int | None, would_open: int
    ) -> Iterator[Finding]:
        key = was.key
        if opened is None:
            would_fail = now.status == "failed"
            said = f"would be failed here ({now.problem})" if would_fail else "would open here, and has not opened"
            yield Finding(would_open, key, said, would_fail)
            return
        place = min(opened, would_open)
        if opened != would_open:
            yield Finding(place, key, f"would open at {would_open}, and opened at {opened}")
        before, after = self._was.plan.graph[key].phase, self._now.plan.graph[key].phase
        kinds = [_kind(before), _kind(after)]
        if kinds[0] != kinds[1]:
            said = f"would be {kinds[1]}, and was {kinds[0]}"
            yield Finding(place, key, said, self._was.is_open and _has_done(was))
            return
        if was.status != now.status:
            problem = f" ({now.problem})" if now.problem is not None else ""
            said = f"would be {now.status}{problem}, and is {was.status}"
            yield Finding(place, key, said, now.status == "failed")
            return
        if before.capability != after.capability:
            yield Finding(place, key, f"would need {after.capability!r}, and needed {before.capability!r}")
        if len(was.items) != len(now.items):
            yield Finding(place, key, f"would have {len(now.items)} items, and has {len(was.items)}")
        elif was.items and (other := self._other_input(key)) is not None:
            yield Finding(place, key, other)

    def _other_input(self, key: str) -> str | None:
        """How what its handler is given differs, if it does."""
        states = self._was, self._now
        # After a rollback what it was given may not be there any more.
        if not all(state.phases[need].lets_pass for state in states for need in state.plan.graph[key].needs):
            return None
        try:
            given, would_get = (given_to(state, key) for state in states)
        except (Unresolved, LookupError):
            return None
        difference = first_difference(given, would_get)
        if difference is None:
            return None
        return f"would be given something else{f' at {difference.path}' if difference.path else ''}"


def _has_done(phase: PhaseState) -> bool:
    return phase.status in SUCCEEDED or any(item.attempts for item in phase.items)


def _kind(phase: Phase) -> str:
    if phase.approval is not None:
        return "an approval"
    return "a wait for a signal" if phase.signal is not None else "one by one work" if phase.each else "work"
