"""The address file: `phasebus up` leaves it in `.phasebus`, and everything in that folder or below finds the bus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from bus.signals import is_alive

FILE = Path(".phasebus/address.json")


class Started(msgspec.Struct, frozen=True):
    """A bus that `phasebus up` serves: how to reach it, for as long as process `pid` lives."""

    url: str
    system_url: str
    pid: int
    durability: Literal["synced", "fast"] = "synced"
    operator_url: str | None = None
    auditor_url: str | None = None
    websocket_url: str | None = None


def find_started(ignored: Callable[[str], None], folder: Path | None = None) -> Started | None:
    """The bus that runs in this folder or the nearest one above it. `ignored` is told why a file is passed over."""
    found = _nearest(ignored, folder)
    return found[1] if found is not None else None


def folder_of_started(folder: Path | None = None) -> Path | None:
    """The folder in which that bus was started: here, or above."""
    found = _nearest(lambda _reason: None, folder)
    return found[0] if found is not None else None


def _nearest(ignored: Callable[[str], None], folder: Path | None) -> tuple[Path, Started] | None:
    here = (folder or Path.cwd()).resolve()
    for each in (here, *here.parents):
        started = read_started(each / FILE, ignored)
        if started is not None:
            return each, started
    return None


def read_started(path: Path, ignored: Callable[[str], None]) -> Started | None:
    """The bus whose address is in a file, if it still runs."""
    try:
        with path.open("rb") as file:
            is_ours = os.fstat(file.fileno()).st_uid == os.getuid()
            started = msgspec.json.decode(file.read(), type=Started)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        ignored(f"ignored {path}: {error}")
        return None
    # In a folder that others may write to, anybody could send our work to a bus of theirs.
    if not is_ours:
        ignored(f"ignored {path}: it belongs to another user")
        return None
    if not is_alive(started.pid):
        ignored(f"ignored {path}: process {started.pid}, which wrote it, has ended")
        return None
    return started


@contextmanager
def announced(started: Started) -> Iterator[None]:
    """The address file, for the owner's eyes only, while the block runs."""
    FILE.parent.mkdir(mode=0o700, exist_ok=True)
    unfinished = FILE.with_suffix(f".{started.pid}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(started))
    place = FILE.resolve()
    unfinished.replace(place)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
