"""A circuit: a breaker as one process sees it. Closed, it costs no round trip; its transitions are shared by the log.

Calls are counted here and told to others only while some fail (`bus.guards.tally`). Each transition is appended at the
version that was seen, and every process follows them: an open breaker is open everywhere a moment later. What this
process has seen applies here at once, also while the log can't be reached.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

import structlog

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.diagnosis import problem_of
from bus.errors import BusError, CircuitOpen, LimitReached, TimedOut
from bus.guards import breaker
from bus.guards.breaker import Breaker, BreakerState
from bus.guards.switch import Decide, Switch
from bus.guards.tally import Tallies
from bus.log.log import Log
from bus.problem import Problem

logger = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_PAUSE_S = 0.5
_LOOK_S = 1.0
_NEVER = -1


class Passage:
    """One call that was let through: say once how it went. `bound_s` is how long it may take."""

    def __init__(self, circuit: Circuit, since: int, probe: str, bound_s: float | None) -> None:
        self._circuit = circuit
        self._since = since
        self._is_over = False
        self.probe = probe
        self.bound_s = bound_s

    def end(self, problem: Problem | None) -> None:
        """It went well, or there was this problem."""
        policy = self._circuit.policy
        if problem is not None and not policy.is_failure(problem) and not policy.is_answer(problem):
            self.abandon(problem.retry_after_s or 0.0)
        elif not self._is_over:
            self._is_over = True
            self._circuit.count(problem if problem and policy.is_failure(problem) else None, self._since, self.probe)

    def abandon(self, retry_after_s: float = 0.0) -> None:
        """It says nothing about the service: it was stopped from outside, for example."""
        if not self._is_over:
            self._is_over = True
            if self.probe:
                self._circuit.give_up(self.probe, retry_after_s)


class Circuit:
    """One breaker in one process: `async with circuit:`, or as a decorator of an `async def`.

    A call in the block meets CircuitOpen while the breaker is open, and its exceptions are counted. A cancelled block
    counts for nothing, so bound it by the breaker's own `timeout_s`: past it TimedOut is raised, and counted.
    """

    def __init__(
        self, name: str, policy: Breaker, log: Log, connection: Connection, *, source: str, bound_s: float
    ) -> None:
        self.name = name
        self.policy = policy
        self._source = source
        self._chance = random.Random()  # noqa: S311 - it spreads, it protects nothing
        self._switch = Switch(name, log, source=source, on_change=self._apply)
        # What applies here: ahead of the log until that has been told.
        self.state = self._switch.state
        self._since = 0
        self._latest: Problem | None = None
        self._tallies = Tallies(connection, log.subjects.tally(name), uuid4().hex, policy.window_s, self._check)
        self._bound_s = bound_s
        self._known = asyncio.Event()
        self._changed = asyncio.Event()
        self._following = asyncio.create_task(self._follow())
        self._storing: set[asyncio.Task[None]] = set()
        self._inside: dict[asyncio.Task[Any] | None, list[tuple[Passage, asyncio.Timeout | None]]] = {}

    async def enter(self) -> Passage:
        """Ask to be let through; whoever is has to end the passage. Raises CircuitOpen."""
        await self.known()
        if self.state.status == "closed":
            return self.passing()
        if not self.state.admits(utc_now()):
            raise self.refusal()
        return await self._probe()

    def passing(self) -> Passage:
        """The passage of a call that has begun, whatever the breaker says by now."""
        return Passage(self, self._since, "", self.policy.timeout_s)

    def refusal(self) -> CircuitOpen:
        """What a call meets that is not let through now."""
        return self.state.refusal(self.policy, utc_now(), self._chance.random())

    async def known(self) -> None:
        """Wait until the log has said how the breaker stands, but not for ever: what can't be asked forbids nothing."""
        if self._known.is_set():
            return
        try:
            async with asyncio.timeout(self._bound_s):
                await self._known.wait()
        except TimeoutError:
            logger.warning("breaker not read", breaker=self.name)

    async def until_admitting(self) -> None:
        """Wait until a call may be let through, for as long as that takes; it need not be when it asks."""
        while True:
            now = utc_now()
            if self.state.admits(now):
                return
            at = self.state.may_probe_at
            wait_s = max((at - now).total_seconds(), 0.0) if at is not None else None
            changed = self._changed
            try:
                async with asyncio.timeout(wait_s):
                    await changed.wait()
            except TimeoutError:
                # Not all processes at the same moment: the first may have the answer for all.
                await asyncio.sleep(self._chance.random() * min(self.policy.cooldown_s / 10, _LOOK_S))

    def count(self, failure: Problem | None, since: int, probe: str) -> None:
        """A passage has ended: well, or with a failure."""
        by, policy = self._source, self.policy
        if probe and failure is None:
            self._turn(lambda state, _: breaker.succeeded(state, by=by, probe=probe))
        elif probe and failure is not None:
            chance = self._chance.random()
            self._turn(
                lambda state, now: breaker.failed(
                    state, policy, by=by, now=now, chance=chance, probe=probe, problem=failure
                )
            )
        elif since == self._since and self.state.status == "closed":
            # A call that began before the last transition says nothing about what came after it.
            self._tallies.add(failed=failure is not None)
            if failure is not None:
                self._latest = failure
                self._check()

    def give_up(self, probe: str, retry_after_s: float) -> None:
        """The probe has ended without a result."""
        by = self._source
        self._turn(lambda state, now: breaker.abandoned(state, by=by, now=now, probe=probe, after_s=retry_after_s))

    async def close(self) -> None:
        """Follow no more; what was decided is still stored, if that can be done in time."""
        self._tallies.close()
        self._following.cancel()
        _, late = await asyncio.wait({*self._storing, self._following}, timeout=self._bound_s)
        for task in late:
            task.cancel()
            logger.warning("breaker's transition not stored", breaker=self.name)

    async def __aenter__(self) -> Passage:
        task = asyncio.current_task()
        # A block within one of the same breaker is part of the same call: it goes through, and counts for nothing.
        passage = Passage(self, _NEVER, "", None) if task in self._inside else await self.enter()
        bound = None
        if passage.bound_s is not None:
            bound = asyncio.timeout(passage.bound_s)
            await bound.__aenter__()
        # Of one task, blocks end in the opposite order of their beginning.
        self._inside.setdefault(task, []).append((passage, bound))
        return passage

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        entries = self._inside[task]
        passage, bound = entries.pop()
        if not entries:
            del self._inside[task]
        if bound is not None:
            try:
                await bound.__aexit__(kind, error, trace)
            except TimeoutError as expired:
                late = TimedOut(f"breaker {self.name!r}: no end within {passage.bound_s:g} s")
                passage.end(problem_of(late, utc_now()))
                raise late from expired
        if error is None:
            passage.end(None)
        elif isinstance(error, LimitReached | CircuitOpen):
            # Of this service's limit, or of another service: nobody has called it.
            passage.abandon(error.retry_after_s if isinstance(error, LimitReached) else 0.0)
        elif isinstance(error, Exception):
            passage.end(problem_of(error, utc_now()))
        else:
            passage.abandon()

    def __call__(self, call: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        @functools.wraps(call)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            async with self:
                return await call(*args, **kwargs)

        return guarded

    async def _probe(self) -> Passage:
        """Be the one that is let through. Raises CircuitOpen if somebody else is."""
        id, began_s = uuid4().hex, time.monotonic()
        by, policy, chance = self._source, self.policy, self._chance.random()
        try:
            async with asyncio.timeout(self._bound_s):
                await self._switch.change(
                    lambda state, now: breaker.probe(state, policy, by=by, now=now, chance=chance, id=id)
                )
        except CircuitOpen:
            self._apply(self._switch.state)
            raise
        except (BusError, TimeoutError) as error:
            # Without a word from the log nobody can know to be the only one.
            raise self.refusal() from error
        self._apply(self._switch.state)
        if self.state.status == "closed":
            return self.passing()
        if self.state.probe != id:
            raise self.refusal()
        # Counted from before it was asked for: others count from when they were told.
        left_s = policy.probe_s - (time.monotonic() - began_s)
        return Passage(self, self._since, id, min(left_s, policy.timeout_s or left_s))

    def _check(self) -> None:
        """Open, if enough calls have failed, here and elsewhere."""
        if self.state.status != "closed":
            return
        policy, latest = self.policy, self._latest
        calls, failures = self._tallies.totals()
        if calls < policy.calls or failures < policy.failures * calls:
            return
        by, chance = self._source, self._chance.random()
        self._turn(
            lambda state, now: breaker.trip(
                state, policy, by=by, now=now, chance=chance, failures=failures, calls=calls, problem=latest
            )
        )

    def _turn(self, decide: Decide) -> None:
        """Let a transition apply here at once, and store it behind the call that led to it."""
        now = utc_now()
        event = decide(self.state, now)
        if event is None:
            return
        self._apply(breaker.after(event, now, self.state.position, self.name))
        task = asyncio.create_task(self._store(decide))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _store(self, decide: Decide) -> None:
        try:
            if not await self._switch.change(decide):
                # Somebody else has decided something meanwhile.
                self._apply(self._switch.state)
        except BusError as error:
            # It applies here; the others will see for themselves.
            logger.warning("breaker's transition not stored", breaker=self.name, error=str(error))

    async def _follow(self) -> None:
        """See what others decide, until cancelled."""
        while True:
            try:
                await self._switch.refresh()
                self._known.set()
                async with aclosing(self._switch.follow()) as records:
                    async for record in records:
                        self._switch.see(record)
            except BusError as error:
                logger.warning("breaker not followed", breaker=self.name, error=str(error))
            await asyncio.sleep(_PAUSE_S)

    def _apply(self, state: BreakerState) -> None:
        if self.state != state:
            self.state = state
            self._since += 1
            self._latest = None
            self._tallies.begin(state.position)
            self._changed.set()
            self._changed = asyncio.Event()
