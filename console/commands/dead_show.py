"""`phasebus dead ls` and `dead show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.session import on_bus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from bus.client import Client
    from bus.dead import DeadLetter, Try, Unreadable
    from bus.problem import Problem
    from console.letters import Letter
    from console.printer import Printer

_PROBLEM_CHARACTERS = 60
_HEX_BYTES = 16
_SHOWN_BYTES = 512


@click.command()
@click.option("--all", "is_all", is_flag=True, help="Also those redriven or resolved.")
@click.option("--capability", metavar="NAME", help="Only work for this capability.")
@on_bus
async def ls(client: Client, printer: Printer, is_all: bool, capability: str | None) -> None:
    """List what is dead now."""
    from bus.ledger import utc_now
    from console.letters import Letters

    letters = Letters(client)
    found = [
        each
        async for each in letters.all()
        if (is_all or each.standing == "open") and capability in (None, each.letter.capability)
    ]
    if letters.unreadable:
        printer.hint(f"{letters.unreadable} records among the dead letters can't be read")
    now = utc_now()
    if printer.as_json:
        for each in found:
            printer.record(_record(each))
    elif found:
        headings = ["NUMBER", "DIED", "CAPABILITY", "FROM", "ATTEMPTS", "PROBLEM"]
        rows = [_row(each, now) for each in found]
        if is_all:
            headings.append("STANDING")
            rows = [[*row, each.standing] for row, each in zip(rows, found, strict=True)]
        printer.table(headings, rows)
        printer.hint("next: phasebus dead show NUMBER, phasebus dead redrive NUMBER")
    else:
        printer.hint("no dead letters" if is_all else "nothing is dead; --all lists what was")


@click.command()
@click.argument("number", type=click.IntRange(1))
@on_bus
async def show(client: Client, printer: Printer, number: int) -> None:
    """Show a dead letter: its payload, every attempt, and why each failed."""
    from bus.dead import DeadLetter
    from bus.ledger import utc_now
    from console.letters import Letters

    found = await Letters(client).one(number)
    if printer.as_json:
        printer.record(_record(found))
        return
    for line in _heading(found, utc_now()):
        printer.line(line)
    body = _work(found.letter) if isinstance(found.letter, DeadLetter) else _bytes(found.letter)
    for line in body:
        printer.line(line)
    if found.standing == "open":
        printer.hint(f"next: phasebus dead redrive {number}")


def _record(found: Letter) -> dict[str, Any]:
    from msgspec.structs import asdict

    return {"number": found.number, "at": found.at, "standing": found.standing, **asdict(found.letter)}


def _row(found: Letter, now: datetime) -> list[str]:
    from bus.dead import DeadLetter
    from console.text import ago, shortened

    letter = found.letter
    if isinstance(letter, DeadLetter):
        origin, tries, problem = _place(letter), str(len(letter.attempts)), str(letter.problem)
    else:
        origin, tries, problem = letter.subject, "0", f"unreadable: {letter.reason}"
    return [
        str(found.number),
        ago(found.at, now),
        letter.capability,
        origin,
        tries,
        shortened(problem, _PROBLEM_CHARACTERS),
    ]


def _place(letter: DeadLetter) -> str:
    place = f"{letter.run}/{letter.phase}"
    return place if letter.item is None else f"{place}:{letter.item}"


def _heading(found: Letter, now: datetime) -> Iterator[str]:
    from bus.dead import DeadLetter
    from console.text import ago, escaped

    letter = found.letter
    facts = [("number", str(found.number)), ("standing", found.standing), ("died", ago(found.at, now))]
    facts.append(("capability", letter.capability))
    if isinstance(letter, DeadLetter):
        facts += [("from", _place(letter)), ("plan", letter.plan), ("problem", str(letter.problem))]
    else:
        facts += [("from", letter.subject), ("read by", letter.instance), ("problem", letter.reason)]
    for name, value in facts:
        yield f"{name:<10} {escaped(value)}"


def _work(letter: DeadLetter) -> Iterator[str]:
    from console.printer import pretty_json

    yield "payload"
    for line in pretty_json(letter.payload):
        yield f"  {line}"
    for attempt in letter.attempts:
        yield from _attempt(attempt)
    if not letter.attempts:
        yield "no attempts: nobody took it"


def _attempt(attempt: Try) -> Iterator[str]:
    from console.text import duration, escaped

    took = ""
    if attempt.ended_at is not None:
        took = f", {duration((attempt.ended_at - attempt.started_at).total_seconds())}"
    when = f"{attempt.started_at:%Y-%m-%d %H:%M:%S} UTC"
    yield escaped(f"attempt {attempt.number} on {attempt.instance}, {when}{took}: {attempt.cause or 'no end'}")
    if attempt.problem is not None:
        for line in _problem(attempt.problem):
            yield f"  {escaped(line)}"


def _problem(problem: Problem) -> Iterator[str]:
    yield f"{problem} ({problem.code}, {problem.error_class})"
    # The first cause is the error itself.
    for cause in problem.causes[1:]:
        yield f"  because {cause}"
    for line in problem.trace.splitlines():
        yield f"  | {line}"


def _bytes(letter: Unreadable) -> Iterator[str]:
    from console.text import escaped

    shown = letter.body[:_SHOWN_BYTES]
    cut = f", the first {_SHOWN_BYTES} of them" if len(letter.body) > _SHOWN_BYTES else ""
    yield f"payload    {len(letter.body)} bytes{cut}"
    yield f"  {escaped(shown.decode(errors='backslashreplace'))}"
    for start in range(0, len(shown), _HEX_BYTES):
        yield f"  {start:04x}  {shown[start : start + _HEX_BYTES].hex(' ')}"
