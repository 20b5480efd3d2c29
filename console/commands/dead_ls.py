"""`phasebus dead ls`, and how a letter is written for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.session import on_bus
from console.wanting import wanted, wanting

if TYPE_CHECKING:
    from datetime import datetime

    from bus.client import Client
    from bus.letters.letters import Letter
    from bus.rules.dead import DeadLetter, Unreadable
    from console.printer import Printer

_PROBLEM_CHARACTERS = 60


@click.command()
@wanting(any_status=True)
@on_bus
async def ls(client: Client, printer: Printer, **chosen: Any) -> None:
    """List what is dead now."""
    from bus.clock import utc_now

    meant = wanted(chosen)
    found = [each async for each in client.dead_letters(meant)]
    now = utc_now()
    if printer.as_json:
        for each in found:
            printer.record(record(each))
    elif found:
        headings = ["NUMBER", "DIED", "CAPABILITY", "FROM", "ATTEMPTS", "PROBLEM"]
        rows = [_row(each, now) for each in found]
        if meant.status != ("open",):
            headings.append("STATUS")
            rows = [[*row, each.standing] for row, each in zip(rows, found, strict=True)]
        printer.table(headings, rows)
        printer.hint("next: phasebus dead show NUMBER, phasebus dead redrive NUMBER, phasebus dead group")
    else:
        printer.hint("no dead letters" if not meant.status else "nothing is dead; --all lists what was")
    await _say_paused(client, printer)


def record(found: Letter) -> dict[str, Any]:
    """A letter for a program."""
    from msgspec.structs import asdict

    about = {
        "number": found.number,
        "id": found.id,
        "at": found.at,
        "status": found.standing,
        "group": found.cause.key,
        "cause": found.letter.cause,
        "correlation": found.correlation,
        "causation": found.causation,
    }
    return about | asdict(found.letter)


def place(letter: DeadLetter | Unreadable) -> str:
    """Where the work came from: run, phase and item, or the subject."""
    from bus.rules.dead import DeadLetter

    if not isinstance(letter, DeadLetter):
        return letter.subject
    phase = f"{letter.run}/{letter.phase}"
    return phase if letter.item is None else f"{phase}:{letter.item}"


def _row(found: Letter, now: datetime) -> list[str]:
    from bus.rules.dead import DeadLetter
    from console.text import ago, shortened

    letter = found.letter
    if isinstance(letter, DeadLetter):
        tries, problem = str(len(letter.attempts)), str(letter.problem)
    else:
        tries, problem = "0", f"unreadable: {letter.reason}"
    return [
        str(found.number),
        ago(found.at, now),
        letter.capability,
        place(letter),
        tries,
        shortened(problem, _PROBLEM_CHARACTERS),
    ]


async def _say_paused(client: Client, printer: Printer) -> None:
    """A capability that takes nothing is easily taken for one without work."""
    for capability in sorted({each for beat in await client.agents() for each in beat.paused}):
        printer.hint(f"{capability} takes nothing since a death: phasebus dead release {capability}")
