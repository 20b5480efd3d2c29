"""Causality: which attempt the code that runs now serves, known to whatever it calls without anybody passing it on.

Set round each handler, in whatever task, thread or process of ours it runs. What the client's verbs start from there
belongs to the same story (`correlation`), names what it was done for (`causation`), and asks for no more time than is
left.
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime

import msgspec

from bus.rules.priority import NORMAL, Priority


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: which one it is, who makes it, and until when.

    `begun` is the pass of the run in which this piece of work was begun from nothing: 1, unless somebody had it done
    again. `undoes`: it undoes what the phase did. `correlation` is shared by everything that came of one beginning;
    `causation` is the id of the message in the log that this attempt came of. `priority` and `sender` say where it
    waited; what it asks for itself waits there too, unless it says otherwise. `sticky` is what all that comes of it
    sticks to where routes share work out, if its starter said so.
    """

    run: str = "run"
    plan: str = "plan"
    phase: str = "phase"
    item: int | None = None
    attempt: int = 1
    agent: str = "agent"
    instance: str = "instance"
    correlation: str = "run"
    sticky: str = ""
    causation: str | None = None
    deadline_at: datetime | None = None
    begun: int = 1
    undoes: bool = False
    priority: Priority = NORMAL
    sender: str = ""

    @property
    def effect_key(self) -> str:
        """The same for every attempt of this piece of work: an idempotency key for outside services."""
        item = "" if self.item is None else f":{self.item}"
        again = "" if self.begun == 1 else f"@{self.begun}"
        return f"{self.run}/{self.phase}{item}{again}{'~undo' if self.undoes else ''}"

    def left_s(self, now: datetime, most_s: float) -> float:
        """How long the attempt may still take, at most `most_s`; 0 or less: its time is over."""
        return most_s if self.deadline_at is None else min(most_s, (self.deadline_at - now).total_seconds())


_served: ContextVar[Facts | None] = ContextVar("phasebus_served", default=None)


def served() -> Facts | None:
    """The attempt that the running code serves, if it is a handler's."""
    return _served.get()


def serve(facts: Facts) -> None:
    """From here on, the running task serves this attempt: also in tasks and threads that it starts."""
    _served.set(facts)
