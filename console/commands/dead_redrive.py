"""`phasebus dead redrive`: dead work goes back to where it came from."""

from __future__ import annotations

import re
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from console.failure import FAILED, NOT_FOUND, OK, REFUSED, USAGE, Failure
from console.session import on_live_bus, operator
from console.wanting import is_chosen, wanted, wanting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from bus.client import Client
    from bus.letters.campaign import Outcome
    from bus.letters.wanted import Wanted
    from console.printer import Printer

_PACE = re.compile(r"(\d+(?:\.\d+)?)/([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600}
_CHARACTERS = 100


def _pace(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    found = _PACE.fullmatch(value) if value is not None else None
    if value is not None and (found is None or not float(found[1])):
        raise click.BadParameter(f"{value!r} is not a pace: write 10/s, 100/m or 5/h", ctx, param)
    return float(found[1]) / _SECONDS[found[2]] if found is not None else None


@click.command()
@click.argument("numbers", type=click.IntRange(1), nargs=-1, metavar="[NUMBER]...")
@wanting()
@click.option("--all", "is_all", is_flag=True, help="Everything that is dead now.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent, and with what payload.")
@click.option("--max", "most", type=click.IntRange(1), metavar="COUNT", help="At most so many.")
@click.option("--pace", "pace_per_s", callback=_pace, metavar="PACE", help="Not faster than that: 10/s, 100/m.")
@click.option("--try-one", is_flag=True, help="Send one, and the others only if it succeeds.")
@click.option("--transform", metavar="MODULE:FUNCTION", help="Makes the new payload of the old one; a FILE.py will do.")
@click.option("--resume", metavar="ID", help="Go on with a redrive that was interrupted.")
@click.option("--yes", is_flag=True, help="Do not ask before many.")
@click.option("--reason", default="", help="Kept with the decision.")
@click.option("--by", default=operator, metavar="WHO", help="Who decides; user@host unless told.")
@on_live_bus
async def redrive(
    client: Client,
    printer: Printer,
    numbers: tuple[int, ...],
    is_all: bool,
    dry_run: bool,
    most: int | None,
    pace_per_s: float | None,
    try_one: bool,
    transform: str | None,
    resume: str | None,
    yes: bool,
    reason: str,
    by: str,
    **chosen: Any,
) -> int:
    """Send dead work again to where it came from: by number, by what it has in common, or all of it.

    Each letter goes on its own, and nothing is done twice, however often or by whomever it is sent. A redrive of many
    has an id: whatever interrupts it, --resume ID goes on with what is left.
    """
    from bus.letters.verdicts import Terms

    if resume is not None:
        if numbers or is_all or is_chosen(chosen) or dry_run or most or pace_per_s or try_one or transform:
            raise Failure(USAGE, "--resume goes on as it was begun, on the same terms: leave out the rest")
        return await _resume(client, printer, resume, by)
    if sum((bool(numbers), is_all, is_chosen(chosen))) != 1:
        raise Failure(USAGE, "which? give numbers, options that choose, or --all", "phasebus dead group")
    function = _function(transform) if transform is not None else None
    meant = _numbered(numbers) if numbers else wanted(chosen)
    if numbers:
        await _check(client, printer, numbers)
    if dry_run:
        return await _rehearse(client, printer, meant, most, function)
    terms = Terms(most=most, pace_per_s=pace_per_s, try_one=try_one, transform=transform or "")
    if len(numbers) == 1 and function is None:
        return await _one(client, printer, numbers[0], by, reason)
    if not numbers:
        await _confirm(client, printer, meant, most, yes)
    outcomes = client.redrive_letters(meant, by=by, reason=reason, terms=terms, transform=function)
    return await _tell(client, printer, outcomes)


async def _one(client: Client, printer: Printer, number: int, by: str, reason: str) -> int:
    from bus.errors import Refused
    from bus.rules.dead import DeadLetter
    from console.offers import say_unserved

    found = await client.dead_letter(number)
    try:
        await client.redrive_letter(number, by=by, reason=reason)
    except Refused as refused:
        _say(printer, number, refused.reason)
        if not printer.as_json and isinstance(found.letter, DeadLetter):
            printer.hint(f"  next: phasebus run show {found.letter.run}")
        return REFUSED
    _say(printer, number)
    await say_unserved(client, printer, [found.letter.capability])
    return OK


async def _resume(client: Client, printer: Printer, operation: str, by: str) -> int:
    from bus.errors import NotFound
    from bus.letters import campaign

    try:
        begun = await campaign.find(client, operation)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus events cat --type ops.redrive_begun") from None
    function = _function(begun.terms.transform) if begun.terms.transform else None
    return await _tell(client, printer, client.resume_redrive(operation, by=by, transform=function))


async def _tell(client: Client, printer: Printer, outcomes: AsyncGenerator[Outcome, None]) -> int:
    """Say what becomes of each, and of the whole."""
    from console.offers import say_unserved

    code, sent, told = OK, dict[str, None](), False
    async with aclosing(outcomes) as each_outcome:
        async for outcome in each_outcome:
            if not told:
                # Early: it may be interrupted at any moment.
                printer.hint(f"redrive {outcome.operation}; if it is interrupted: --resume {outcome.operation}")
                told = True
            if outcome.ending is not None:
                if printer.as_json:
                    printer.record(outcome)
                printer.hint(_ending(outcome))
                code = FAILED if outcome.ending == "died_again" else code
                continue
            code = REFUSED if outcome.refusal else code
            _say(printer, outcome.number, outcome.refusal)
            if not outcome.refusal and outcome.capability not in sent:
                sent[outcome.capability] = None
                await say_unserved(client, printer, [outcome.capability])
    return code


def _ending(outcome: Outcome) -> str:
    said = f"{outcome.redriven} redriven" + (f", {outcome.refused} could not be" if outcome.refused else "")
    match outcome.ending:
        case "capped":
            return f"{said}; there are more, and --max is reached"
        case "died_again":
            return f"{said}; the first one did not succeed, so the others stay: phasebus dead ls"
    return said


async def _rehearse(
    client: Client, printer: Printer, meant: Wanted, most: int | None, function: Callable[[Any], Any] | None
) -> int:
    """What would be sent. The log is not touched."""
    import msgspec

    from bus.errors import Refused
    from bus.letters.campaign import transformed
    from console.commands.dead_ls import place
    from console.printer import to_json
    from console.text import shortened

    code, count = OK, 0
    async with aclosing(client.dead_letters(meant)) as letters:
        async for each in letters:
            if most is not None and count >= most:
                break
            refusal, payload = "", msgspec.UNSET
            try:
                payload = await transformed(client, each, function) if function is not None else msgspec.UNSET
            except Refused as refused:
                refusal, code = refused.reason, REFUSED
            count += not refusal
            said = {"number": each.number, "capability": each.letter.capability, "from": place(each.letter)}
            if printer.as_json:
                changed: dict[str, Any] = {"payload": payload} if payload is not msgspec.UNSET else {}
                printer.record(said | {"would_redrive": not refusal, "reason": refusal} | changed)
            elif refusal:
                printer.hint(f"error: {refusal}")
            else:
                with_payload = f" with {to_json(payload)}" if payload is not msgspec.UNSET else ""
                line = f"would redrive {each.number}, {each.letter.capability} from {place(each.letter)}{with_payload}"
                printer.line(shortened(line, _CHARACTERS) if not with_payload else shortened(line, 3 * _CHARACTERS))
    printer.hint(f"{count} would be redriven; nothing was done")
    return code


async def _check(client: Client, printer: Printer, numbers: tuple[int, ...]) -> None:
    """Numbers that are none are a slip: then nothing is done."""
    from bus.errors import NotFound

    for number in numbers:
        try:
            await client.dead_letter(number)
        except NotFound as error:
            raise Failure(NOT_FOUND, str(error), "phasebus dead ls --all") from None


async def _confirm(client: Client, printer: Printer, meant: Wanted, most: int | None, yes: bool) -> None:
    if yes:
        return
    count = 0
    async with aclosing(client.dead_letters(meant)) as letters:
        async for _ in letters:
            count += 1
    count = count if most is None else min(count, most)
    if not count:
        printer.hint("nothing is dead")
        return
    if not sys.stdin.isatty():
        raise Failure(USAGE, f"{count} dead letters would be redriven: say --yes, or --dry-run", "phasebus dead ls")
    if not click.confirm(f"redrive {count} dead letters?", err=True):
        raise Failure(REFUSED, "nothing was redriven")


def _function(target: str) -> Callable[[Any], Any]:
    from console.target import load

    found = load(target, object)
    if not callable(found):
        raise Failure(USAGE, f"{target} is of type {type(found).__name__}, not a function")
    return found


def _numbered(numbers: tuple[int, ...]) -> Wanted:
    from bus.letters.wanted import Wanted

    return Wanted(numbers=tuple(dict.fromkeys(numbers)), status=("open",))


def _say(printer: Printer, number: int, refusal: str = "") -> None:
    if printer.as_json:
        printer.record({"number": number, "redriven": not refusal, "reason": refusal})
    elif refusal:
        printer.hint(f"error: {refusal}" if str(number) in refusal else f"error: {number} is not redriven: {refusal}")
    else:
        printer.line(f"redriven {number}")
