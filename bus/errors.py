"""Every error of the library: one root, and a class per thing the caller can do next."""

from __future__ import annotations

from pathlib import Path

from bus.problem import Problem


class BusError(Exception):
    """The root: `except BusError` catches whatever this library raises on purpose."""


class Unavailable(BusError):
    """The server could not be reached, or did not answer within the bound.

    What was asked may or may not have happened; whoever resends must use the same id.
    """


class NoResponders(BusError):
    """Nobody listens on `subject` at this moment. The server says so at once, without a timeout."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody listens on {subject!r}")
        self.subject = subject


class Forbidden(BusError):
    """The login you came with may not do this: the server refused it, and nothing was done. Use one that may."""

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"this login may not write to {subject!r}: it may only read, or only some subjects; nothing was done"
        )
        self.subject = subject


class NoLiveAgent(BusError):
    """No running agent offers `capability`. Start one, or let the work wait for it."""

    def __init__(self, capability: str) -> None:
        super().__init__(f"no live agent for {capability!r}: start one, `phasebus agent run FILE.py:agent`")
        self.capability = capability


class WarmUpFailed(BusError):
    """An agent's lifespan did not come as far as its `yield`, so it takes no work. Says why; correct that."""


class TooLarge(BusError):
    """A message is over the server's limit. Refused before anything was sent."""

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{what} has {size_bytes} bytes, the limit is {limit_bytes}: pass a path or a reference instead"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class TooMany(BusError):
    """More at once than the server takes. Refused before anything was sent: split it where it can be split."""

    def __init__(self, what: str, count: int, limit: int) -> None:
        super().__init__(f"{count} {what}: the limit is {limit}")
        self.count = count
        self.limit = limit


class InvalidName(BusError, ValueError):
    """A name can't be part of a subject. Says which characters can."""


class MalformedMessage(BusError, ValueError):
    """Bytes that are not one of our messages. Says what was expected and where it broke."""


class PayloadLost(MalformedMessage):
    """The payload a message refers to is gone or damaged, or never was. Restore the bucket from a backup, or go on.

    A kind of MalformedMessage because anybody who may publish can refer to what is not there.
    """


class PlanError(BusError, ValueError):
    """A plan that can't work, refused before anything runs. Names the phase and the field."""


class ScheduleError(BusError, ValueError):
    """A schedule that can't work, refused when it is made. Names the schedule and what is wrong with it."""


class DecisionError(BusError, ValueError):
    """A proposal that can't be voted on, refused when it is made. Names the field and what it accepts."""


class SettingsError(BusError, ValueError):
    """A setting with a wrong value. Names the setting and says what it accepts."""


class Refused(BusError):
    """A command that the run's present state does not allow. Nothing was stored; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OutcomeUnknown(BusError):
    """What a handler did outside was begun by an earlier attempt, and nobody knows whether it happened.

    It is not repeated. Give `context.once` a `reconcile`, or find out and say so: `phasebus run effect settle`.
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            f"effect {key!r} was begun, and nobody knows whether it happened: find out, say so with "
            "`phasebus run effect settle`, and redrive"
        )
        self.key = key


class NotFound(BusError, LookupError):
    """No such run, phase, dead letter or agent in this log."""


class Archived(Refused, NotFound):
    """The run was archived: it can be read where the archive is, and does not go on. Its id stays taken."""

    def __init__(self, run: str, archive: str) -> None:
        super().__init__(
            f"run {run!r} was archived (archive {archive}): set PHASEBUS_ARCHIVE to its folder to read it, "
            "or use another id for a new run"
        )
        self.run = run
        self.archive = archive


class ArchiveDamaged(BusError):
    """A file of an archive is not what was written. Put a copy of it back; nothing else of the archive is touched."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is damaged: {reason}. Put back a copy of it; `phasebus archive verify {path.parent}` checks all"
        )
        self.path = path


class TimedOut(BusError, TimeoutError):
    """A bound the caller gave has passed. The work itself goes on or ends by its own deadline."""


class LeaseLost(BusError):
    """A lock, a permit or the lead is not yours any more. Stop what it was for; whoever has it now goes on.

    `token` is the one you had: whatever is guarded by it refuses you from now on.
    """

    def __init__(self, what: str, token: int, reason: str) -> None:
        super().__init__(f"{what} (token {token}) is lost: {reason}")
        self.what = what
        self.token = token
        self.reason = reason


class CircuitOpen(BusError):
    """The breaker of a service or capability lets nobody through. Try again after `retry_after_s`, or ask elsewhere."""

    def __init__(self, breaker: str, retry_after_s: float, reason: str = "") -> None:
        super().__init__(
            f"breaker {breaker!r} is open, again in {retry_after_s:.1f} s" + (f" ({reason})" if reason else "")
        )
        self.breaker = breaker
        self.retry_after_s = retry_after_s


class LimitReached(BusError):
    """A limit that all agents share lets this through only after `retry_after_s`, longer than it was to be waited."""

    def __init__(self, limit: str, retry_after_s: float, reason: str) -> None:
        super().__init__(f"limit {limit!r} is reached, again in {retry_after_s:.1f} s: {reason}")
        self.limit = limit
        self.retry_after_s = retry_after_s


class BudgetSpent(LimitReached):
    """A budget does not cover this. It begins anew after `retry_after_s`; raising it helps at once."""


class Misconfigured(BusError):
    """The server or a stream is not what this library promises. Names the setting and its value."""


class WorkFailed(BusError):
    """The work was given up for good. `problem` says why; the whole story is in the log under `run`."""

    def __init__(self, run: str, problem: Problem) -> None:
        super().__init__(f"{problem} (run {run})")
        self.run = run
        self.problem = problem
