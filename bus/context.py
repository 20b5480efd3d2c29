"""What a handler is told about the attempt it serves, and what it can say about it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Generator
from datetime import datetime
from typing import Any

import msgspec
import structlog

Report = Callable[[float, str], Awaitable[None]]


class Said(Awaitable[None]):
    """Nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


SAID = Said()


class Pulse:
    """Whether a handler lives, and whether anybody still waits for it: shared by the handler, in whatever thread it
    runs, and the worker that watches it.

    `last` is when the handler was last heard of (monotonic). `ended` says why nobody waits any more, once that is so;
    `wanted` is False if that is because the attempt is not the current one any more: not even its failure is news.
    """

    def __init__(self) -> None:
        self.last = math.inf
        self.ended = ""
        self.wanted = True
        self._bell: asyncio.Future[None] | None = None

    def beat(self) -> None:
        """The handler lives. Before the first beat its silence is not counted."""
        self.last = time.monotonic()

    def end(self, reason: str) -> None:
        """Nobody waits for the handler any more; the first reason is kept. To be called in the worker's event loop."""
        self.ended = self.ended or reason
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def drop(self, reason: str) -> None:
        """As `end`, because the log gives the attempt to nobody any more, or to somebody else."""
        self.wanted = False
        self.end(reason)

    def bell(self) -> asyncio.Future[None]:
        """Done as soon as `end` is called."""
        if self._bell is None:
            self._bell = asyncio.get_running_loop().create_future()
            if self.ended:
                self._bell.set_result(None)
        return self._bell


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: which one it is, who makes it, and until when.

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

    @property
    def effect_key(self) -> str:
        part = self.phase if self.item is None else f"{self.phase}:{self.item}"
        return f"{self.run}/{part}"


class Context(Facts, frozen=True, kw_only=True):
    """One attempt, as its handler sees it. `Context()` will do in a unit test.

    `state` is what the agent's lifespan has yielded; a handler in a process of its own has none.
    """

    report: Report = lambda _fraction, _note: SAID
    pulse: Pulse = msgspec.field(default_factory=Pulse)
    state: Any = None

    @property
    def logger(self) -> structlog.stdlib.BoundLogger:
        """A logger that carries run, phase, attempt, agent and correlation id on every line."""
        bound: structlog.stdlib.BoundLogger = structlog.get_logger(self.agent)
        return bound

    def progress(self, fraction: float, note: str = "") -> Awaitable[None]:
        """Say how far the attempt is, 0 to 1; in an `async def` await it, in a `def` just call it.

        Cheap: what comes within half a second of the last one is left out. It never fails the handler: what can't be
        stored is left out, too. It is a sign of life.
        """
        self.pulse.beat()
        return self.report(fraction, note)

    def alive(self) -> None:
        """Say that the handler is still at work: a phase may bound its silence. From any thread, and cheap."""
        self.pulse.beat()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more: the run was stopped, the time is over, another attempt began.

        An `async def` is cancelled then, a process of its own killed. A `def` in a thread can't be: it should look.
        """
        return bool(self.pulse.ended)

    def check(self) -> None:
        """A sign of life, and the end of a handler nobody waits for: raises asyncio.CancelledError there, which no
        `except Exception` keeps."""
        self.pulse.beat()
        if self.pulse.ended:
            raise asyncio.CancelledError(self.pulse.ended)
