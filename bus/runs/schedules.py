"""Schedules on the bus: the log says which there are, and the server's message schedules ring when they are due.

A schedule is a record on `bus.ops.schedule`. From it follows a timer, a message of the stream `BUS_TIMERS` that makes
the server store another one at each occurrence, whether or not a process of ours is up. The subject of both names the
schedule and the position of its record, so whatever rings for a schedule that was ended or made anew is known as old.
The supervisor makes lost timers again, and starts the runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Literal
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.broker.patience import patiently
from bus.clock import utc_now
from bus.errors import MalformedMessage, Misconfigured, NoResponders, NotFound, PlanError, ScheduleError
from bus.format.envelope import decode_data, envelope
from bus.format.subjects import Subjects
from bus.log.layout import timers_config
from bus.log.log import Log
from bus.log.record import Record
from bus.log.streams import Moved, ensure_stream, purge, store
from bus.rules.plan import Plan
from bus.runs import schedule
from bus.runs.schedule import (
    SCHEDULED,
    UNSCHEDULED,
    OccurrenceSkipped,
    Schedule,
    Scheduled,
    Unscheduled,
    in_six_fields,
)
from bus.runs.steering import as_json
from bus.runs.task import Task
from bus.settings import Settings

logger = structlog.get_logger(__name__)

_AREA = "schedule"


class Entry(msgspec.Struct, frozen=True):
    """A schedule as it stands: who made it, when, and at which position of the log; `next` is when it is due."""

    schedule: Schedule
    by: str
    since: datetime
    position: int
    next: datetime | None = None


class Timetable:
    """Every schedule that stands, folded from the log. `refresh` reads what was stored since."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._subject = log.subjects.ops(_AREA)
        self.position = 0
        self.entries: dict[str, Entry] = {}

    async def refresh(self) -> None:
        """Raises Unavailable. What can't be read is passed over, and logged."""
        async for record in self._log.read(self._subject, after=self.position):
            try:
                self._note(record)
            except MalformedMessage as error:
                logger.warning("record set aside", subject=self._subject, position=record.position, error=str(error))
            self.position = record.position

    def _note(self, record: Record) -> None:
        message = record.envelope()
        match message.type:
            case schedule.SCHEDULED:
                said = decode_data(message, _scheduled, "a schedule")
                self.entries[said.schedule.name] = Entry(said.schedule, said.by, message.time, record.position)
            case schedule.UNSCHEDULED:
                self.entries.pop(decode_data(message, _unscheduled, "the end of a schedule").name, None)


class Timers:
    """The server's message schedules of one namespace."""

    def __init__(self, connection: Connection, subjects: Subjects, settings: Settings) -> None:
        self._connection = connection
        self._subjects = subjects
        self._settings = settings

    async def set(self, schedule: Schedule, position: int) -> None:
        """Let the server ring for a schedule; one that does so already goes on undisturbed.

        Raises ScheduleError with the server's reason, Misconfigured, Unavailable.
        """
        headers = {
            "Nats-Schedule": schedule.when,
            "Nats-Schedule-Target": self._subjects.rung(schedule.name, position),
            "Nats-Schedule-TTL": f"{schedule.catch_up_s}s",
            "Nats-Expected-Last-Subject-Sequence": "0",
        }
        if schedule.zone is not None:
            headers["Nats-Schedule-Time-Zone"] = schedule.zone
        subject = self._subjects.timer(schedule.name, position)
        try:
            await self._insist(partial(self._store, subject, headers))
        except Moved:
            pass
        except Misconfigured as error:
            if "message schedules" in str(error):
                raise ScheduleError(
                    f"schedule {schedule.name!r}: the server refuses {schedule.when!r}: {error}"
                ) from error
            raise

    async def drop(self, name: str, position: int) -> None:
        """Let the server not ring any more, and forget what rang and was not heard. Raises Unavailable."""
        stream, timeout_s = self._subjects.timers_stream, self._settings.request_timeout_s
        for subject in (self._subjects.timer(name, position), self._subjects.rung(name, position)):
            try:
                await self._insist(partial(purge, self._connection, stream, subject, timeout_s))
            except NotFound:
                return

    async def _store(self, subject: str, headers: Mapping[str, str]) -> None:
        timeout_s = self._settings.request_timeout_s
        try:
            await store(self._connection, subject, b"", headers=headers, timeout_s=timeout_s)
        except NoResponders:
            # The stream is made when the first schedule is.
            config = timers_config(self._subjects, self._settings.replicas)
            await ensure_stream(self._connection, config, timeout_s)
            await store(self._connection, subject, b"", headers=headers, timeout_s=timeout_s)

    async def _insist(self, change: Callable[[], Awaitable[object]]) -> None:
        """Done twice, it does the same."""
        await patiently(self._connection, change, self._settings.append_timeout_s)


class Scheduling:
    """The verbs about schedules; a part of the client."""

    connection: Connection
    log: Log
    settings: Settings
    source: str

    async def schedule(
        self,
        name: str,
        plan: Plan | str,
        input: object = None,
        *,
        at: datetime | None = None,
        every_s: int | None = None,
        cron: str | None = None,
        zone: str | None = None,
        overlap: Literal["skip", "allow"] = "skip",
        catch_up_s: int = 86_400,
        by: str | None = None,
    ) -> Entry:
        """Start runs of `plan` at a time, every so many seconds, or by cron; see `Schedule`.

        In place of a plan, a capability: then `input` is sent to whoever has it.

        Cron with five fields is at second 0. One that stands under this name is replaced; the same once more changes
        nothing, so a program may say it each time it starts. A run's id is `name-20261122t020000`, in UTC.
        Raises ScheduleError, PlanError, TooLarge, Unavailable.
        """
        if isinstance(plan, str):
            plan = Task(plan).plan
        if not isinstance(plan, Plan):
            raise PlanError(f"a plan is a Plan, not {plan!r:.60}; `bus.runs.planfile.read_plan` reads a file")
        wanted = Schedule(
            name=name,
            plan=plan,
            input=as_json(input if input is not None else {}),
            at=at.replace(microsecond=0) if at is not None else None,
            every_s=every_s,
            cron=in_six_fields(cron) if cron is not None else None,
            zone=zone,
            overlap=overlap,
            catch_up_s=catch_up_s,
        )
        timers = Timers(self.connection, self.log.subjects, self.settings)
        before = (await self._timetable()).entries.get(name)
        if before is not None and _same(before.schedule, wanted):
            return _with_next(before)
        # The server reads it in its own way: what it refuses must not be in the log.
        await timers.set(wanted, 0)
        await timers.drop(name, 0)
        said = Scheduled(by or self.source, wanted)
        now = utc_now()
        position = await self._say(SCHEDULED, said, now)
        await timers.set(wanted, position)
        if before is not None:
            await timers.drop(name, before.position)
        return _with_next(Entry(wanted, said.by, now, position))

    async def schedules(self) -> list[Entry]:
        """Every schedule that stands, by name, with when it is due next. Raises Unavailable."""
        entries = (await self._timetable()).entries
        return [_with_next(entries[name]) for name in sorted(entries)]

    async def unschedule(self, name: str, *, by: str | None = None) -> None:
        """End a schedule; its runs go on. Raises NotFound, Unavailable."""
        entry = (await self._timetable()).entries.get(name)
        if entry is None:
            raise NotFound(f"there is no schedule {name!r}")
        await self._say(UNSCHEDULED, Unscheduled(by or self.source, name), utc_now())
        await Timers(self.connection, self.log.subjects, self.settings).drop(name, entry.position)

    async def _timetable(self) -> Timetable:
        timetable = Timetable(self.log)
        await timetable.refresh()
        return timetable

    async def _say(self, kind: str, what: object, at: datetime) -> int:
        message = envelope(kind, what, id=uuid4().hex, source=self.source, time=at)
        return await self.log.append(self.log.subjects.ops(_AREA), message)


async def skip(log: Log, skipped: OccurrenceSkipped, *, source: str) -> None:
    """Say in the log that an occurrence is not started. Raises Unavailable."""
    message = envelope(schedule.SKIPPED, skipped, id=uuid4().hex, source=source, time=utc_now())
    await log.append(log.subjects.skipped(skipped.name), message)


async def skipped_upto(log: Log, entry: Entry) -> datetime | None:
    """The newest occurrence of the schedule, as it was made then, that is not started. Raises Unavailable."""
    newest = await log.last(log.subjects.skipped(entry.schedule.name))
    if newest is None or newest.position < entry.position:
        return None
    try:
        return decode_data(newest.envelope(), _skipped, "an occurrence that was not started").at
    except MalformedMessage as error:
        logger.warning("record set aside", subject=newest.subject, position=newest.position, error=str(error))
        return None


def _with_next(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, next=entry.schedule.following(entry.since, utc_now()))


def _same(one: Schedule, other: Schedule) -> bool:
    return msgspec.json.encode(one) == msgspec.json.encode(other)


_scheduled = msgspec.json.Decoder(Scheduled)
_unscheduled = msgspec.json.Decoder(Unscheduled)
_skipped = msgspec.json.Decoder(OccurrenceSkipped)
