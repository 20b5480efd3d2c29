"""The clockwork: starts the runs of schedules. The leader's part; what rang while nobody led is waiting for it.

The run of an occurrence has one possible name, so the log refuses a second start of it, whoever tries: what rang is
acknowledged only when its run is in the log, and may be heard twice. What should have rung and did not (the server was
down, its timers were lost) is found by looking at the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime, timedelta

import structlog

from bus.broker.pull import Delivery, Intake
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, MalformedMessage, NotFound, Refused
from bus.log.consumers import BELL, ensure_bell, passed_by
from bus.log.reading import Reader
from bus.log.streams import info, purge
from bus.rules.commands import Begin
from bus.runs.schedule import OccurrenceSkipped, Schedule
from bus.runs.schedules import Entry, Timers, Timetable, skip, skipped_upto

logger = structlog.get_logger(__name__)

# So long after its time the server has rung for an occurrence, or will not.
_LATE = timedelta(seconds=2)
_AGAIN_S = 1.0

FindOpen = Callable[[Schedule], Awaitable[str | None]]


class Clockwork:
    """The schedules of one namespace, for one term of a leader.

    `find_open` names a run of the schedule that is open now, as of everything that is in the log by then.
    """

    def __init__(self, client: Client, find_open: FindOpen) -> None:
        self._client = client
        self._find_open = find_open
        self._timetable = Timetable(client.log)
        self._timers = Timers(client.connection, client.subjects, client.settings)
        self._rung: asyncio.Queue[Delivery] = asyncio.Queue()
        self._is_set_up = asyncio.Event()
        self._one = asyncio.Lock()
        self._settled: dict[str, tuple[int, datetime]] = {}

    async def look(self) -> None:
        """Make lost timers again, end those of schedules that were ended, and start what has not rung."""
        if not self._is_set_up.is_set():
            await self._timetable.refresh()
            if not self._timetable.entries:
                return
            await self._set_up()
        try:
            there = await self._there()
        except NotFound:
            logger.warning("timers are made again", stream=self._client.subjects.timers_stream)
            await self._set_up()
            there = set()
        # After looking at the timers: what is not in the log by now has none.
        await self._timetable.refresh()
        now = utc_now()
        for entry in list(self._timetable.entries.values()):
            if self._client.subjects.timer(*_key(entry)) not in there and not _is_over(entry, now):
                await self._timers.set(entry.schedule, entry.position)
            at = entry.schedule.due(entry.since, now - _LATE)
            # What rang waits in order, and comes first.
            if at is not None and not await self._is_to_be_heard(self._client.subjects.rung(*_key(entry)), there):
                async with self._one:
                    await self._settle(entry, at)
        await self._drop_old(there)

    async def serve(self) -> None:
        """Hear what rings, one after the other, for ever."""
        await self._is_set_up.wait()
        intake = Intake(
            self._client.connection,
            self._client.subjects.timers_stream,
            BELL,
            deliver=self._rung.put_nowait,
            missing=self._set_up,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(intake.run())
            while True:
                intake.grant(1)
                delivery = await self._rung.get()
                try:
                    async with self._one:
                        await self._hear(delivery)
                except BusError as error:
                    logger.warning("put off", subject=delivery.message.subject, error=str(error))
                    delivery.nak(_AGAIN_S)
                except Exception:
                    # It concerns one occurrence; the others must not wait for it.
                    logger.exception("bug", subject=delivery.message.subject)
                    delivery.term("it can't be started")

    async def _set_up(self) -> None:
        await ensure_bell(self._client.connection, self._client.subjects, self._client.settings)
        self._is_set_up.set()

    async def _there(self) -> set[str]:
        subjects = self._client.subjects
        found = await info(
            self._client.connection,
            subjects.timers_stream,
            self._client.settings.request_timeout_s,
            subjects=subjects.all_timers,
        )
        return set(found.subjects)

    async def _is_to_be_heard(self, rung: str, there: Collection[str]) -> bool:
        """Whether what rang will still be delivered. After a crash the server may have it again, and pass it over."""
        if rung not in there:
            return False
        connection, stream = self._client.connection, self._client.subjects.timers_stream
        record = await Reader(connection, stream, timeout_s=self._client.settings.request_timeout_s).last(rung)
        passed = await passed_by(connection, stream, BELL, self._client.settings.request_timeout_s)
        if record is None or record.position > passed:
            return True
        await purge(connection, stream, rung, self._client.settings.request_timeout_s)
        return False

    async def _drop_old(self, there: set[str]) -> None:
        current = {_key(entry) for entry in self._timetable.entries.values()}
        for subject in there:
            try:
                key = self._client.subjects.parse_timer(subject)
            except MalformedMessage:
                continue
            if key not in current:
                await self._timers.drop(*key)

    async def _hear(self, delivery: Delivery) -> None:
        """Start what rang, and acknowledge it when that is in the log."""
        try:
            name, position = self._client.subjects.parse_timer(delivery.message.subject)
        except MalformedMessage as error:
            logger.warning("set aside", error=str(error))
            delivery.term("not a schedule's")
            return
        await self._timetable.refresh()
        entry = self._timetable.entries.get(name)
        if entry is None or entry.position != position:
            logger.info("rang for what was ended or made anew", schedule=name, position=position)
        else:
            at = entry.schedule.due(entry.since, delivery.stored_at)
            if at is not None:
                await self._settle(entry, at)
        await delivery.ack_sync(self._client.settings.request_timeout_s)

    async def _settle(self, entry: Entry, at: datetime) -> None:
        """See to it that the occurrence has been started or was skipped, which is then in the log."""
        schedule = entry.schedule
        known = self._settled.get(schedule.name)
        if known is not None and known[0] == entry.position and at <= known[1]:
            return
        run = schedule.run(at)
        if not await self._is_settled(entry, at, run):
            if utc_now() - at > timedelta(seconds=schedule.catch_up_s) + _LATE:
                await self._skip(OccurrenceSkipped(schedule.name, at, "late"))
            elif schedule.overlap == "skip" and (other := await self._find_open(schedule)) is not None:
                await self._skip(OccurrenceSkipped(schedule.name, at, "overlap", other))
            else:
                await self._start(run, schedule)
        self._settled[schedule.name] = entry.position, at

    async def _is_settled(self, entry: Entry, at: datetime, run: str) -> bool:
        """Whether the log has its run, or that it was skipped."""
        if await self._client.log.last(self._client.subjects.run(run)) is not None:
            return True
        skipped = await skipped_upto(self._client.log, entry)
        return skipped is not None and at <= skipped

    async def _start(self, run: str, schedule: Schedule) -> None:
        try:
            await self._client.runs.submit(run, Begin(schedule.plan, schedule.input, sender=schedule.name))
            logger.info("started on schedule", schedule=schedule.name, run=run)
        except Refused as error:
            logger.info("started already", schedule=schedule.name, run=run, reason=error.reason)

    async def _skip(self, skipped: OccurrenceSkipped) -> None:
        logger.info("skipped", schedule=skipped.name, at=skipped.at, reason=skipped.reason, run=skipped.run)
        await skip(self._client.log, skipped, source=self._client.source)


def _key(entry: Entry) -> tuple[str, int]:
    return entry.schedule.name, entry.position


def _is_over(entry: Entry, now: datetime) -> bool:
    """A time that has come rings no more; what is then still to be done is found by the clock."""
    return entry.schedule.at is not None and entry.schedule.at <= now
