"""`phasebus schema check`: what changed between two schema documents, and whom it breaks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from console.session import json_option

if TYPE_CHECKING:
    from bus.schema.compatibility import Change
    from bus.schema.document import Document
    from console.printer import Printer

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)
_SIDES = {"old-data": ("old_data",), "old-readers": ("old_readers",), "both": ("old_data", "old_readers")}
_TYPES = 3


@click.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.option(
    "--for",
    "side",
    type=click.Choice(list(_SIDES)),
    default="both",
    show_default=True,
    help="Fail only for what breaks this side.",
)
@json_option
def check(old: str, new: str, side: str, as_json: bool) -> int:
    """Say what changed between two documents, and what that breaks.

    OLD and NEW are documents of `phasebus schema`; `-` is stdin. A change breaks old data if the new code can't read
    it any more, and old readers if they can't read what the new code writes. The exit code is 1 if something breaks.
    """
    from bus.schema.compatibility import changes
    from console.failure import FAILED, OK, USAGE, Failure
    from console.printer import Printer

    if old == new == "-":
        raise Failure(USAGE, "only one of OLD and NEW can be stdin")
    found = changes(_read(old), _read(new))
    breaking = [change for change in found if set(change.breaks) & set(_SIDES[side])]
    printer = Printer(as_json=as_json)
    _print(printer, found)
    if not breaking:
        printer.hint(
            "no changes" if not found else f"nothing breaks: {len(found)} change{'s' if len(found) > 1 else ''}"
        )
        return OK
    printer.hint(
        f"breaking: {len(breaking)} of {len(found)}. Give a type that changes like this its next version, and an "
        "upcaster from the old one"
    )
    return FAILED


def _read(file: str) -> Document:
    from bus.errors import MalformedMessage
    from bus.schema.document import decode
    from console.failure import USAGE, Failure

    body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return decode(body)
    except MalformedMessage as error:
        raise Failure(USAGE, f"{file}: {error}", "make one: phasebus schema > schema.json") from None


def _print(printer: Printer, found: list[Change]) -> None:
    if printer.as_json:
        for change in found:
            printer.record(change)
    elif found:
        printer.table(["BREAKS", "WHERE", "WHAT", "IN"], [_cells(change) for change in found])


def _cells(change: Change) -> list[str]:
    breaks = " and ".join(side.replace("_", " ") for side in change.breaks)
    others = [name for name in change.types if not change.where.startswith(name)]
    more = f" and {len(others) - _TYPES} more" if len(others) > _TYPES else ""
    return [breaks or "nothing", change.where, change.what, ", ".join(others[:_TYPES]) + more]
