"""What a handler is told about the attempt it serves, and what it can say about it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec
import structlog

from bus.errors import SettingsError
from bus.handlers.llm import LLMCall
from bus.handlers.notebook import Act, Effect, Notebook, Reconcile, read
from bus.runs.causality import Facts

if TYPE_CHECKING:
    from bus.client import Client

T = TypeVar("T")
Report = Callable[[float, str], Awaitable[None]]
Emit = Callable[[object], Awaitable[None]]


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


class Context(Facts, frozen=True, kw_only=True):
    """One attempt, as its handler sees it. `Context()` will do in a unit test.

    `state` is what the agent's lifespan has yielded; a handler in a process of its own has none.
    """

    report: Report = lambda _fraction, _note: SAID
    sink: Emit = lambda _chunk: SAID
    pulse: Pulse = msgspec.field(default_factory=Pulse)
    notebook: Notebook = msgspec.field(default_factory=Notebook)
    state: Any = None
    door: Client | None = None

    @property
    def client(self) -> Client:
        """The worker's client. What is asked or sent from within a handler belongs to the same story, with any client.

        Raises SettingsError where there is none: in a unit test, and in a process of the handler's own.
        """
        if self.door is None:
            raise SettingsError(
                "this context has no client: a unit test gives one, Context(door=client); a handler with "
                'isolation="process" makes its own, `async with bus.connect() as client`'
            )
        return self.door

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

    @overload
    def once(
        self, key: str, act: Callable[[str], Awaitable[Any]], reconcile: Reconcile | None = ..., *, gives: type[T]
    ) -> Awaitable[T]: ...

    @overload
    def once(
        self, key: str, act: Callable[[str], Awaitable[Any]], reconcile: Reconcile | None = ..., *, gives: None = ...
    ) -> Awaitable[Any]: ...

    @overload
    def once(self, key: str, act: Act, reconcile: Reconcile | None = ..., *, gives: Any = ...) -> Any: ...

    def once(self, key: str, act: Act, reconcile: Reconcile | None = None, *, gives: Any = None) -> Any:
        """Do something outside once, whatever happens to this attempt, and give back what came of it, as `gives` (plain
        JSON values without it); in an `async def` await it, in a `def` just call it.

        `act` is called with `effect_key/key`, for services that take an idempotency key; the intention is in the log
        before, what it returns after. An attempt that finds it done gets the outcome without acting. One that finds it
        begun and no more asks `reconcile`, with the same key, which returns Done(outcome) or NotDone(), or raises:
        then it is asked again by the next attempt. Without a `reconcile`, OutcomeUnknown is raised, and a person has to
        find out. An act that raises NotDone had no effect; whatever else it raises, nobody knows.
        """
        self.pulse.beat()
        effect = Effect(key, f"{self.effect_key}/{key}", act, reconcile, gives)
        return self.notebook.once(effect, lambda: bool(self.pulse.ended))

    def save(self, state: object) -> Any:
        """Write down how far the handler is, for an attempt that has to go on from here: at most 64 KiB of JSON.

        In an `async def` await it, in a `def` just call it; it is in the log then. The newest counts.
        """
        self.pulse.beat()
        return self.notebook.save(state)

    @overload
    def saved(self, gives: type[T]) -> T | None: ...

    @overload
    def saved(self, gives: None = ...) -> Any: ...

    def saved(self, gives: Any = None) -> Any:
        """What was saved last, by this attempt or one before it; None if nothing was, or the work was begun again."""
        raw = self.notebook.saved
        return None if raw is None else read(raw, gives, "what was saved")

    def spent(self, call: LLMCall) -> Awaitable[None]:
        """Put a call of a language model on record, for this run, phase and agent; in an `async def` await it, in a
        `def` just call it. It never fails the handler: what can't be stored is in the log lines of this process.
        """
        self.pulse.beat()
        written: Awaitable[None] = self.notebook.call(call)
        return written

    def emit(self, chunk: object) -> Awaitable[None]:
        """Give away a part of the result, such as a token, for who streams it (`client.stream`); in an `async def`
        await it, in a `def` just call it.

        Parts are stored in order, some milliseconds' worth together. A next attempt begins again. It is a sign of life.
        Raises MalformedMessage for what has no JSON form, and Unavailable if what was given before could not be stored.
        """
        self.pulse.beat()
        return self.sink(chunk)

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
