"""A limit: a quota that all agents share, as one process draws on it.

How the quota stands is one small value, written over at the version that was seen. A process draws once for all who
wait in it, and what it will probably want next is lent to it for a moment, so a busy process writes a few times a
second, however many calls it makes. Each learns from the write itself when its turn is: nobody polls, and nobody starts
at the same moment as all others. Holds and spent budgets are events in the log.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection, Message
from bus.broker.patience import patiently
from bus.clock import utc_now
from bus.errors import BudgetSpent, BusError, LimitReached, MalformedMessage, SettingsError, Unavailable
from bus.format.envelope import decode, decode_data, envelope
from bus.format.subjects import capability_token, live_copy
from bus.guards import quota
from bus.guards.purse import Purse
from bus.guards.quota import LEND_S, LONGEST_WAIT_S, Amounts, Denied, Draw, Granted, Quota, Standing, Unit, Want
from bus.log.bucket import Bucket
from bus.log.layout import limits_config
from bus.log.log import Log
from bus.log.slate import Slate
from bus.rules.events import Instant
from bus.settings import Settings

logger = structlog.get_logger(__name__)

HELD, SPENT = "limit.held.v1", "limit.spent.v1"

_TOGETHER = 200
_SETTLE_S = 0.1
_LATE_S = 1.0
# Of those who all heard of the same hold, one writes it.
_SAME_HOLD_S = 1.0


class LimitHeld(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Nobody takes anything until `until`: the service has asked for it."""

    limit: str
    by: str
    until: Instant
    reason: str = ""


class LimitSpent(msgspec.Struct, frozen=True, kw_only=True):
    """A budget did not cover what somebody asked for; it begins anew at `until`."""

    limit: str
    by: str
    budget: str
    amount: float
    until: Instant


class Allowance:
    """What was taken. `settle` says what was really used, once that is known."""

    def __init__(self, limit: Limit, amounts: Amounts, at: float) -> None:
        self._limit = limit
        self._at = at
        self.amounts = amounts

    def settle(self, *, tokens: float | None = None, cost: float | None = None) -> None:
        """So much was used of what was taken, or more. What was not is there for others."""
        given: dict[Unit, float | None] = {"tokens": tokens, "cost": cost}
        used: dict[Unit, float] = {unit: amount for unit, amount in given.items() if amount is not None}
        for amount in used.values():
            if not 0 <= amount < float("inf"):
                raise SettingsError(f"what was used must be 0 or more, not {amount}")
        self._limit.owe({unit: amount - self.amounts.get(unit, 0) for unit, amount in used.items()}, self._at)
        self.amounts = {**self.amounts, **used}


class _Waiting(msgspec.Struct):
    """A take that waits for its answer; `drawn_s` is when that was decided."""

    amounts: Amounts
    until_s: float
    done: asyncio.Future[Granted | Denied]
    drawn_s: float = 0.0


class Limit:
    """One limit in one process."""

    def __init__(
        self, name: str, allowed: Quota, log: Log, connection: Connection, settings: Settings, source: str
    ) -> None:
        self.name = name
        self.quota = allowed
        self._log = log
        self._connection = connection
        self._subject = log.subjects.limit(name)
        self._source = source
        self._bound_s = settings.request_timeout_s
        self._slate = slate(name, log, connection, settings)
        self._purse = Purse(allowed)
        self._waiting: deque[_Waiting] = deque()
        self._held_until = 0.0
        self._holds = 0
        self._drawing: asyncio.Task[None] | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._chance = random.Random()  # noqa: S311 - it spreads, it protects nothing
        self._told = connection.subscribe(live_copy(self._subject), self._hear)

    async def take(self, *, calls: float = 1, tokens: float = 0, cost: float = 0, timeout_s: float = 30.0) -> Allowance:
        """Wait for one's turn, at most `timeout_s`.

        Raises LimitReached at once if that would be too short, BudgetSpent, SettingsError for what could never be
        taken, Unavailable: what can't be asked in all that time lets nothing through.
        """
        given: dict[Unit, float] = {"calls": calls, "tokens": tokens, "cost": cost}
        amounts: Amounts = {unit: amount for unit, amount in given.items() if amount}
        self.quota.check(amounts)
        until_s = time.monotonic() + min(timeout_s, LONGEST_WAIT_S)
        while True:
            holds = self._holds
            now_s = time.monotonic()
            self._purse.note(amounts, now_s)
            if not self._waiting and self._purse.pay(amounts, now_s):
                return Allowance(self, amounts, time.time())
            # What was drawn, and is not known of, is lost: better than to take it twice.
            try:
                async with asyncio.timeout(until_s - now_s + _LATE_S):
                    turn_s = await patiently(self._connection, partial(self._turn, amounts, until_s), until_s - now_s)
            except TimeoutError:
                raise Unavailable(f"limit {self.name!r} could not be asked within {timeout_s:g} s") from None
            if holds == self._holds and time.monotonic() < turn_s + _LATE_S:
                return Allowance(self, amounts, time.time())
            # All were asked to hold meanwhile, or this process was frozen and its turn is over: it takes another.
            self.owe({unit: -amount for unit, amount in amounts.items()}, time.time(), budgets_only=True)

    async def hold(self, retry_after_s: float, *, reason: str = "") -> None:
        """Let nobody take anything for so long: the service has asked for it. Raises Unavailable.

        Who waits for its turn waits on; afterwards all come one by one, as the rates allow.
        """
        if not 0 <= retry_after_s <= 7 * 86_400:
            raise SettingsError(f"a hold is of 0 s to a week, not {retry_after_s}")
        until = time.time() + retry_after_s
        self._heed(until)
        changed = False

        def held(standing: Standing | None) -> Standing | None:
            nonlocal changed
            changed = standing is None or until > standing.held_until + _SAME_HOLD_S
            return quota.hold(standing, self.quota, until, time.time()) if changed else None

        await self._slate.change(held)
        if changed:
            at = datetime.fromtimestamp(until, UTC)
            await self._say(HELD, LimitHeld(limit=self.name, by=self._source, until=at, reason=reason))

    def owe(self, more: Amounts, at: float, *, budgets_only: bool = False) -> None:
        """Charge so much more than was at a moment (or less: negative) before long."""
        self._purse.owe(more, at, budgets_only=budgets_only)
        if self._purse.owes and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE_S, self._settle)

    async def close(self) -> None:
        """Give back what a budget has lent, and settle, if that can be done in time."""
        self._told.unsubscribe()
        self._purse.put_back()
        if self._settling is not None:
            self._settling.cancel()
        if self._purse.owes:
            self._settle()
        tasks = {*self._telling, *([self._drawing] if self._drawing is not None else [])}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._bound_s)
            for task in late:
                task.cancel()

    async def _turn(self, amounts: Amounts, until_s: float) -> float:
        """Wait for one's turn; returns when it was (monotonic)."""
        waiting = _Waiting(amounts, until_s, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._draw_soon()
        try:
            answer = await waiting.done
        except asyncio.CancelledError:
            self._give_back(waiting)
            raise
        if isinstance(answer, Denied):
            raise self._refusal(answer)
        turn_s = waiting.drawn_s + answer.wait_s
        try:
            await asyncio.sleep(max(turn_s - time.monotonic(), 0.0))
        except asyncio.CancelledError:
            self._give_back(waiting)
            raise
        return turn_s

    def _give_back(self, waiting: _Waiting) -> None:
        """Nobody waits for it any more. Its turn in a rate is gone; of a budget nothing is."""
        if not waiting.done.done() or waiting.done.cancelled():
            waiting.done.cancel()
        elif waiting.done.exception() is None and isinstance(waiting.done.result(), Granted):
            less: Amounts = {unit: -amount for unit, amount in waiting.amounts.items()}
            self.owe(less, time.time(), budgets_only=True)

    def _refusal(self, denied: Denied) -> LimitReached:
        # Spread, so that all who are told the same do not come back at the same moment.
        after_s = denied.retry_after_s
        if denied.budget:
            return BudgetSpent(self.name, after_s + self._chance.random() * 10, f"{denied.budget} is spent")
        spread_s = self._chance.random() * max(after_s, 1.0) / 2
        return LimitReached(self.name, after_s + spread_s, f"the turn would come in {after_s:.1f} s")

    def _draw_soon(self) -> None:
        if self._drawing is None or self._drawing.done():
            self._drawing = asyncio.create_task(self._draw_all())

    def _settle(self) -> None:
        self._settling = None
        self._draw_soon()

    async def _draw_all(self) -> None:
        """Draw for all who wait, together, until nobody does."""
        while self._waiting or self._purse.owes:
            batch: list[_Waiting] = []
            while self._waiting and len(batch) < _TOGETHER:
                waiting = self._waiting.popleft()
                if not waiting.done.done():
                    batch.append(waiting)
            try:
                drawn, began_s = await self._draw(batch)
            except BusError as error:
                if not batch:
                    logger.warning("not settled", limit=self.name, error=str(error))
                    return
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)
                continue
            except BaseException:
                for waiting in (*batch, *self._waiting):
                    if not waiting.done.done():
                        waiting.done.set_exception(Unavailable("the client was closed before the answer came"))
                raise
            for waiting, answer in zip(batch, drawn.answers, strict=True):
                if not waiting.done.done():
                    waiting.drawn_s = began_s
                    waiting.done.set_result(answer)
                elif isinstance(answer, Granted):
                    self.owe({unit: -n for unit, n in waiting.amounts.items()}, time.time(), budgets_only=True)
            if drawn.loan:
                self._purse.lend(drawn.loan, began_s + LEND_S, time.time())
            for budget in drawn.spent:
                self._announce(budget, drawn.standing)

    async def _draw(self, batch: list[_Waiting]) -> tuple[Draw, float]:
        """One guarded write for all of them; and when it was decided, from when on a loan counts."""
        purse = self._purse
        purse.put_back()
        owed = purse.empty()
        drawn: Draw | None = None
        began_s = 0.0

        def decide(standing: Standing | None) -> Standing | None:
            nonlocal drawn, began_s
            began_s, now = time.monotonic(), time.time()
            wants = [Want(each.amounts, max(each.until_s - began_s, 0.0)) for each in batch]
            ahead, used = purse.ahead(began_s), purse.due(owed, now)
            drawn = quota.draw(standing, self.quota, wants, now=now, ahead=ahead, used=used)
            is_idle = not used and not drawn.spent and all(isinstance(each, Denied) for each in drawn.answers)
            return None if is_idle else drawn.standing

        try:
            await self._slate.change(decide)
        except BusError:
            purse.refill(owed)
            raise
        assert drawn is not None, "a change decides at least once"
        return drawn, began_s

    def _announce(self, budget: str, standing: Standing) -> None:
        meter = next(each for each in self.quota.meters if each.name == budget)
        ends = datetime.fromtimestamp(standing.accounts[budget].window + meter.period_s, UTC)
        said = LimitSpent(limit=self.name, by=self._source, budget=budget, amount=meter.amount, until=ends)
        task = asyncio.create_task(self._say_or_log(SPENT, said))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _say_or_log(self, kind: str, what: object) -> None:
        try:
            await self._say(kind, what)
        except BusError as error:
            logger.warning("not in the log", limit=self.name, kind=kind, error=str(error))

    async def _say(self, kind: str, what: object) -> None:
        logger.info("limit", limit=self.name, kind=kind)
        message = envelope(kind, what, id=uuid4().hex, source=self._source, time=utc_now())
        await self._log.append(self._subject, message)

    def _hear(self, message: Message) -> None:
        """Somebody was asked to hold. A hint: whoever draws sees it anyway."""
        try:
            told = decode(message.data)
            if told.type == HELD:
                self._heed(decode_data(told, _held, "a hold").until.timestamp())
        except MalformedMessage as error:
            logger.warning("record set aside", subject=message.subject, error=str(error))

    def _heed(self, until: float) -> None:
        """What was drawn before a hold counts for nothing any more."""
        if until > max(self._held_until + _SAME_HOLD_S, time.time()):
            self._held_until = until
            self._holds += 1
            self._purse.put_back()


def slate(name: str, log: Log, connection: Connection, settings: Settings) -> Slate[Standing]:
    """What all processes share of a limit."""
    bucket = Bucket(
        connection,
        log.subjects.limits_bucket,
        limits_config(log.subjects, settings.replicas),
        timeout_s=settings.request_timeout_s,
    )
    return Slate(bucket, capability_token(name), Standing)


_held = msgspec.json.Decoder(LimitHeld)
