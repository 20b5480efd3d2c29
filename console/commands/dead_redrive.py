"""`phasebus dead redrive`: dead work goes back to where it came from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from console.failure import OK, REFUSED, USAGE, Failure
from console.session import on_live_bus, operator

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.client import Client
    from console.letters import Letter
    from console.printer import Printer


@click.command()
@click.argument("numbers", type=click.IntRange(1), nargs=-1, metavar="NUMBER...")
@click.option("--all", "is_all", is_flag=True, help="Everything that is dead now.")
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
@click.option("--by", default=operator, metavar="WHO", help="Who decides; user@host unless told.")
@on_live_bus
async def redrive(client: Client, printer: Printer, numbers: tuple[int, ...], is_all: bool, yes: bool, by: str) -> int:
    """Send dead work again to where it came from.

    Dead letters of one run are one new pass over it; those of one phase go together.
    """
    from bus.errors import Refused
    from console.letters import Letters
    from console.offers import say_unserved

    if bool(numbers) == is_all:
        raise Failure(USAGE, "which? give numbers, or --all", "phasebus dead ls")
    letters = Letters(client)
    if is_all:
        chosen = [each async for each in letters.all() if each.standing == "open"]
        _confirm(printer, chosen, yes)
    else:
        chosen = [await letters.one(number) for number in dict.fromkeys(numbers)]
    stale = [each for each in chosen if each.standing != "open"]
    for each in stale:
        _say_stale(printer, each)
    code = REFUSED if stale else OK
    sent: list[str] = []
    for together in _passes(each for each in chosen if each.standing == "open"):
        try:
            await _send(client, together, by)
        except Refused as refused:
            code = REFUSED
            _say(printer, together, refused.reason)
        else:
            _say(printer, together)
            sent += [each.letter.capability for each in together]
    await say_unserved(client, printer, sent)
    return code


async def _send(client: Client, letters: list[Letter], by: str) -> None:
    from bus.dead import DeadLetter

    first = letters[0].letter
    if isinstance(first, DeadLetter):
        phases = dict.fromkeys(each.letter.phase for each in letters if isinstance(each.letter, DeadLetter))
        await client.redrive(first.run, by=by, phases=phases)
    else:
        await client.redrive_letter(letters[0].number, by=by)


def _confirm(printer: Printer, chosen: list[Letter], yes: bool) -> None:
    if not chosen:
        printer.hint("nothing is dead")
    elif not yes:
        if not sys.stdin.isatty():
            raise Failure(USAGE, f"{len(chosen)} dead letters would be redriven: say --yes", "phasebus dead ls")
        if not click.confirm(f"redrive {len(chosen)} dead letters?", err=True):
            raise Failure(REFUSED, "nothing was redriven")


def _passes(letters: Iterable[Letter]) -> list[list[Letter]]:
    """What is sent together: the letters of each run; messages nobody could read alone."""
    from bus.dead import DeadLetter

    passes: dict[str | int, list[Letter]] = {}
    for each in letters:
        passes.setdefault(each.letter.run if isinstance(each.letter, DeadLetter) else each.number, []).append(each)
    return list(passes.values())


def _say_stale(printer: Printer, each: Letter) -> None:
    """A letter that is not dead any more: what became of its work is in its run."""
    from bus.dead import DeadLetter

    became = "was redriven already" if each.standing == "redriven" else "is resolved: its work is done"
    if printer.as_json:
        _say(printer, [each], became)
        return
    printer.hint(f"error: dead letter {each.number} {became}")
    if isinstance(each.letter, DeadLetter):
        printer.hint(f"  next: phasebus run show {each.letter.run}")


def _say(printer: Printer, letters: list[Letter], refusal: str = "") -> None:
    for each in letters:
        if printer.as_json:
            printer.record({"number": each.number, "redriven": not refusal, "reason": refusal})
        elif refusal:
            printer.hint(f"error: dead letter {each.number} is not redriven: {refusal}")
        else:
            printer.line(f"redriven {each.number}")
