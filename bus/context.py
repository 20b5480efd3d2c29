"""What a handler is told about the attempt it serves, and what it can say about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
import structlog

Report = Callable[[float, str], Awaitable[None]]


async def _nobody_listens(_fraction: float, _note: str) -> None:
    """In a unit test there is nobody to tell."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, as its handler sees it. `Context()` will do in a unit test.

    `effect_key` is the same for every attempt of this piece of work: give it to outside services as idempotency key.
    """

    run: str = "run"
    plan: str = "plan"
    phase: str = "phase"
    item: int | None = None
    attempt: int = 1
    agent: str = "agent"
    instance: str = "instance"
    correlation: str = "run"
    deadline_at: datetime | None = None
    report: Report = _nobody_listens

    @property
    def effect_key(self) -> str:
        part = self.phase if self.item is None else f"{self.phase}:{self.item}"
        return f"{self.run}/{part}"

    @property
    def logger(self) -> structlog.stdlib.BoundLogger:
        """A logger that carries run, phase, attempt, agent and correlation id on every line."""
        bound: structlog.stdlib.BoundLogger = structlog.get_logger(self.agent)
        return bound

    async def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the attempt is, 0 to 1. Cheap: what comes within half a second of the last one is left out.

        It never fails the handler: what can't be stored is left out, too.
        """
        await self.report(fraction, note)
