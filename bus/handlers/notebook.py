"""The notebook of an attempt: what its handler does outside, each thing once, and how far it is.

What is written there is in the log before the handler goes on, so that the attempt after this one knows it. An effect
is written down before it is begun and after it is done. Where only the first of the two is found, nobody knows whether
it happened, and it is not done again before somebody has found out.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from bus.errors import BusError, InvalidName, MalformedMessage, OutcomeUnknown, Refused, SettingsError, TooLarge
from bus.format.messages import MESSAGES
from bus.handlers.llm import LLMCall
from bus.rules.effects import Done, NotDone

T = TypeVar("T")
logger = structlog.get_logger(__name__)

LONGEST_KEY = 200
SAVED_BYTES = 64 * 1024
"""What a handler saves is in the log as often as it is saved, and whoever reads the run reads it."""


Act = Callable[[str], Any]
Reconcile = Callable[[str], Any]


class Intended(msgspec.Struct, frozen=True, tag=True):
    """The effect is about to be begun."""

    effect: str


class Settled(msgspec.Struct, frozen=True, tag=True):
    """It happened, with this outcome."""

    effect: str
    outcome: msgspec.Raw


class Withdrawn(msgspec.Struct, frozen=True, tag=True):
    """It did not happen."""

    effect: str
    reason: str


class Saved(msgspec.Struct, frozen=True, tag=True):
    """How far the handler is."""

    state: msgspec.Raw


class Called(msgspec.Struct, frozen=True, tag=True):
    """A language model was called."""

    call: LLMCall


Note = Intended | Settled | Withdrawn | Saved | Called


class Writer(Protocol):
    """Who puts a notebook's notes into the log. Raises Refused if the attempt is not the current one any more."""

    async def write(self, note: Note) -> None: ...

    def write_now(self, note: Note) -> None:
        """The same from a thread without an event loop, which waits for it."""


class Effect(msgspec.Struct, frozen=True):
    """One thing to be done once: its name in the phase, and its `key` for the outside."""

    name: str
    key: str
    act: Act
    reconcile: Reconcile | None
    gives: Any


class Notebook:
    """What attempts before this one wrote down, and this one does. Without a `writer` nothing leaves this process.

    `effects` are by name, with None for an outcome that nobody knows.
    """

    def __init__(
        self,
        effects: Mapping[str, msgspec.Raw | None] | None = None,
        saved: msgspec.Raw | None = None,
        writer: Writer | None = None,
    ) -> None:
        self.effects = dict(effects or {})
        self.saved = saved
        self.writer = writer
        self._happened: dict[str, msgspec.Raw] = {}
        self._under_way: set[str] = set()
        self._lock = threading.Lock()

    def once(self, effect: Effect, is_over: Callable[[], bool]) -> Any:
        """What comes of an effect; in an event loop, to be awaited. `is_over`: nobody waits for the handler."""
        if not effect.name or len(effect.name) > LONGEST_KEY or not effect.name.isprintable():
            raise InvalidName(f"effect {effect.name!r:.60} is not a name: use 1 to {LONGEST_KEY} printable characters")
        return _in_turn(lambda waits: self._once(effect, is_over, waits))

    def save(self, state: object) -> Any:
        """Write down how far the handler is; in an event loop, to be awaited."""
        raw = _json(state, "what is saved")
        if len(raw) > SAVED_BYTES:
            raise TooLarge("what is saved", len(raw), SAVED_BYTES)
        return _in_turn(lambda waits: self._save(raw, waits))

    def call(self, call: LLMCall) -> Any:
        """Write down that a language model was called; in an event loop, to be awaited. It never fails."""
        return _in_turn(lambda waits: self._call(call, waits))

    async def _call(self, call: LLMCall, waits: bool) -> None:
        try:
            await self._write(Called(call), waits)
        except BusError as error:
            logger.warning("call not written down", model=call.model, cost_usd=call.cost_usd, error=str(error))

    async def _save(self, raw: msgspec.Raw, waits: bool) -> None:
        await self._write(Saved(raw), waits)
        self.saved = raw

    async def _once(self, effect: Effect, is_over: Callable[[], bool], waits: bool) -> Any:
        with self._alone(effect.name):
            outcome = self.effects.get(effect.name)
            if outcome is None and effect.name in self.effects:
                outcome = await self._find_out(effect, waits)
            if outcome is None:
                outcome = await self._act(effect, is_over, waits)
            return read(outcome, effect.gives, f"the outcome of {effect.name!r}")

    async def _find_out(self, effect: Effect, waits: bool) -> msgspec.Raw | None:
        """The outcome of what was begun and not settled; None if it never happened. Raises OutcomeUnknown."""
        if effect.name in self._happened:
            # It was done in this attempt, and only writing that down failed.
            return await self._settle(effect.name, waits)
        if effect.reconcile is None:
            raise OutcomeUnknown(effect.key)
        try:
            found = await _called(effect.reconcile, effect.key, waits)
        except NotDone as error:
            found = error
        if isinstance(found, Done):
            self._happened[effect.name] = _json(found.outcome, f"the outcome of {effect.name!r}")
            return await self._settle(effect.name, waits)
        if not isinstance(found, NotDone) and found is not NotDone:
            raise SettingsError(
                f"reconcile of {effect.name!r} returned {found!r:.60}: return Done(outcome) or NotDone()"
            )
        await self._withdraw(effect.name, str(found) if isinstance(found, NotDone) else "", waits)
        return None

    async def _act(self, effect: Effect, is_over: Callable[[], bool], waits: bool) -> msgspec.Raw:
        self.effects[effect.name] = None
        try:
            await self._write(Intended(effect.name), waits)
            _must_not_be(is_over)
        except asyncio.CancelledError:
            # It was not begun: nobody should have to find that out.
            await self._withdraw(effect.name, "the handler was stopped before", waits)
            raise
        try:
            answer = await _called(effect.act, effect.key, waits)
        except NotDone as error:
            await self._withdraw(effect.name, str(error), waits)
            raise
        self._happened[effect.name] = _json(answer, f"{effect.name!r} has happened, but what its act returned")
        return await self._settle(effect.name, waits)

    async def _settle(self, name: str, waits: bool) -> msgspec.Raw:
        outcome = self._happened[name]
        await self._write(Settled(name, outcome), waits)
        self.effects[name] = outcome
        return outcome

    async def _withdraw(self, name: str, reason: str, waits: bool) -> None:
        await self._write(Withdrawn(name, reason), waits)
        self.effects.pop(name, None)

    async def _write(self, note: Note, waits: bool) -> None:
        """Raises CancelledError if the attempt is not the current one any more: its handler must not go on."""
        if self.writer is None:
            return
        try:
            if waits:
                await self.writer.write(note)
            else:
                self.writer.write_now(note)
        except Refused as refused:
            raise asyncio.CancelledError(refused.reason) from refused

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with self._lock:
            if name in self._under_way:
                raise Refused(f"effect {name!r} is under way in this attempt: give each thing that is done its own key")
            self._under_way.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(name)


def read(raw: msgspec.Raw, gives: Any, what: str) -> Any:
    """A value as it was stored: as `gives`, or as plain JSON values. Raises MalformedMessage."""
    if gives is None:
        return msgspec.json.decode(raw)
    try:
        return MESSAGES.decode(raw, gives)
    except msgspec.ValidationError as error:
        wanted = getattr(gives, "__name__", repr(gives))
        raise MalformedMessage(f"{what} is not what was asked for ({wanted}): {error}") from error


def _json(value: object, what: str) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what} can't be written as JSON: {error}") from error


def _in_turn(steps: Callable[[bool], Coroutine[Any, Any, T]]) -> Any:
    """The steps, to be awaited in an event loop. In a thread without one they wait themselves: their result."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        coroutine = steps(False)
    else:
        return steps(True)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("what does not wait ends at once")


def _must_not_be(is_over: Callable[[], bool]) -> None:
    if is_over():
        raise asyncio.CancelledError


async def _called(call: Callable[[str], Any], key: str, waits: bool) -> Any:
    answer = call(key)
    if not inspect.isawaitable(answer):
        return answer
    return await answer if waits else asyncio.run(_awaited(answer))


async def _awaited(answer: Awaitable[T]) -> T:
    return await answer
