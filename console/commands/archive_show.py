"""`phasebus archive ls` and `archive verify`: an archive needs no bus to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from console.failure import FAILED, NOT_FOUND, OK, Failure
from console.session import json_option

if TYPE_CHECKING:
    from bus.log.archive import Archive
    from bus.log.segment import Segment
    from console.printer import Printer

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER, metavar="DIR")
@json_option
def ls(folder: Path, as_json: bool) -> None:
    """List the segments of an archive."""
    from console.printer import Printer
    from console.text import size

    printer = Printer(as_json=as_json)
    index = _opened(folder).index
    assert index is not None, "it was looked for"
    if as_json:
        for each in index.segments:
            printer.record(_facts(each))
        return
    rows = [
        [
            each.file,
            str(each.records),
            str(len(each.subjects)),
            size(each.size_bytes),
            f"{each.first}-{each.last}",
            f"{each.since:%Y-%m-%d %H:%M} - {each.until:%Y-%m-%d %H:%M}",
        ]
        for each in index.segments
    ]
    printer.line(f"archive {index.id} of log {index.namespace!r}, made at {index.created}")
    if rows:
        printer.table(["FILE", "RECORDS", "SUBJECTS", "SIZE", "POSITIONS", "STORED (UTC)"], rows)
    if index.removal is not None:
        printer.hint(f"{len(index.removal.upto)} subjects are still to leave the log: repeat `phasebus archive run`")


@click.command()
@click.argument("folder", type=_FOLDER, metavar="DIR")
@json_option
def verify(folder: Path, as_json: bool) -> int:
    """Read an archive from beginning to end and check every byte."""
    import asyncio

    from console.printer import Printer

    return asyncio.run(_verify(_opened(folder), Printer(as_json=as_json)))


async def _verify(archive: Archive, printer: Printer) -> int:
    damaged = 0
    async for checked in archive.verify():
        damaged += bool(checked.problem)
        if printer.as_json:
            printer.record({**_facts(checked.segment), "problem": checked.problem})
        else:
            printer.line(f"{checked.segment.file}  {checked.problem or 'ok'}")
    if damaged:
        step = "put back copies of the damaged files, then check again"
        raise Failure(FAILED, f"{damaged} segments of {archive.folder} are damaged", step)
    return OK


def _opened(folder: Path) -> Archive:
    from bus.log.archive import Archive

    archive = Archive(folder)
    if archive.edition() is None:
        raise Failure(NOT_FOUND, f"there is no archive in {folder}", "phasebus archive run --to DIR --keep run=30d")
    return archive


def _facts(segment: Segment) -> dict[str, object]:
    return {
        "file": segment.file,
        "sha256": segment.sha256,
        "size_bytes": segment.size_bytes,
        "records": segment.records,
        "subjects": len(segment.subjects),
        "first": segment.first,
        "last": segment.last,
        "since": segment.since,
        "until": segment.until,
    }
