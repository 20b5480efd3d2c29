"""The index of an archive: which segments there are, what they hold, and what is being taken out of the log.

One JSON file, replaced as a whole. What it names is archived, whatever else lies in the folder is not.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import msgspec

from bus.errors import ArchiveDamaged
from bus.log.segment import Segment, sync_folder

FILE = "index.json"
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Removal(msgspec.Struct, frozen=True):
    """What has been archived and is to leave the log: of each subject all up to and including a position."""

    files: tuple[str, ...]
    upto: dict[str, int]


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """An archive at a glance. `created` is when the log's stream was made: an archive is of one log."""

    version: Literal[1] = 1
    id: str
    namespace: str
    created: str
    segments: tuple[Segment, ...] = ()
    removal: Removal | None = None

    def upto(self, subject: str) -> int:
        """The position up to which a subject is archived, 0 if it is not."""
        return max((span.last for each in self.segments if (span := each.subjects.get(subject))), default=0)


class _File(msgspec.Struct, frozen=True):
    sha256: str
    index: msgspec.Raw


_file = msgspec.json.Decoder(_File)
_index = msgspec.json.Decoder(Index)


def read_index(folder: Path) -> Index | None:
    """The index of the archive in a folder, if there is one. Raises ArchiveDamaged."""
    path = folder / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveDamaged(path, f"it can't be read ({error.strerror})") from error
    try:
        found = _file.decode(content)
        if hashlib.sha256(found.index).hexdigest() != found.sha256:
            raise ArchiveDamaged(path, "its content is not what was written")
        return _index.decode(found.index)
    except _UNREADABLE as error:
        raise ArchiveDamaged(path, f"it is not an index of this version ({error})") from error


def write_index(folder: Path, index: Index) -> None:
    """Replace it; on the disk when this returns."""
    body = msgspec.json.encode(index)
    content = msgspec.json.encode(_File(hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))
    unfinished = folder / f"{FILE}.unfinished"
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / FILE)
    sync_folder(folder)
