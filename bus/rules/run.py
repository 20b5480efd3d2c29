"""A run's state: what folding its commits gives. Never stored, always derived (`bus.rules.folding`)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec

from bus.problem import Problem
from bus.rules.events import Parent, Source
from bus.rules.plan import Plan
from bus.rules.priority import NORMAL, Priority

RunStatus = Literal["in_progress", "completed", "failed", "cancelled"]
Status = Literal[
    "pending",
    "ready",
    "in_progress",
    "waiting",
    "completed",
    "approved",
    "failed",
    "skipped",
    "cancelled",
    "rolled_back",
]
TERMINAL: frozenset[str] = frozenset({"completed", "approved", "failed", "skipped", "cancelled", "rolled_back"})
SUCCEEDED: frozenset[str] = frozenset({"completed", "approved"})


class Output:
    """A phase's output: JSON as it was stored, decoded when somebody first looks inside."""

    def __init__(self, raw: bytes | msgspec.Raw) -> None:
        self.raw = msgspec.Raw(raw)

    @cached_property
    def value(self) -> Any:
        return msgspec.json.decode(self.raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Output) and bytes(self.raw) == bytes(other.raw)

    def __hash__(self) -> int:
        return hash(bytes(self.raw))


class Attempt(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One try, numbered from 1; the number is also its fencing epoch. Without `ended_at` it is under way.

    `cause` is how it ended without a result (`bus.events.Cause`, or `cancelled`), `evidence` what a recoverer had seen.
    `cached` is where its output was taken from, `because` why it was not, where it could have been.
    """

    number: int
    agent: str
    instance: str
    started_at: datetime
    deadline_at: datetime
    fraction: float = 0.0
    note: str = ""
    ended_at: datetime | None = None
    problem: Problem | None = None
    cause: str = ""
    evidence: str = ""
    duration_s: float | None = None
    because: str = ""
    cached: Source | None = None

    def __post_init__(self) -> None:
        if self.ended_at is not None and self.duration_s is None:
            spent_s = (self.ended_at - self.started_at).total_seconds()
            msgspec.structs.force_setattr(self, "duration_s", round(spent_s, 6))


class Death(NamedTuple):
    """Work was given up at this attempt, in this pass of its run: no other death of it has both numbers."""

    attempt: int
    passes: int


class Late(msgspec.Struct, frozen=True):
    """A result that was refused, because its attempt was over or never was."""

    phase: str
    item: int | None
    attempt: int
    instance: str


class Item(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One unit of work of a phase: the phase itself (index None), or one element of its `each` list (from 0).

    `attempt` is the current one's number, `ready_at` when it could first be taken, `problem` why it was given up,
    `earlier` how many of the attempts belong to passes before this one. `effects` are what its handlers did outside,
    each once: with what came of it, or None while nobody knows whether it happened. `saved` is how far they got, in
    their own words. `given` is an input that somebody put in place of the plan's, `origin` the position of the commit
    that opened it in this pass, `death` is how it was given up, and `died` how it had been before.
    """

    index: int | None = None
    status: Status = "pending"
    attempt: int = 0
    ready_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    output: Output | None = None
    problem: Problem | None = None
    earlier: int = 0
    effects: dict[str, Output | None] = msgspec.field(default_factory=dict)
    given: Output | None = None
    origin: int = 0
    death: Death | None = None
    died: Death | None = None
    saved: Output | None = None

    @property
    def unknown(self) -> list[str]:
        """The effects of which nobody knows whether they happened. While it is held, its handler may be about to."""
        return [effect for effect, outcome in self.effects.items() if outcome is None]

    @property
    def holder(self) -> Attempt | None:
        """The attempt under way, if there is one."""
        return self.attempts[-1] if self.status == "in_progress" else None


class Undoing(msgspec.Struct, frozen=True):
    """What a compensation is about: what the phase was given, what came of it, and what it did outside."""

    input: Output
    output: Output
    effects: Output | None = None


class Rollback(msgspec.Struct, frozen=True):
    """A rollback under way: `phases` get a new pass when those in `left` are undone, one after the other.

    With a `problem`, of which the run has failed, it ends then instead.
    """

    by: str
    phases: tuple[str, ...]
    left: tuple[str, ...]
    problem: Problem | None = None


class PhaseState(msgspec.Struct, gc=False, kw_only=True):
    """One phase of a run. `items` holds one entry for a plain phase, one per element for an `each` phase.

    `lets_pass`: it has ended, and what needs it goes on, because it succeeded, or does not have to.
    `epoch` is the highest number an attempt had before this pass, `begun` the pass in which its work was begun from
    nothing, the last time. A gate that waits is known by the pass it was opened
    in (`gate`), and answered by one of `asked` (anybody, if that is empty). `child` is the run it waits for.
    `forced`: this pass does it again, whatever is in the cache. `death` and `died` are those of a phase that was given
    up before it had items; `buried`, of one that is undone, those of its items.
    """

    key: str
    status: Status = "pending"
    items: list[Item] = msgspec.field(default_factory=list)
    open_items: int = 0
    opened_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    answered_by: str = ""
    comment: str = ""
    reason: str = ""
    problem: Problem | None = None
    output: Output | None = None
    lets_pass: bool = False
    epoch: int = 0
    begun: int = 1
    gate: int = 0
    asked: tuple[str, ...] = ()
    is_escalated: bool = False
    undoing: Undoing | None = None
    child: str = ""
    forced: bool = False
    death: Death | None = None
    died: Death | None = None
    buried: tuple[tuple[int | None, Death], ...] = ()

    @property
    def results(self) -> Output:
        """The output of its work: of an `each` phase a list, with null where there is none."""
        if len(self.items) == 1 and self.items[0].index is None:
            return self.items[0].output or Output(b"null")
        outputs = [bytes(item.output.raw) if item.output else b"null" for item in self.items]
        return Output(b"[" + b",".join(outputs) + b"]")

    def item(self, index: int | None) -> Item | None:
        """The item with that index (None for a plain phase), if it has been opened."""
        place = index or 0
        if place < 0 or place >= len(self.items) or self.items[place].index != index:
            return None
        return self.items[place]

    def death_of(self, index: int | None) -> Death | None:
        """How the work of an item (None: of a plain phase) was given up, if that is how it stands now."""
        if self.status == "rolled_back":
            return next((death for place, death in self.buried if place == index), None)
        item = self.item(index)
        if item is not None:
            return item.death
        return self.death if index is None else None


class RunState(msgspec.Struct, gc=False, kw_only=True):
    """A run as of `position`, begun at `origin`. `open_phases` counts those that have not ended; `passes` from 1.

    `signals` are those that came before anything waited for them. While `paused_at` is set nothing is taken.
    `checkpoints` name what had ended well at a moment, so that it can be gone back to.
    Once `archived`, it can be read, and nothing more happens to it.
    `unknown_events` of the `events` are of types this version does not know: what they say is not in this state.
    `late` are the results that came for attempts that were over. With `force` nothing is taken from the cache.
    With a `key` it was begun in line (`bus.runs.lane`). Its work waits at the level of `priority`, unless its phase has
    another, on the account of `sender`.
    """

    run: str
    plan: Plan
    input: Output
    correlation: str
    started_at: datetime
    deadline_at: datetime
    status: RunStatus = "in_progress"
    phases: dict[str, PhaseState] = msgspec.field(default_factory=dict)
    open_phases: int = 0
    passes: int = 1
    events: int = 0
    unknown_events: int = 0
    position: int = 0
    origin: int = 0
    ended_at: datetime | None = None
    problem: Problem | None = None
    paused_at: datetime | None = None
    paused_by: str = ""
    signals: dict[str, Output] = msgspec.field(default_factory=dict)
    late: tuple[Late, ...] = ()
    parent: Parent | None = None
    rollback: Rollback | None = None
    checkpoints: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    force: bool = False
    key: str = ""
    priority: Priority = NORMAL
    sender: str = ""

    def level(self, key: str) -> Priority:
        """The level of a phase's work."""
        return self.plan.graph[key].phase.priority or self.priority

    def capability(self, key: str) -> str | None:
        """What the phase's work needs now: its own capability, or that which undoes it."""
        node = self.plan.graph[key].phase
        return node.capability if self.phases[key].undoing is None else node.compensate

    @property
    def failures(self) -> list[str]:
        """The phases that failed and were let pass."""
        return [phase.key for phase in self.phases.values() if phase.status == "failed" and phase.lets_pass]

    archived: bool = False

    @property
    def is_open(self) -> bool:
        return self.status == "in_progress"

    @property
    def is_in_line(self) -> bool:
        """Whether its work is for who has its place in line."""
        return bool(self.key)

    def unknown(self) -> Iterator[tuple[PhaseState, Item, str]]:
        """Every effect of which nobody knows whether it happened, unless a handler is at it."""
        for phase in self.phases.values():
            for item in phase.items:
                if item.effects and item.holder is None:
                    yield from ((phase, item, effect) for effect in item.unknown)

    def held(self) -> Iterator[tuple[PhaseState, Item, Attempt]]:
        """Every attempt under way."""
        for phase in self.phases.values():
            if phase.status == "in_progress":
                for item in phase.items:
                    if item.holder is not None:
                        yield phase, item, item.holder
