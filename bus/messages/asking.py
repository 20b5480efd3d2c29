"""Asking: work for whoever has a capability, and waiting for its answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import timedelta
from typing import Any, TypeVar, overload

import msgspec
import structlog
from msgspec.structs import replace

from bus.broker.patience import until_others_are_back
from bus.clock import utc_now
from bus.errors import (
    BusError,
    MalformedMessage,
    NoLiveAgent,
    NoResponders,
    NotFound,
    Refused,
    SettingsError,
    TimedOut,
    WorkFailed,
)
from bus.messages.answers import decoded, output_of
from bus.messages.handing import Handing
from bus.messages.handover import ASKED, HANDED, Answered, Asked, Busy, Enclosed, Failed, Handed, Recorded, Reply
from bus.messages.sending import Sending, check_turn, level_of
from bus.messages.ways import inherited, until_followed, ways
from bus.rules.commands import Begin
from bus.rules.events import Arm
from bus.rules.priority import NORMAL, Priority
from bus.rules.route import need
from bus.runs.causality import served
from bus.runs.steering import as_json, new_run
from bus.runs.task import WORK, Task

logger = structlog.get_logger(__name__)

T = TypeVar("T")

# Who has taken work that was handed over says so, or has the result, in a twentieth of that; late ones
# (`bus.worker.beginning`) before it is over, or the work is done twice.
_FIRST_WORD_S = 0.5
_AT_EASE = 25
# So long a question waits at an instance that has no hand free, and before another one is asked.
_PATIENCE_S, _LONGEST_PATIENCE_S = 0.02, 1.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25
_GIVE_UP_S = (0.0, 0.05, 0.2, 0.5)
_chance = random.Random()  # noqa: S311 - it spreads, it protects nothing


class Asking(Sending):
    """The verb for a question and its answer; a part of the client."""

    source: str
    _handing: Handing

    @overload
    async def ask(
        self,
        capability: str,
        value: object,
        gives: type[T],
        *,
        timeout_s: float = ...,
        fast: bool = ...,
        sticky: str = ...,
        key: str = ...,
        priority: Priority | None = ...,
        sender: str | None = ...,
    ) -> T: ...

    @overload
    async def ask(
        self,
        capability: str,
        value: object,
        gives: None = ...,
        *,
        timeout_s: float = ...,
        fast: bool = ...,
        sticky: str = ...,
        key: str = ...,
        priority: Priority | None = ...,
        sender: str | None = ...,
    ) -> Any: ...

    async def ask(
        self,
        capability: str,
        value: object,
        gives: type[T] | None = None,
        *,
        timeout_s: float = 30.0,
        fast: bool = False,
        sticky: str = "",
        key: str = "",
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> T | Any:
        """Have work done, and wait for the answer, decoded as `gives` (plain JSON values without it).

        Question and answer are in the log when this returns; with `fast` nothing is stored, and the work is done at
        most once. Raises NoLiveAgent at once if nobody offers the capability, WorkFailed if the work was given up,
        TimedOut after `timeout_s`, which is also the work's own deadline; within a handler, no more than is left of
        its own. With a `key` it is done in the order of all that is sent with the same one, and with `sticky` it goes
        the way of all that is sticky to the same, as `send` says. Where nobody is free, it waits with `priority`, on
        the account of `sender`, as in `send`, too; a `fast` one waits nowhere. Cancelling the task that waits for the
        answer cancels the work.
        """
        check_turn(key, priority)
        if fast and key:
            raise SettingsError("a fast question is stored nowhere and can't stand in line: leave out fast or the key")
        given = as_json(value)
        if fast and (priority is not None or sender is not None):
            raise SettingsError("a fast question is not stored and waits nowhere: it has no priority and no sender")
        timeout_s = self._time_left(capability, timeout_s)
        task = Task(capability, timeout_s)
        run = new_run(task.plan)
        handed = self._handed(task, given, level_of(priority), sender, sticky)
        try:
            async with asyncio.timeout(timeout_s):
                if fast:
                    output = await self._answer(run, task, given, sticky)
                else:
                    output = await (self._in_line(run, handed, key) if key else self._work(run, handed))
        except TimeoutError:
            if fast:
                self.runs.soon(self._handing.withdraw(run))
            raise TimedOut(f"{capability!r} has not answered within {timeout_s:g} s (run {run})") from None
        except asyncio.CancelledError:
            self.runs.soon(self._handing.withdraw(run) if fast else self._give_up(run))
            raise
        return decoded(output, gives, repr(capability))

    def _time_left(self, capability: str, timeout_s: float) -> float:
        """No more than is left of the handler that asks. Raises TimedOut if that is nothing."""
        if (facts := served()) is not None:
            timeout_s = round(facts.left_s(utc_now(), timeout_s), 3)
            if timeout_s <= 0:
                raise TimedOut(f"{capability!r} was not asked: the handler that asks has no time left")
        return timeout_s

    def _handed(
        self, task: Task, given: msgspec.Raw, level: Priority | None, sender: str | None, sticky: str
    ) -> Handed:
        """The work as it is handed over; within a handler, it waits where that has."""
        facts = served()
        before = (facts.priority, facts.sender) if facts is not None else (NORMAL, "")
        account = sender or before[1] or self.runs.sender
        return Handed(task, given, level or before[0], account, inherited(sticky))

    async def _work(self, run: str, handed: Handed) -> msgspec.Raw:
        """The result of work, as the log has it."""
        reply, arm = await self._hand_over(run, handed)
        if isinstance(reply, Answered):
            return reply.output
        if not isinstance(reply, Recorded):
            # It was begun nevertheless if its word was lost: the run tells.
            with contextlib.suppress(Refused):
                await self.runs.submit(run, _begin(handed, arm=arm))
        state = await self._ended(run)
        return output_of(state, WORK)

    def _first_word_s(self) -> float:
        """Of many at once each waits for the others: to store it here as well would make all of them later."""
        return _FIRST_WORD_S * (1 + self._handing.under_way / _AT_EASE)

    async def _in_line(self, run: str, handed: Handed, key: str) -> msgspec.Raw:
        """The result of work that waits for its turn. Raises NoLiveAgent if nobody gives any."""
        if await self._unserved([handed.task.capability], ordered=True):
            raise NoLiveAgent(handed.task.capability)
        await self.runs.submit(run, _begin(handed, key=key))
        return output_of(await self._ended(run), WORK)

    async def _hand_over(self, run: str, handed: Handed) -> tuple[Reply | None, Arm | None]:
        """What an instance says that was handed the work directly, and where a route has sent that; None: nobody has
        it, as far as anybody knows.

        Raises NoLiveAgent.
        """
        capability = handed.task.capability
        await self.signposts.known()
        is_new = True
        while is_new:
            for arm in ways(self.signposts, capability, run, handed.sticky):
                given, within_s = replace(handed, arm=arm) if arm is not None else handed, self._first_word_s()
                try:
                    return await self._handing.put(HANDED, run, need(capability, arm), given, within_s), arm
                except NoResponders:
                    continue
                except (BusError, MalformedMessage):
                    # Too large, or the line is lost: the log's own way is the one that insists.
                    return None, arm
            is_new = await until_followed(self.signposts, capability)
        # An instance that stops takes nothing more this way, and still is one.
        if await self._unserved([capability]):
            raise NoLiveAgent(capability)
        return None, None

    async def _answer(self, run: str, task: Task, given: msgspec.Raw, sticky: str) -> msgspec.Raw:
        """The answer to a question that is not stored. Raises NoLiveAgent, WorkFailed, TooLarge, Unavailable."""
        deadline_at = utc_now() + timedelta(seconds=task.timeout_s)
        patience_s, pause_s = _PATIENCE_S, _PAUSE_S
        await self.signposts.known()
        while True:
            question = Asked(given, deadline_at, patience_s, inherited(sticky))
            for arm in ways(self.signposts, task.capability, run, sticky):
                with contextlib.suppress(NoResponders):
                    reply = await self._handing.put(ASKED, run, need(task.capability, arm), question, task.timeout_s)
                    break
            else:
                followed = await until_followed(self.signposts, task.capability)
                if followed or await until_others_are_back(self.connection):
                    continue
                raise NoLiveAgent(task.capability)
            match reply:
                case Answered():
                    return reply.output
                case Failed():
                    raise WorkFailed(run, reply.problem)
                case Busy():
                    # Soon all have been asked for a free hand; then, who is asked lets it wait for one.
                    await asyncio.sleep(pause_s * (0.5 + _chance.random() / 2))
                    patience_s = min(patience_s * 2, _LONGEST_PATIENCE_S)
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                case Recorded() | Enclosed():
                    raise MalformedMessage(f"{task.capability!r} has stored what was not to be stored")

    async def _give_up(self, run: str) -> None:
        """Cancel a run that nobody waits for any more. It may be handed over, and not in the log yet."""
        for pause_s in _GIVE_UP_S:
            await asyncio.sleep(pause_s)
            try:
                if (await self.runs.load(run)).is_open:
                    await self.cancel(run, by=self.source, reason="nobody waits for the answer")
            except NotFound:
                continue
            except BusError as error:
                # Its own deadline ends it.
                logger.debug("not cancelled", run=run, error=str(error))
            return


def _begin(handed: Handed, *, key: str = "", arm: Arm | None = None) -> Begin:
    """The same work, as it is sent to the log."""
    return Begin(
        handed.task.plan,
        handed.input,
        key=key,
        priority=handed.priority,
        sender=handed.sender,
        sticky=handed.sticky,
        arm=arm,
    )
