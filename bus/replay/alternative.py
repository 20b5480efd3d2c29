"""An alternative: a run as it would be by another plan, beside the run as it was.

What was asked of the run (`bus.replay.hindsight`) is asked again; what the other plan does not allow yet waits until
it does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import zip_longest

import msgspec

from bus.errors import Refused
from bus.history.diff import first_difference
from bus.replay.hindsight import asked
from bus.rules.commands import Answer, Begin, Command, Complete, Redrive, Skip, Take
from bus.rules.conditions import parse
from bus.rules.decide import decide
from bus.rules.events import (
    Commit,
    Event,
    PhaseProgressed,
    ResultRefused,
    RunArchived,
    RunStarted,
    UnknownEvent,
    type_of,
)
from bus.rules.folding import Folding, evolve
from bus.rules.plan import Plan
from bus.rules.references import references
from bus.rules.run import TERMINAL, RunState

BY = "plan check"


class Finding(msgspec.Struct, frozen=True):
    """One place where the two part. `breaks`: the run would fail where it did not, or what it has done has no place."""

    position: int
    phase: str
    says: str
    breaks: bool = False


class Alternative:
    """The run as it was and as it would be, side by side; `findings` are what was noted on the way.

    `opened` says where each phase opened, here and there. `parted` is the first event that is not as it was.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.needed = _outputs_needed(plan)
        self._was = Folding(None)
        self._now: RunState | None = None
        self._held: deque[Command] = deque()
        self.opened: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self.findings: list[Finding] = []
        self.parted: Finding | None = None
        self.position = 0

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
        self.position = commit.position
        for event in commit.events:
            if isinstance(event, UnknownEvent):
                said = f"{event.type} is not known to this version: what it did is not replayed"
                self.findings.append(Finding(commit.position, "", said))
        happened: list[Event] = []
        for command in asked(self._was, commit):
            mine = self._translated(command)
            if mine is not None:
                self._note_lateness(mine, commit.at)
                happened += self._submit(mine, commit)
        happened += self._pass_new_phases(commit)
        for state, opened in zip((self.was, self.now), self.opened, strict=True):
            for key, phase in state.phases.items():
                if key not in opened and phase.status != "pending":
                    opened[key] = commit.position
        if self.parted is None:
            self.parted = _parted(commit, happened)

    def _translated(self, command: Command) -> Command | None:
        """The command as it would be asked of a run with the new plan."""
        graph = self.plan.graph
        match command:
            case Begin():
                first, last = (key if key in graph else None for key in (command.first, command.last))
                return msgspec.structs.replace(command, plan=self.plan, first=first, last=last)
            case Take() if command.phase in graph:
                return msgspec.structs.replace(command, capability=self.now.capability(command.phase) or "")
            case Redrive() if command.phases:
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
                is_new = key not in self.was.phases and key not in self.needed
                if is_new and phase.status in {"ready", "waiting"}:
                    self.opened[1].setdefault(key, commit.position)
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
            self.findings.append(Finding(self.position, command.phase, said))


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
        difference = first_difference(_plain(was), _plain(now))
        if difference is not None:
            said = f"{type_of(was)} would have another {difference.path}"
            return Finding(commit.position, getattr(was, "phase", ""), said)
    return None


def _has_moved(event: Event) -> bool:
    return not isinstance(event, PhaseProgressed | ResultRefused | RunArchived | UnknownEvent)


def _plain(event: Event) -> object:
    plain = msgspec.json.decode(msgspec.json.encode(event))
    return plain | {"plan": None} if isinstance(event, RunStarted) else plain
