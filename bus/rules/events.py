"""The events of a run: everything that can have happened to it and its phases, as immutable facts.

`type` is chosen, versioned and pinned by golden files. Several events decided together are one commit, stored as
one message: all of it or nothing. An event's time is its commit's; its position is (stream sequence, index in it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from bus.errors import MalformedMessage
from bus.format.envelope import UNDECODABLE, Envelope, decode_data
from bus.format.schemas import Catalogue
from bus.problem import Problem
from bus.rules.plan import Plan
from bus.rules.priority import NORMAL, Priority

COMMIT = "run.commit.v1"
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time that can be compared with any other: with its zone, in practice UTC."""

Cause = Literal[
    "error",
    "timed_out",
    "silent",
    "crashed",
    "frozen",
    "blocked",
    "forgotten",
    "handed_back",
    "unclaimed",
    "starved",
]
"""How an attempt ended without a result: the handler raised, its deadline passed, it said nothing of itself for too
long, its process died, was stopped, did not answer because its event loop was blocked, or no longer knows of it, a
stopping process gave it back, or nobody ever took it: `unclaimed` if nobody was free, `starved` if nobody offers it."""
UNTAKEN: frozenset[Cause] = frozenset({"unclaimed", "starved"})


class _Event(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type"):
    pass


class Parent(msgspec.Struct, frozen=True):
    """The phase of another run that waits for this one."""

    run: str
    phase: str


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """The completion that a cached output comes from: which attempt, and when that was."""

    run: str
    phase: str
    attempt: int
    at: Instant
    item: int | None = None


class Arm(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whom a route gave work to: these versions, by this revision of it; `instead_of` others, of which nobody lived."""

    versions: str
    route: int
    instead_of: str = ""


class RunStarted(_Event, frozen=True, tag="run.started.v1"):
    """A run exists: its plan (kept for its whole life), its input, and the instant at which it is given up.

    With `force` nothing of it is taken from the cache. With a `key` it stands in line behind all that was sent to its
    capability under that key (`bus.runs.lane`). Its work waits at the level of `priority`, on the account of `sender`
    (`bus.rules.priority`). Where routes share its work out, all that is `sticky` to the same goes the same way.
    """

    plan: Plan
    input: msgspec.Raw
    deadline_at: Instant
    parent: Parent | None = None
    force: bool = False
    key: str = ""
    sticky: str = ""
    priority: Priority = NORMAL
    sender: str = ""


class RunCompleted(_Event, frozen=True, tag="run.completed.v1"):
    """Every phase has ended, and none that had to succeed did not. `failures` are the optional ones that failed."""

    failures: tuple[str, ...] = ()


class RunFailed(_Event, frozen=True, tag="run.failed.v1"):
    """No phase is open any more, and at least one has failed; or the run's own deadline passed."""

    problem: Problem


class RunCancelled(_Event, frozen=True, tag="run.cancelled.v1"):
    """Somebody stopped the run."""

    by: str
    reason: str = ""


class RunRedriven(_Event, frozen=True, tag="run.redriven.v1"):
    """A finished run goes on: a new pass over `phases`, whatever was skipped because of them included.

    With `afresh` what had completed is done again too. With `letter`, the id of a dead letter, only its work is: the
    first of `phases`, and of what failed there only `item`. `operation` is the redrive of many that it belongs to.
    """

    by: str
    phases: tuple[str, ...]
    deadline_at: Instant
    afresh: bool = False
    item: int | None = None
    letter: str = ""
    operation: str = ""
    reason: str = ""


class RunPaused(_Event, frozen=True, tag="run.paused.v1"):
    """Nothing more is taken until the run is resumed. What is under way goes on, and so do its deadlines."""

    by: str
    reason: str = ""


class RunResumed(_Event, frozen=True, tag="run.resumed.v1"):
    """Work is taken again. A PhaseReady for each item that waited comes with it: its wait in the queue begins anew."""

    by: str


class RunSignalled(_Event, frozen=True, tag="run.signalled.v1"):
    """A signal came, and nothing waits for it yet: it is kept for the phase that will."""

    signal: str
    by: str
    data: msgspec.Raw


class RunCheckpointed(_Event, frozen=True, tag="run.checkpointed.v1"):
    """Somebody gave this moment a name: `done` are the phases that need not run again after going back to it."""

    name: str
    by: str
    done: tuple[str, ...]


class RunRollingBack(_Event, frozen=True, tag="run.rolling_back.v1"):
    """The run goes back to before `phases`: those in `undo` are compensated first, one after the other, in this order.

    A RunRedriven follows when that is done; or with `problem`, of which the run has failed, a RunFailed; or if it
    `cancels` the run, a RunCancelled.
    """

    by: str
    phases: tuple[str, ...]
    undo: tuple[str, ...]
    deadline_at: Instant
    reason: str = ""
    problem: Problem | None = None
    cancels: bool = False


class PhaseUndoing(_Event, frozen=True, tag="phase.undoing.v1"):
    """What the phase did is being undone: its next attempts are those of its compensation, with this as their input.

    `effects` are what its handlers did outside, by name, each with its `outcome` if that is known.
    """

    phase: str
    input: msgspec.Raw
    output: msgspec.Raw
    effects: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class RunArchived(_Event, frozen=True, tag="run.archived.v1"):
    """The run's commits up to position `upto` are in archive `archive`, and leave the log. Nothing follows this one:
    it keeps the run from going on without its past, and its id from being used again."""

    by: str
    upto: int
    archive: str


class PhaseExpanded(_Event, frozen=True, tag="phase.expanded.v1"):
    """An `each` phase has become `items` items, numbered from 0."""

    phase: str
    items: int


class PhaseInputReplaced(_Event, frozen=True, tag="phase.input_replaced.v1"):
    """Dead work goes on with another input. What it had is in its dead letter.

    `transform` names the function that made this one of it, if one did.
    """

    phase: str
    input: msgspec.Raw
    by: str
    item: int | None = None
    reason: str = ""
    transform: str = ""


class PhaseReady(_Event, frozen=True, tag="phase.ready.v1"):
    """The attempt waits to be taken, from `due_at` on if that is given; by those of `arm`, if a route shares such work
    out."""

    phase: str
    attempt: int
    item: int | None = None
    due_at: Instant | None = None
    arm: Arm | None = None


class PhaseStarted(_Event, frozen=True, tag="phase.started.v1"):
    """An instance holds the attempt, and has until `deadline_at`.

    `because` says why what could have been in the cache was not taken from there: "input.config changed".
    """

    phase: str
    attempt: int
    agent: str
    instance: str
    deadline_at: Instant
    item: int | None = None
    because: str = ""


class PhaseProgressed(_Event, frozen=True, tag="phase.progressed.v1"):
    """The handler's own word on how far it is, 0 to 1."""

    phase: str
    attempt: int
    fraction: float
    note: str = ""
    item: int | None = None


class PhaseEffectIntended(_Event, frozen=True, tag="phase.effect_intended.v1"):
    """The handler is about to do something outside. Unless the outcome follows, nobody knows whether it happened."""

    phase: str
    attempt: int
    effect: str
    item: int | None = None


class PhaseEffectDone(_Event, frozen=True, tag="phase.effect_done.v1"):
    """It happened, and this came of it: it is not done again by a later attempt.

    `by` is who vouches for that, if it was not the handler.
    """

    phase: str
    attempt: int
    effect: str
    outcome: msgspec.Raw
    item: int | None = None
    by: str = ""
    reason: str = ""


class PhaseEffectNotDone(_Event, frozen=True, tag="phase.effect_not_done.v1"):
    """It did not happen, says the handler, or `by`: it may be begun anew."""

    phase: str
    attempt: int
    effect: str
    item: int | None = None
    by: str = ""
    reason: str = ""


class PhaseSaved(_Event, frozen=True, tag="phase.saved.v1"):
    """How far the handler is, in its own words, for the attempt that has to go on from there."""

    phase: str
    attempt: int
    state: msgspec.Raw
    item: int | None = None


class PhaseCompleted(_Event, frozen=True, tag="phase.completed.v1"):
    """The attempt's result was accepted. Without an attempt: all items are done, or the signal `by` somebody came.

    `key` is the hash of all that the output depends on, if it may be used again; `cached` where it was taken from.
    """

    phase: str
    attempt: int | None = None
    item: int | None = None
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    by: str = ""
    key: str = ""
    cached: Source | None = None


class PhaseAttemptFailed(_Event, frozen=True, tag="phase.attempt_failed.v1"):
    """The attempt is over without a result. A PhaseReady for the next one or a PhaseFailed comes with it.

    `evidence` is what a recoverer saw before it acted.
    """

    phase: str
    attempt: int
    problem: Problem
    item: int | None = None
    instance: str | None = None
    cause: Cause = "error"
    evidence: str = ""


class PhaseFailed(_Event, frozen=True, tag="phase.failed.v1"):
    """Given up for good: the phase, or with `item` one item of it."""

    phase: str
    problem: Problem
    item: int | None = None


class PhaseWaiting(_Event, frozen=True, tag="phase.waiting.v1"):
    """It waits for an answer of one of `who` (or of anybody), for `signal`, or for run `child`; until `expires_at`."""

    phase: str
    expires_at: Instant
    prompt: str = ""
    signal: str = ""
    who: tuple[str, ...] = ()
    child: str = ""


class PhaseEscalated(_Event, frozen=True, tag="phase.escalated.v1"):
    """Nobody has answered in time: `to` are asked as well, until `expires_at`."""

    phase: str
    to: tuple[str, ...]
    expires_at: Instant


class PhaseApproved(_Event, frozen=True, tag="phase.approved.v1"):
    """The gate is open."""

    phase: str
    by: str
    comment: str = ""


class PhaseSkipped(_Event, frozen=True, tag="phase.skipped.v1"):
    """Will not run: because of a phase it needs, its condition, or its place, or because somebody said so.

    With `lets_pass` what needs it goes on, with `output` if one was given in its place.
    """

    phase: str
    reason: str
    by: str = ""
    lets_pass: bool = False
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class PhaseCancelled(_Event, frozen=True, tag="phase.cancelled.v1"):
    """Was open when the run was stopped; or, with `item`, when another item failed for all of them."""

    phase: str
    reason: str = ""
    item: int | None = None


class ResultRefused(_Event, frozen=True, tag="phase.result_refused.v1"):
    """A result came for an attempt that is not the current one any more: a zombie's. It changed nothing."""

    phase: str
    attempt: int
    instance: str
    outcome: Literal["completed", "failed"]
    reason: str
    item: int | None = None


class UnknownEvent(msgspec.Struct, frozen=True):
    """An event of a type or a version that this process does not know, kept as it came. It changes nothing here."""

    type: str
    raw: msgspec.Raw


Known = (
    RunStarted
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunRedriven
    | RunPaused
    | RunResumed
    | RunSignalled
    | RunCheckpointed
    | RunRollingBack
    | PhaseUndoing
    | RunArchived
    | PhaseExpanded
    | PhaseInputReplaced
    | PhaseReady
    | PhaseStarted
    | PhaseProgressed
    | PhaseEffectIntended
    | PhaseEffectDone
    | PhaseEffectNotDone
    | PhaseSaved
    | PhaseCompleted
    | PhaseAttemptFailed
    | PhaseFailed
    | PhaseWaiting
    | PhaseEscalated
    | PhaseApproved
    | PhaseSkipped
    | PhaseCancelled
    | ResultRefused
)
Event = Known | UnknownEvent


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The events one append stored together: in order, at one time, at one position in the log (from 1)."""

    run: str
    id: str
    at: datetime
    position: int
    events: Sequence[Event]
    source: str = ""
    correlation: str | None = None
    causation: str | None = None


E = TypeVar("E")


class Body(msgspec.Struct, Generic[E], frozen=True):
    """The payload of a commit: one or more events."""

    events: Annotated[list[E], msgspec.Meta(min_length=1)]


class _Tag(msgspec.Struct, frozen=True):
    type: str


_raw_body = msgspec.json.Decoder(Body[msgspec.Raw])
_tag = msgspec.json.Decoder(_Tag)
EVENTS = Catalogue.of(*Known.__args__)
"""Every type of event, and the upcasters of older versions: `@EVENTS.upcaster("phase.ready.v1")` once there is a v2."""
TYPES = frozenset(EVENTS.types)
_WIRE: Mapping[type[Any], str] = {type: wire for wire, type in EVENTS.types.items()}


class EventReader:
    """Reads events as the newest version of their types, whatever version wrote them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        body: Any = Body
        self._body: msgspec.json.Decoder[Body[Event]] = msgspec.json.Decoder(body[catalogue.union])

    def read(self, message: Envelope, unknown: Callable[[str], None]) -> Sequence[Event]:
        """The events of a commit; `unknown` is told the type of each that is kept as it came.

        Raises MalformedMessage.
        """
        try:
            return self._body.decode(message.data).events
        except UNDECODABLE:
            # Another version may have written types this one does not have: keep or translate those, insist on others.
            raws = decode_data(message, _raw_body, "the events of a commit").events
            return [self._read(raw, unknown) for raw in raws]

    def _read(self, raw: msgspec.Raw, unknown: Callable[[str], None]) -> Event:
        try:
            wire = _tag.decode(raw).type
        except UNDECODABLE as error:
            raise MalformedMessage(f"not an event of a run: {error}") from error
        if self._catalogue.reads(wire):
            event: Event = self._catalogue.read(wire, raw)
            return event
        unknown(wire)
        return UnknownEvent(wire, raw.copy())


EVENT_READER = EventReader(EVENTS)


def is_ending(event: Event) -> bool:
    """Whether the run has ended with this event (until somebody redrives it)."""
    return isinstance(event, RunCompleted | RunFailed | RunCancelled)


def archived(commit: Commit) -> RunArchived | None:
    """What an archived run leaves behind in the log, if the commit is that."""
    first = commit.events[0] if commit.events else None
    return first if isinstance(first, RunArchived) else None


def type_of(event: Event) -> str:
    """The event's wire type, such as `phase.completed.v1`."""
    return event.type if isinstance(event, UnknownEvent) else _WIRE[type(event)]


def body(events: Sequence[Event]) -> dict[str, Sequence[object]]:
    """The payload of a commit's envelope."""
    return {"events": [event.raw if isinstance(event, UnknownEvent) else event for event in events]}


def commit(message: Envelope, position: int, unknown: Callable[[str], None] = lambda _type: None) -> Commit:
    """The commit in an envelope read from the log at `position`; `unknown` is told each type that is kept as it came.

    Raises MalformedMessage.
    """
    if message.type != COMMIT or message.runid is None:
        raise MalformedMessage(f"position {position} holds {message.type!r}, not a commit of a run")
    return Commit(
        run=message.runid,
        id=message.id,
        at=message.time,
        position=position,
        events=EVENT_READER.read(message, unknown),
        source=message.source,
        correlation=message.correlationid,
        causation=message.causationid,
    )
