"""Commands: what can be asked of a run. Each is answered by events, or refused with a reason (`bus.rules.decide`)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from bus.problem import Problem
from bus.rules.events import Arm, Cause, Parent, Source
from bus.rules.plan import Plan
from bus.rules.priority import Priority


class Begin(msgspec.Struct, frozen=True):
    """Start the run; with `first` and `last`, only the phases from the one to the other, in the plan's order.

    `adopted` are outputs of phases that were done elsewhere, in `origin`, and are taken over. With `force` nothing is
    taken from the cache. `correlation` is that of what it was started from: within a handler, of what that serves.
    Without one, a run begins a story of its own. With `due_at` nothing of it can be taken before then, and its time
    counts from then on; with `since`, from then: it has been on its way. With a `key` it stands in line behind what was
    begun with the same one (tasks only). Its work waits at the level of `priority`, by default its plan's, on the
    account of `sender`. `sticky` is what keeps its work together where routes share work out; `arm` is where such a
    route has sent it already (tasks only).
    """

    plan: Plan
    input: msgspec.Raw
    first: str | None = None
    last: str | None = None
    adopted: Mapping[str, msgspec.Raw] = {}
    origin: str = ""
    parent: Parent | None = None
    force: bool = False
    correlation: str | None = None
    due_at: datetime | None = None
    since: datetime | None = None
    key: str = ""
    sticky: str = ""
    arm: Arm | None = None
    priority: Priority | None = None
    sender: str = ""


class Reuse(msgspec.Struct, frozen=True):
    """An output that was computed before, and where."""

    output: msgspec.Raw
    source: Source


class Take(msgspec.Struct, frozen=True):
    """An instance takes a ready attempt. `timeout_s` is the capability's own bound, used if the plan has none.

    With `reuse` the attempt ends at once with that output; otherwise `because` says why it has to be computed, where
    it could have been cached.
    """

    phase: str
    item: int | None
    attempt: int
    capability: str
    agent: str
    instance: str
    timeout_s: float
    because: str = ""
    reuse: Reuse | None = None


class Offer(msgspec.Struct, frozen=True):
    """The holder's hands will be free: it takes more work for the capability with the same commit, if there is any."""

    capability: str
    agent: str
    timeout_s: float


class Complete(msgspec.Struct, frozen=True):
    """The holder hands in its result. With `offer` it goes on with one item that this very result makes ready.

    With a `key` (`bus.cache.cache`) the result may be used again.
    """

    phase: str
    item: int | None
    attempt: int
    instance: str
    output: msgspec.Raw
    offer: Offer | None = None
    key: str = ""


class Fail(msgspec.Struct, frozen=True):
    """The attempt is over without a result: said by its holder, or by whoever found it dead, late or unclaimed."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    problem: Problem
    cause: Cause = "error"
    evidence: str = ""


class Progress(msgspec.Struct, frozen=True):
    """The holder says how far it is, 0 to 1."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    fraction: float
    note: str


class Intend(msgspec.Struct, frozen=True):
    """The holder is about to do something outside that must not be done twice."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    effect: str


class Settle(msgspec.Struct, frozen=True):
    """The holder has done it, or found out that it was done: `outcome` came of it. Without one: it was not done."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    effect: str
    outcome: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    reason: str = ""


class Vouch(msgspec.Struct, frozen=True):
    """Somebody has found out about an effect nobody knew of: `outcome` came of it. Without one: it was not done."""

    phase: str
    item: int | None
    effect: str
    by: str
    outcome: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    reason: str = ""


class Save(msgspec.Struct, frozen=True):
    """The holder writes down how far it is, for the attempt after it."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    state: msgspec.Raw


class Answer(msgspec.Struct, frozen=True):
    """Somebody, or the expiry rule, answers a gate: the one that opened in pass `gate`, if that is given."""

    phase: str
    approve: bool
    by: str
    comment: str = ""
    expired: bool = False
    gate: int | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Somebody stops the run; with `rollback`, what it did is undone before it ends."""

    by: str
    reason: str = ""
    rollback: bool = False


class Expire(msgspec.Struct, frozen=True):
    """The run's own deadline has passed."""


class Redrive(msgspec.Struct, frozen=True):
    """Go on with a run that failed or was stopped: `phases`, or all that did not succeed.

    With `afresh`, what completed is done again as well: `phases`, and all that needs them.
    """

    by: str
    phases: tuple[str, ...] = ()
    afresh: bool = False


class Revive(msgspec.Struct, frozen=True, kw_only=True):
    """Go on with the work of one dead letter, if that is still how it stands: given up at `attempt`, in `passes`.

    With `input` it gets this instead of what it had; `transform` names the function that made it.
    """

    by: str
    letter: str
    phase: str
    item: int | None
    attempt: int
    passes: int
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    reason: str = ""
    transform: str = ""
    operation: str = ""


class Pause(msgspec.Struct, frozen=True):
    """Somebody holds the run: what is under way may end, nothing more is taken."""

    by: str
    reason: str = ""


class Resume(msgspec.Struct, frozen=True):
    """Somebody lets a paused run go on."""

    by: str


class Skip(msgspec.Struct, frozen=True):
    """Somebody says that a phase need not run: what needs it goes on, with `output` in its place if there is one."""

    phase: str
    by: str
    reason: str = ""
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Signal(msgspec.Struct, frozen=True):
    """Somebody tells a run something that a phase waits for, or will."""

    signal: str
    by: str
    data: msgspec.Raw


class Checkpoint(msgspec.Struct, frozen=True):
    """Somebody names this moment, to go back to it."""

    name: str
    by: str


class Rollback(msgspec.Struct, frozen=True):
    """Go back to before a phase, or to a checkpoint (one of the two): undo what was done since, then do it again."""

    by: str
    before: str | None = None
    checkpoint: str | None = None
    reason: str = ""


class Report(msgspec.Struct, frozen=True):
    """A child run has ended: with the outputs of its phases, or with a problem."""

    phase: str
    child: str
    outcome: msgspec.Raw | Problem


class GiveUp(msgspec.Struct, frozen=True):
    """The phase's own total time has passed."""

    phase: str


class Reroute(msgspec.Struct, frozen=True):
    """Let a ready attempt go the way that routes give such work now, `without` versions of which nobody lives."""

    phase: str
    item: int | None
    attempt: int
    without: tuple[str, ...] = ()


class Together(msgspec.Struct, frozen=True):
    """Several commands as one: all of them are carried out, in order, or none."""

    commands: tuple[Command, ...]


Command = (
    Begin
    | Take
    | Complete
    | Fail
    | Progress
    | Intend
    | Settle
    | Vouch
    | Save
    | Answer
    | Cancel
    | Expire
    | Redrive
    | Revive
    | Pause
    | Resume
    | Skip
    | Signal
    | Checkpoint
    | Rollback
    | Report
    | GiveUp
    | Reroute
    | Together
)
