"""`phasebus dead show`: one letter, whole, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from console.commands.dead_ls import place, record
from console.failure import NOT_FOUND, Failure
from console.session import on_bus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from bus.client import Client
    from bus.letters.letters import Letter
    from bus.problem import Problem
    from bus.rules.dead import DeadLetter, Try, Unreadable
    from console.printer import Printer

_HEX_BYTES = 16
_SHOWN_BYTES = 512
_LATER_EVENTS = 50


class Later(NamedTuple):
    """Something that happened to the work after it died."""

    position: int
    at: datetime
    type: str
    says: str


@click.command()
@click.argument("number", type=click.IntRange(1))
@on_bus
async def show(client: Client, printer: Printer, number: int) -> None:
    """Show a dead letter: its payload, every attempt, and why each failed; then what became of it."""
    from bus.clock import utc_now
    from bus.errors import NotFound
    from bus.letters.letters import Letters
    from bus.letters.verdicts import LetterDiscarded
    from bus.rules.dead import DeadLetter
    from console.text import escaped

    letters = Letters(client.log, client.runs)
    try:
        found = await letters.one(number)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus dead ls --all") from None
    letter = found.letter
    verdict = letters.verdict(found.id)
    earlier = None
    if isinstance(letter, DeadLetter) and letter.earlier:
        earlier = await letters.of_id(letter.earlier, letter)
    since = await _since(client, found)
    if printer.as_json:
        number_before = earlier.number if earlier is not None else None
        printer.record(
            record(found)
            | {"earlier_number": number_before, "verdict": verdict, "since": [each._asdict() for each in since]}
        )
        return
    for line in _heading(found, utc_now(), earlier):
        printer.line(line)
    for line in _work(letter) if isinstance(letter, DeadLetter) else _bytes(letter):
        printer.line(line)
    if verdict is not None:
        done = "discarded" if isinstance(verdict, LetterDiscarded) else "sent again"
        reason = f": {verdict.reason}" if verdict.reason else ""
        printer.line(escaped(f"{done} by {verdict.by}{reason}"))
    if since:
        printer.line("since then")
    for each in since:
        printer.line(escaped(f"  {each.at:%Y-%m-%d %H:%M:%S}  {each.position}  {each.type}  {each.says}"))
    if found.standing == "open":
        printer.hint(f"next: phasebus dead redrive {number}, or edit, or discard")


async def _since(client: Client, found: Letter) -> list[Later]:
    """What happened to the work after it died: the first of it, where it is much."""
    from bus.errors import Archived
    from bus.rules.dead import DeadLetter
    from console.story import named, said

    letter, later = found.letter, list[Later]()
    if not isinstance(letter, DeadLetter):
        return later
    try:
        async for commit in client.ledger.commits(letter.run, after=found.number):
            for event in commit.events:
                phase, item = getattr(event, "phase", None), getattr(event, "item", None)
                if phase is None or (phase == letter.phase and item in (None, letter.item)):
                    later.append(Later(commit.position, commit.at, named(event), said(event)))
            if len(later) >= _LATER_EVENTS:
                break
    except Archived:
        pass
    return later


def _heading(found: Letter, now: datetime, earlier: Letter | None) -> Iterator[str]:
    from bus.rules.dead import DeadLetter
    from console.text import ago, escaped

    letter = found.letter
    facts = [("number", str(found.number)), ("status", found.standing), ("died", ago(found.at, now))]
    facts += [("capability", letter.capability), ("from", place(letter))]
    if isinstance(letter, DeadLetter):
        facts += [("plan", letter.plan), ("problem", str(letter.problem)), ("cause", letter.cause)]
        facts.append(("positions", f"run began at {letter.began}, work was ready at {letter.origin}"))
        if earlier is not None:
            facts.append(("died before", f"as {earlier.number}"))
    else:
        facts += [("read by", letter.instance), ("problem", letter.reason)]
        facts += [("header", f"{name}: {value}") for name, value in letter.headers.items()]
    facts += [("group", found.cause.key), ("ids", _ids(found))]
    for name, value in facts:
        yield f"{name:<11} {escaped(value)}"


def _ids(found: Letter) -> str:
    told = [("id", found.id), ("correlation", found.correlation), ("causation", found.causation)]
    return ", ".join(f"{name} {value}" for name, value in told if value)


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
