"""Notices: what the log is told about archives of it, by whom and what; and by that, that one archiver is at work.

Each notice is appended at the position of the one before: who finds another's there has to stop.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from bus.clock import utc_now
from bus.errors import MalformedMessage, Refused
from bus.format.envelope import decode_data, envelope
from bus.log.log import Log, VersionConflict

STARTED, SEALED, REMOVED = "ops.archive_started.v1", "ops.archive_sealed.v1", "ops.archive_removed.v1"
"""A pass began; what it archived, with checksums, is about to leave the log; it has left."""


class _Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who archives, and where to: the archive's id, and its folder on that host."""

    by: str
    archive: str
    host: str
    folder: str


class ArchiveStarted(_Notice, frozen=True):
    """A pass began, under a policy such as `run=30d`; with `finishes`, to take out what an earlier one has archived."""

    policy: tuple[str, ...] = ()
    finishes: bool = False


class SealedSegment(msgspec.Struct, frozen=True):
    """A file of the archive, with its checksum and the positions of its first and last record."""

    file: str
    sha256: str
    records: int
    first: int
    last: int


class ArchiveSealed(_Notice, frozen=True):
    """It is archived, and is about to leave the log: records by class, of so many subjects, in these files."""

    records: dict[str, int]
    subjects: int
    segments: tuple[SealedSegment, ...]


class ArchiveRemoved(_Notice, frozen=True):
    """It has left the log. `kept` (the first 100) went on meanwhile and are in the log still."""

    records: int
    subjects: int
    kept: tuple[str, ...] = ()


_TYPES = {STARTED: ArchiveStarted, SEALED: ArchiveSealed, REMOVED: ArchiveRemoved}
_notice = msgspec.json.Decoder(_Notice)


class Notices:
    """The notices on a log's `ops.archive`, as one archiver adds to them. `is_open`: a pass began and has not ended."""

    def __init__(self, log: Log, folder: Path, archive: str, *, by: str, source: str) -> None:
        self._log = log
        self._subject = log.subjects.ops("archive")
        self._place = {"by": by, "archive": archive, "host": socket.gethostname(), "folder": str(folder.absolute())}
        self._source = source
        self._position = 0
        self.is_open = False

    async def begin(self, *, take_over: bool) -> None:
        """Look at the newest one. Raises Refused if it is of another archive, unless that is taken over: only one can
        be read as one with the log."""
        newest = await self._log.last(self._subject)
        if newest is None:
            return
        self._position = newest.position
        try:
            message = newest.envelope()
            notice = decode_data(message, _notice, "a notice of an archive")
        except MalformedMessage:
            return
        self.is_open = message.type != REMOVED
        if notice.archive == self._place["archive"] or take_over:
            return
        where = f"{notice.folder} on {notice.host}"
        if self.is_open:
            raise Refused(
                f"an archive to {where} began at {message.time:%Y-%m-%d %H:%M:%S} and has not ended: repeat it there, "
                "or take over if it never will"
            )
        raise Refused(
            f"this log is archived to {where}, and only one archive can be read as one with the log: go on with that "
            "folder wherever it is now, or take over if it is lost"
        )

    async def say(self, kind: str, **what: Any) -> None:
        """Add one. Raises Refused if another archiver has added one since: then this one must not go on."""
        notice = _TYPES[kind](**self._place, **what)
        message = envelope(kind, notice, id=uuid4().hex, source=self._source, time=utc_now())
        try:
            self._position = await self._log.append(self._subject, message, expected=self._position)
        except VersionConflict:
            raise Refused("another archiver is at work on this log: this one has stopped, try again later") from None
        self.is_open = kind != REMOVED
