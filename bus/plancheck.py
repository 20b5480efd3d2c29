"""Plan check: what would have become of a run if its plan were another one, told from its commits.

A run keeps its plan, so this is for the moment before a fork onto a new plan, and before the next runs of it. What was
asked of the run is asked again of one with the new plan: who took what, which results came, how gates were answered.
Where the two part is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Literal

import msgspec

from bus.commands import Answer, Begin, Command, Complete, Redrive, Skip, Take
from bus.conditions import parse
from bus.decide import decide
from bus.diff import first_difference
from bus.errors import Refused
from bus.events import Commit, Event, PhaseProgressed, ResultRefused, RunStarted, UnknownEvent, type_of
from bus.folding import Folding, evolve
from bus.hindsight import asked
from bus.inputs import given_to
from bus.plan import Phase, Plan
from bus.references import Unresolved, references
from bus.run import SUCCEEDED, TERMINAL, PhaseState, RunState

Outcome = Literal["unaffected", "differs", "breaks"]
BY = "plan check"


class Finding(msgspec.Struct, frozen=True):
    """One place where the two part. `breaks`: the run would fail where it did not, or what it has done has no place."""

    position: int
    phase: str
    says: str
    breaks: bool = False


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
    replay = _Replay(plan)
    for commit in commits:
        replay.commit(commit)
    findings = sorted(replay.findings(), key=lambda each: each.position)
    outcome: Outcome = "unaffected"
    if findings:
        outcome = "breaks" if any(each.breaks for each in findings) else "differs"
    was = replay.was
    return Check(was.run, f"{was.plan.name} {was.plan.version}", outcome, findings)


class _Replay:
    """The run as it was and as it would be, side by side."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._needed = _outputs_needed(plan)
        self._was = Folding(None)
        self._now: RunState | None = None
        self._held: deque[Command] = deque()
        self._opened: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._late: list[Finding] = []
        self._unknown: list[Finding] = []
        self._parted: Finding | None = None
        self._position = 0

    @property
    def was(self) -> RunState:
        assert self._was.state is not None, "a run has a first commit"
        return self._was.state

    @property
    def now(self) -> RunState:
        assert self._now is not None, "a run has a first commit"
        return self._now

    def commit(self, commit: Commit) -> None:
        """Ask again what this commit answered."""
        self._position = commit.position
        for event in commit.events:
            if isinstance(event, UnknownEvent):
                said = f"{event.type} is not known to this version: what it did is not replayed"
                self._unknown.append(Finding(commit.position, "", said))
        happened: list[Event] = []
        for command in asked(self._was, commit):
            mine = self._translated(command)
            if mine is not None:
                self._note_lateness(mine, commit.at)
                happened += self._submit(mine, commit)
        happened += self._pass_new_phases(commit)
        for state, opened in zip((self.was, self.now), self._opened, strict=True):
            for key, phase in state.phases.items():
                if key not in opened and phase.status != "pending":
                    opened[key] = commit.position
        if self._parted is None:
            self._parted = _parted(commit, happened)

    def _translated(self, command: Command) -> Command | None:
        """The command as it would be asked of a run with the new plan."""
        graph = self._plan.graph
        match command:
            case Begin():
                first, last = (key if key in graph else None for key in (command.first, command.last))
                return msgspec.structs.replace(command, plan=self._plan, first=first, last=last)
            case Take() if command.phase in graph:
                return msgspec.structs.replace(command, capability=self.now.capability(command.phase) or "")
            case Redrive():
                phases = tuple(key for key in command.phases if key in graph)
                return msgspec.structs.replace(command, phases=phases) if phases else None
        phase = getattr(command, "phase", None)
        return command if phase is None or phase in graph else None

    def _submit(self, command: Command, commit: Commit) -> list[Event]:
        """Carry it out, and what waited for that; what is too early waits itself."""
        happened = self._decide(command, commit)
        if happened is None:
            self._held.append(command)
            return []
        return [*happened, *self._submit_held(commit)]

    def _submit_held(self, commit: Commit) -> list[Event]:
        happened: list[Event] = []
        goes_on = True
        while goes_on:
            goes_on = False
            for _ in range(len(self._held)):
                command = self._held.popleft()
                caused = self._decide(command, commit)
                if caused is None:
                    if self._may_come(command):
                        self._held.append(command)
                else:
                    happened += caused
                    goes_on = True
        return happened

    def _may_come(self, command: Command) -> bool:
        """Whether what was refused may be allowed later: its phase has not ended."""
        key = getattr(command, "phase", None)
        return key is not None and self.now.is_open and self.now.phases[key].status not in TERMINAL

    def _decide(self, command: Command, commit: Commit) -> Sequence[Event] | None:
        try:
            happened = decide(self._now, command, run=commit.run, now=commit.at)
        except Refused:
            return None
        if any(isinstance(event, ResultRefused) for event in happened):
            # The result itself did count: its attempt is not under way yet.
            return None
        following = msgspec.structs.replace(commit, position=self._count(), events=happened)
        self._now = evolve(self._now, following)
        return happened

    def _count(self) -> int:
        return (self._now.position if self._now is not None else 0) + 1

    def _pass_new_phases(self, commit: Commit) -> list[Event]:
        """What the run never had is taken to succeed as soon as it opens, so that what follows can be looked at."""
        happened: list[Event] = []
        goes_on = True
        while goes_on and self.now.is_open:
            goes_on = False
            for key, phase in list(self.now.phases.items()):
                is_new = key not in self.was.phases and key not in self._needed
                if is_new and phase.status in {"ready", "waiting"}:
                    self._opened[1].setdefault(key, commit.position)
                    happened += self._submit(Skip(key, BY), commit)
                    goes_on = True
        return happened

    def _note_lateness(self, command: Command, at: datetime) -> None:
        """A result or an answer that came in time, and would not have."""
        if not isinstance(command, Complete | Answer):
            return
        before, after = (_bound(state, command) for state in (self.was, self.now))
        if after is not None and after < at and (before is None or at <= before):
            said = f"ended at {at:%H:%M:%S}, and would have had until {after:%H:%M:%S}"
            self._late.append(Finding(self._position, command.phase, said))

    def findings(self) -> Iterator[Finding]:
        """Where the two part, phase by phase; how an event alone differs is said if nothing else is."""
        found = [*self._late, *self._unknown]
        for key in dict.fromkeys([*self.was.phases, *self.now.phases]):
            found += self._of_phase(key)
        if not found and self.was.status != self.now.status:
            said = f"the run would be {self.now.status}, and is {self.was.status}"
            found.append(Finding(self._position, "", said, self.now.status == "failed"))
        if not found and self._parted is not None:
            found.append(self._parted)
        yield from found

    def _of_phase(self, key: str) -> Iterator[Finding]:
        was, now = self.was.phases.get(key), self.now.phases.get(key)
        opened, would_open = (opened.get(key) for opened in self._opened)
        if was is None:
            if would_open is not None:
                yield self._new(key, would_open)
        elif now is None:
            if opened is not None:
                breaks = self.was.is_open and _has_done(was)
                yield Finding(opened, key, f"is {was.status}, and the plan has no such phase", breaks)
        elif opened is not None and would_open is None:
            needs = [need for need in self._plan.graph[key].needs if not self.now.phases[need].lets_pass]
            said = f"opened here, and would still wait for {', '.join(needs) or 'the run'}"
            yield Finding(opened, key, said, self.was.is_open and _has_done(was))
        elif opened is not None or would_open is not None:
            yield from self._opened_in_both(was, now, opened, would_open or 0)

    def _new(self, key: str, position: int) -> Finding:
        done = [other for other in self._behind(key) if other in self.was.phases and _has_done(self.was.phases[other])]
        if done:
            said = f"is new, and comes before {', '.join(done)}, which had begun without it"
            return Finding(position, key, said, self.was.is_open)
        if key in self._needed:
            return Finding(position, key, "is new and would open here; what needs its output can't be told")
        return Finding(position, key, "is new, and would open here")

    def _behind(self, key: str) -> Iterator[str]:
        """Every phase of the new plan that directly or indirectly waits for this one."""
        seen, frontier = {key}, deque([key])
        while frontier:
            for later in self._plan.graph[frontier.popleft()].feeds:
                if later not in seen:
                    seen.add(later)
                    frontier.append(later)
                    yield later

    def _opened_in_both(
        self, was: PhaseState, now: PhaseState, opened: int | None, would_open: int
    ) -> Iterator[Finding]:
        key, place = was.key, min(opened or would_open, would_open)
        before, after = self.was.plan.graph[key].phase, self._plan.graph[key].phase
        if opened is None:
            yield Finding(would_open, key, "would open here, and has not opened")
        elif opened != would_open:
            yield Finding(place, key, f"would open at {would_open}, and opened at {opened}")
        kinds = [_kind(before), _kind(after)]
        if kinds[0] != kinds[1]:
            said = f"would be {kinds[1]}, and was {kinds[0]}"
            yield Finding(place, key, said, self.was.is_open and _has_done(was))
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
        elif (said := self._other_input(key)) is not None:
            yield Finding(place, key, said)

    def _other_input(self, key: str) -> str | None:
        """How what its handler is given differs, if it does."""
        if not self.was.phases[key].items:
            return None
        try:
            given, would_get = given_to(self.was, key), given_to(self.now, key)
        except Unresolved:
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


def _outputs_needed(plan: Plan) -> set[str]:
    """The phases whose output something refers to."""
    found: set[str] = set()
    for node in plan.graph.values():
        asked_of = [comparison.ref for comparison in parse(node.phase.when)] if node.phase.when is not None else []
        each = [node.each] if node.each is not None else []
        found.update(reference.root for reference in [*each, *asked_of, *references(node.phase.input)])
    return found


def _bound(state: RunState, command: Complete | Answer) -> datetime | None:
    """Until when it may come."""
    phase = state.phases.get(command.phase)
    if phase is None or isinstance(command, Answer):
        return phase.expires_at if phase is not None and phase.status == "waiting" else None
    item = phase.item(command.item)
    return item.holder.deadline_at if item is not None and item.holder is not None else None


def _parted(commit: Commit, happened: Iterable[Event]) -> Finding | None:
    """The first event of a commit that is not as it was. The plan itself is not compared."""
    for was, now in zip_longest(filter(_has_moved, commit.events), happened):
        if was is None or now is None:
            said = f"{type_of(was)} would not happen" if now is None else f"{type_of(now)} would happen"
            return Finding(commit.position, getattr(was or now, "phase", ""), said)
        if isinstance(was, RunStarted) and isinstance(now, RunStarted):
            now = msgspec.structs.replace(now, plan=was.plan)
        difference = first_difference(_plain(was), _plain(now))
        if difference is not None:
            said = f"{type_of(was)} would have another {difference.path}"
            return Finding(commit.position, getattr(was, "phase", ""), said)
    return None


def _has_moved(event: Event) -> bool:
    return not isinstance(event, PhaseProgressed | ResultRefused | UnknownEvent)


def _plain(event: Event) -> object:
    return msgspec.json.decode(msgspec.json.encode(event))
