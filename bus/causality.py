"""Causality: which attempt the code that runs now serves, known to whatever it calls without anybody passing it on.

Set round each handler, in whatever task, thread or process of ours it runs. What the client's verbs start from there
belongs to the same story (`correlation`), names what it was done for (`causation`), and asks for no more time than is
left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

import msgspec


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: which one it is, who makes it, and until when.

    `effect_key` is the same for every attempt of this piece of work: give it to outside services as idempotency key.
    `correlation` is shared by everything that came of one beginning; `causation` is the id of the message in the log
    that this attempt came of.
    """

    run: str = "run"
    plan: str = "plan"
    phase: str = "phase"
    item: int | None = None
    attempt: int = 1
    agent: str = "agent"
    instance: str = "instance"
    correlation: str = "run"
    causation: str | None = None
    deadline_at: datetime | None = None

    @property
    def effect_key(self) -> str:
        part = self.phase if self.item is None else f"{self.phase}:{self.item}"
        return f"{self.run}/{part}"

    def left_s(self, now: datetime, most_s: float) -> float:
        """How long the attempt may still take, at most `most_s`; 0 or less: its time is over."""
        return most_s if self.deadline_at is None else min(most_s, (self.deadline_at - now).total_seconds())


_served: ContextVar[Facts | None] = ContextVar("phasebus_served", default=None)


def served() -> Facts | None:
    """The attempt that the running code serves, if it is a handler's."""
    return _served.get()


@contextmanager
def serving(facts: Facts) -> Iterator[None]:
    """Within the block, this attempt is served: also by tasks and threads that are started in it."""
    token = _served.set(facts)
    try:
        yield
    finally:
        _served.reset(token)
