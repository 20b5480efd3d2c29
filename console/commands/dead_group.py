"""`phasebus dead group` and `dead export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.session import on_bus
from console.wanting import wanted, wanting

if TYPE_CHECKING:
    from bus.client import Client
    from bus.letters.causes import Cause
    from bus.letters.letters import Letter
    from console.printer import Printer

_TITLE_CHARACTERS = 60


@click.command()
@wanting(any_status=True)
@on_bus
async def group(client: Client, printer: Printer, **chosen: Any) -> None:
    """Count what is dead now by cause.

    Deaths are alike if capability, class, code and title are the same; numbers, ids and what is quoted don't count.
    """
    from bus.clock import utc_now
    from console.text import ago, shortened

    groups: dict[Cause, list[Letter]] = {}
    async for each in client.dead_letters(wanted(chosen)):
        groups.setdefault(each.cause, []).append(each)
    most = sorted(groups.items(), key=lambda found: (-len(found[1]), found[0]))
    if printer.as_json:
        for cause, letters in most:
            printer.record(_record(cause, letters))
    elif most:
        now = utc_now()
        rows = [
            [
                cause.key,
                str(len(letters)),
                cause.capability,
                cause.error_class,
                cause.code,
                ago(letters[-1].at, now),
                shortened(cause.title, _TITLE_CHARACTERS),
            ]
            for cause, letters in most
        ]
        printer.table(["GROUP", "COUNT", "CAPABILITY", "CLASS", "CODE", "LAST", "PROBLEM"], rows)
        printer.hint("next: phasebus dead ls --group KEY, phasebus dead redrive --group KEY --dry-run")
    else:
        printer.hint("nothing is dead")


@click.command()
@wanting(any_status=True)
@on_bus
async def export(client: Client, printer: Printer, **chosen: Any) -> None:
    """Write dead letters as JSON lines, whole: payload, attempts, errors, where they come from and how they stand."""
    from console.commands.dead_ls import record

    count = 0
    async for each in client.dead_letters(wanted(chosen)):
        printer.record(record(each))
        count += 1
    printer.hint(f"{count} dead letters")


def _record(cause: Cause, letters: list[Letter]) -> dict[str, Any]:
    return {
        "group": cause.key,
        "count": len(letters),
        "capability": cause.capability,
        "class": cause.error_class,
        "code": cause.code,
        "title": cause.title,
        "first_at": letters[0].at,
        "last_at": letters[-1].at,
        "numbers": [each.number for each in letters],
    }
