"""Lineage: of what each event came, and what came of it, across phases, messages and runs.

What a run's events say to each other is read from the rules that made them: a phase opens when the last one it needs
ends, an attempt ends after it was taken. Between messages and runs, `causationid` and the names of parents and children
say it. Pure: from a set of events follow the links among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from bus.history.happening import Happening
from bus.rules import dead
from bus.rules.events import (
    Event,
    PhaseApproved,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseEffectDone,
    PhaseEffectIntended,
    PhaseEffectNotDone,
    PhaseEscalated,
    PhaseExpanded,
    PhaseFailed,
    PhaseProgressed,
    PhaseReady,
    PhaseSaved,
    PhaseSkipped,
    PhaseStarted,
    PhaseUndoing,
    PhaseWaiting,
    ResultRefused,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunRedriven,
    RunResumed,
    RunRollingBack,
    RunSignalled,
    RunStarted,
)
from bus.rules.plan import Graph

Spot = tuple[int, int]
"""An event's position in the log, and its index in what stands there."""


class Lineage:
    """The causes and effects among `happenings`, which are in the order of the log."""

    def __init__(self, happenings: Iterable[Happening]) -> None:
        self.found: dict[Spot, Happening] = {}
        self._cause: dict[Spot, Spot] = {}
        self._effects: defaultdict[Spot, list[Spot]] = defaultdict(list)
        self._ids: dict[str, Spot] = {}
        self._runs: dict[str, _Run] = {}
        for each in happenings:
            self._add(each)

    def cause(self, spot: Spot) -> Spot | None:
        """Of what an event came; None: somebody's decision, or nothing that is known here."""
        return self._cause.get(spot)

    def causes(self, spot: Spot) -> list[Spot]:
        """The chain of causes, the nearest first."""
        chain: list[Spot] = []
        while (cause := self._cause.get(spot)) is not None:
            chain.append(cause)
            spot = cause
        return chain

    def effects(self, spot: Spot) -> Sequence[Spot]:
        """What came of an event directly, in order."""
        return self._effects.get(spot, ())

    def named(self, id: str) -> Spot | None:
        """The first event of the message with this id."""
        return self._ids.get(id)

    def _add(self, each: Happening) -> None:
        spot = (each.position, each.index)
        self.found[spot] = each
        cause = self._of_run(each, spot) if each.event is not None and each.run is not None else None
        if cause is None and each.index == 0:
            cause = self._of_message(each)
        # A cause is older, or a decision that has none: whatever a message says of itself, no circle comes of it.
        if cause is not None and (cause < spot or isinstance(each.event, PhaseCancelled)):
            self._cause[spot] = cause
            self._effects[cause].append(spot)
        if each.message is not None and each.index == 0:
            self._ids.setdefault(each.message.id, spot)

    def _of_message(self, each: Happening) -> Spot | None:
        """The event in the message that is named as the cause which is most likely meant."""
        message = each.message
        origin = self._ids.get(message.causationid) if message is not None and message.causationid else None
        if origin is None:
            return None
        commit = self.found[origin].commit
        told = [(origin[0], index) for index in range(len(commit.events) if commit is not None else 1)]
        if each.type == dead.LETTER:
            failed = [spot for spot in told if isinstance(self.found[spot].event, PhaseFailed)]
            same = [spot for spot in failed if self.found[spot].phase == each.phase]
            return (same or failed or told)[0]
        # A handler sends while its attempt is under way.
        started = [spot for spot in told if isinstance(self.found[spot].event, PhaseStarted)]
        return started[-1] if started else told[-1]

    def _of_run(self, each: Happening, spot: Spot) -> Spot | None:
        assert each.run is not None and each.event is not None, "it is an event of a run"
        known = self._runs.get(each.run)
        if known is None:
            known = self._runs[each.run] = _Run()
        cause = known.cause(each.event, spot)
        if isinstance(each.event, PhaseCancelled):
            # The decision stands behind what it led to, in the same commit.
            cause = _decision(each, spot) or cause
        elif isinstance(each.event, RunStarted) and each.event.parent is not None:
            parent = self._runs.get(each.event.parent.run)
            cause = parent.waiting.get(each.event.parent.phase) if parent is not None else None
        elif isinstance(each.event, PhaseCompleted | PhaseFailed):
            child = known.children.get(each.event.phase)
            ended = self._runs[child].ended if child in self._runs else None
            # The end of a child ends what waited for it.
            if ended is not None and (cause is None or ended > cause):
                cause = ended
        known.note(each.event, spot)
        return cause


class _Run:
    """What there is so far of one run that later events can come of."""

    def __init__(self) -> None:
        self.graph: Graph = {}
        self.opening: Spot | None = None
        self.ended: Spot | None = None
        self.waiting: dict[str, Spot] = {}
        self.children: dict[str, str] = {}
        self._phase_ends: dict[str, Spot] = {}
        self._last_end: Spot | None = None
        self._last_outcome: Spot | None = None
        self._resumed: Spot | None = None
        self._ready: dict[tuple[str, int | None, int], Spot] = {}
        self._started: dict[tuple[str, int | None, int], Spot] = {}
        self._failed: dict[tuple[str, int | None], Spot] = {}
        self._intended: dict[tuple[str, int | None, str], Spot] = {}
        self._item_end: dict[str, Spot] = {}
        self._opened: dict[str, Spot] = {}
        self._signals: dict[str, Spot] = {}
        self._rollback: Spot | None = None

    def cause(self, event: Event, spot: Spot) -> Spot | None:
        match event:
            case PhaseReady():
                return _newest(
                    self._opening_of(event.phase),
                    self._opened.get(event.phase),
                    self._failed.get((event.phase, event.item)) if event.attempt > 1 else None,
                    self._same_commit(self._item_end.get(event.phase), spot) if event.item is not None else None,
                    self._same_commit(self._resumed, spot),
                )
            case PhaseExpanded() | PhaseWaiting():
                return self._opening_of(event.phase)
            case PhaseStarted():
                return self._ready.get((event.phase, event.item, event.attempt))
            case PhaseEffectDone() | PhaseEffectNotDone():
                return self._intended.get((event.phase, event.item, event.effect))
            case PhaseProgressed() | PhaseEffectIntended() | PhaseSaved() | ResultRefused():
                return self._started.get((event.phase, event.item, event.attempt))
            case PhaseAttemptFailed():
                key = (event.phase, event.item, event.attempt)
                return self._started.get(key) or self._ready.get(key)
            case PhaseCompleted(attempt=int() as attempt):
                key = (event.phase, event.item, attempt)
                return self._started.get(key) or self._ready.get(key)
            case PhaseCompleted():
                return _newest(
                    self._item_end.get(event.phase),
                    self.waiting.get(event.phase),
                    self._signals.get(self._signal(event.phase)),
                    self._opened.get(event.phase),
                )
            case PhaseFailed():
                return _newest(
                    self._failed.get((event.phase, event.item)),
                    self._item_end.get(event.phase) if event.item is None else None,
                    self.waiting.get(event.phase),
                    self._opening_of(event.phase),
                )
            case PhaseSkipped(by=""):
                return self._opening_of(event.phase)
            case PhaseApproved() | PhaseEscalated():
                return self.waiting.get(event.phase)
            case PhaseCancelled():
                return _newest(
                    self._same_commit(self._item_end.get(event.phase), spot) if event.item is not None else None,
                    self._same_commit(self._last_outcome, spot),
                )
            case PhaseUndoing():
                return _newest(self._rollback, self._last_end)
            case RunCompleted() | RunFailed():
                return _newest(self._last_end, self.opening)
            case RunRedriven():
                return _newest(self._rollback, self._last_end) if self._rollback is not None else None
            case RunRollingBack() if event.problem is not None:
                return self._last_end
            case RunCancelled() if self._rollback is not None:
                return _newest(self._rollback, self._last_end)
            case _:
                return None

    def note(self, event: Event, spot: Spot) -> None:
        match event:
            case RunStarted():
                self.graph, self.opening = event.plan.graph, spot
            case RunRedriven():
                self.opening, self._rollback = spot, None
            case RunRollingBack():
                self._rollback = spot
            case RunResumed():
                self._resumed = spot
            case RunSignalled():
                self._signals[event.signal] = spot
            case PhaseReady():
                self._ready[event.phase, event.item, event.attempt] = spot
            case PhaseExpanded() | PhaseUndoing():
                self._opened[event.phase] = spot
            case PhaseStarted():
                self._started[event.phase, event.item, event.attempt] = spot
            case PhaseEffectIntended():
                self._intended[event.phase, event.item, event.effect] = spot
            case PhaseAttemptFailed():
                self._failed[event.phase, event.item] = spot
            case PhaseWaiting():
                self.waiting[event.phase] = spot
                if event.child:
                    self.children[event.phase] = event.child
            case PhaseCompleted() | PhaseFailed() | PhaseCancelled() if event.item is not None:
                self._item_end[event.phase] = spot
            case PhaseCompleted() | PhaseFailed() | PhaseCancelled() | PhaseSkipped() | PhaseApproved():
                self._phase_ends[event.phase] = self._last_end = spot
                if not isinstance(event, PhaseCancelled):
                    self._last_outcome = spot
                self._forget_opening(event.phase)
            case _:
                pass
        if isinstance(event, RunCompleted | RunFailed | RunCancelled):
            self.ended = spot

    def _opening_of(self, phase: str) -> Spot | None:
        """The last thing that was missing for a phase to open."""
        node = self.graph.get(phase)
        needs = node.needs if node is not None else ()
        return _newest(self.opening, *(self._phase_ends.get(each) for each in needs))

    def _forget_opening(self, phase: str) -> None:
        """Of another pass other things come."""
        self._opened.pop(phase, None)
        self.waiting.pop(phase, None)

    def _signal(self, phase: str) -> str:
        node = self.graph.get(phase)
        awaited = node.phase.signal if node is not None else None
        return awaited.signal if awaited is not None else ""

    @staticmethod
    def _same_commit(found: Spot | None, spot: Spot) -> Spot | None:
        return found if found is not None and found[0] == spot[0] else None


def _decision(cancelled: Happening, spot: Spot) -> Spot | None:
    events = cancelled.commit.events if cancelled.commit is not None else ()
    for index, event in enumerate(events):
        if isinstance(event, RunCancelled) or (isinstance(event, RunRollingBack) and event.problem is None):
            return spot[0], index
    return None


def _newest(*spots: Spot | None) -> Spot | None:
    return max((each for each in spots if each is not None), default=None)
