"""A schedule: a plan that is started at a time, every so often, or by cron; and when each of its occurrences is due.

Occurrences are on a grid that follows from the schedule alone. What rings when one is due (the server, or somebody who
looks at the clock) decides nothing: whoever hears it finds the same occurrence, and so the same run.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from bus.errors import InvalidName, ScheduleError
from bus.format.subjects import name
from bus.rules.events import Instant
from bus.rules.plan import Plan

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

SCHEDULED, UNSCHEDULED, SKIPPED = "ops.scheduled.v1", "ops.unscheduled.v1", "ops.occurrence_skipped.v1"

_STAMP = "%Y%m%dt%H%M%S"
_STAMPED = r"-\d{8}t\d{6}"
_NAME_CHARACTERS = 63 - len("-20261122t020000")
_SECOND = timedelta(seconds=1)
_FIELDS, _HOUR = 6, 2
# What the server's cron and ours read alike: numbers, names, lists, ranges and steps.
_CRON = re.compile(
    r"([0-9*/,-]+ ){4}[0-9A-Z*/,-]+ ([0-6*/,-]|SUN|MON|TUE|WED|THU|FRI|SAT)+",
    re.IGNORECASE,
)


class Schedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When to start a run of a plan, and with which input. Raises ScheduleError for one that can't work.

    One of `at` (whole seconds), `every_s` and `cron` (second, minute, hour, day, month, day of the week) says when;
    `zone` is cron's, UTC unless told. With `overlap` skip, an occurrence is passed over while a run of one before is
    open. What is due for longer than `catch_up_s`, because nobody was there, is not started any more.
    """

    name: str
    plan: Plan
    input: msgspec.Raw
    at: Instant | None = None
    every_s: int | None = None
    cron: str | None = None
    zone: str | None = None
    overlap: Literal["skip", "allow"] = "skip"
    catch_up_s: int = 86_400

    def __post_init__(self) -> None:
        try:
            name(self.name, "schedule")
        except InvalidName as error:
            raise ScheduleError(str(error)) from None
        if len(self.name) > _NAME_CHARACTERS:
            raise self._wrong(f"its name is longer than {_NAME_CHARACTERS} characters")
        if sum(each is not None for each in (self.at, self.every_s, self.cron)) != 1:
            raise self._wrong("say when by one of at, every_s and cron")
        if self.zone is not None and self.cron is None:
            raise self._wrong("a zone is for cron; a time has its own")
        if self.at is not None and (self.at.tzinfo is None or self.at.microsecond):
            raise self._wrong("at is a time with a time zone, in whole seconds")
        if self.overlap not in ("skip", "allow"):
            raise self._wrong(f"overlap is skip or allow, not {self.overlap!r}")
        for field in ("every_s", "catch_up_s"):
            value = getattr(self, field)
            if value is not None and not (isinstance(value, int) and 1 <= value <= 315_360_000):
                raise self._wrong(f"{field} is a whole number of seconds from 1 on, 10 years at most; not {value!r}")
        if self.cron is not None:
            self._check_cron(self.cron)

    @property
    def when(self) -> str:
        """In words of the server, which people know from cron."""
        if self.at is not None:
            return f"@at {self.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        return f"@every {self.every_s}s" if self.every_s is not None else str(self.cron)

    def run(self, at: datetime) -> str:
        """The run of the occurrence at `at`: there can be only one."""
        return f"{self.name}-{at.astimezone(UTC):{_STAMP}}"

    def has(self, run: str) -> bool:
        """Whether the run is one of an occurrence."""
        return re.fullmatch(re.escape(self.name) + _STAMPED, run) is not None

    def due(self, since: datetime, now: datetime) -> datetime | None:
        """The newest occurrence up to `now`, of a schedule made at `since`; None if there was none yet."""
        if self.at is not None:
            return self.at if self.at <= now else None
        start = _whole(since)
        if self.every_s is not None:
            count = int((now - start).total_seconds() // self.every_s)
            return start + timedelta(seconds=count * self.every_s) if count >= 1 else None
        at = self._cron_from(now.replace(microsecond=0) + _SECOND, reverse=True)
        return at if at is not None and at > since else None

    def following(self, since: datetime, now: datetime) -> datetime | None:
        """The first occurrence after `now`; None if there is none any more."""
        if self.at is not None:
            return self.at if self.at > now else None
        if self.every_s is not None:
            return (self.due(since, now) or _whole(since)) + timedelta(seconds=self.every_s)
        return self._cron_from(now.replace(microsecond=0), reverse=False)

    def _cron_from(self, instant: datetime, *, reverse: bool) -> datetime | None:
        from cronsim import CronSim  # noqa: PLC0415 - only who has a schedule pays for it

        assert self.cron is not None, "one of the three is given"
        zone = _zone(self.zone or "UTC")
        local = instant.astimezone(zone)
        for found in CronSim(self.cron, local, reverse=reverse):
            # An hour that comes twice, when summer time ends, counts once for what names its hours.
            is_second = found.fold and "*" not in self.cron.split()[_HOUR]
            at = (found.replace(fold=0) if is_second else found).astimezone(UTC)
            if reverse or at > instant:
                return at
        return None

    def _check_cron(self, cron: str) -> None:
        from cronsim import CronSimError  # noqa: PLC0415 - as above

        example = 'second, minute, hour, day, month, day of the week (Sunday is 0), for example "0 30 2 * * MON-FRI"'
        if not _CRON.fullmatch(cron):
            raise self._wrong(f"cron {cron!r} has not six fields of numbers, names, * , - and /: {example}")
        try:
            self._cron_from(datetime(2026, 1, 1, tzinfo=UTC), reverse=False)
        except CronSimError as error:
            raise self._wrong(f"cron {cron!r}: {error}: {example}") from None
        except (LookupError, ValueError, OSError):
            raise self._wrong(f"there is no time zone {self.zone!r} here: write Europe/Berlin") from None

    def _wrong(self, what: str) -> ScheduleError:
        return ScheduleError(f"schedule {self.name!r}: {what}")


class Scheduled(msgspec.Struct, frozen=True):
    """Somebody made a schedule, or made one anew."""

    by: str
    schedule: Schedule


class Unscheduled(msgspec.Struct, frozen=True):
    """Somebody ended a schedule."""

    by: str
    name: str


class OccurrenceSkipped(msgspec.Struct, frozen=True, omit_defaults=True):
    """An occurrence was not started: it was too late for it, or `run`, of one before, was still open."""

    name: str
    at: Instant
    reason: Literal["overlap", "late"]
    run: str = ""


def in_six_fields(cron: str) -> str:
    """Cron as most people write it has no seconds: the five fields mean second 0."""
    fields = cron.split()
    return " ".join(["0", *fields] if len(fields) == _FIELDS - 1 else fields)


def _whole(instant: datetime) -> datetime:
    """To the nearest second, as the server counts from when it was told."""
    return (instant + _SECOND / 2).replace(microsecond=0)


def _zone(key: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - only who has a schedule pays for it

    return ZoneInfo(key)
