"""`phasebus dead edit, discard, release`: what somebody decides about one letter, or about what it has stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option
from console.commands.start import read_input
from console.failure import NOT_FOUND, OK, REFUSED, Failure
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    import msgspec

    from bus.client import Client
    from console.printer import Printer

_reason = click.option("--reason", default="", help="Kept with the decision.")


@click.command()
@click.argument("number", type=click.IntRange(1))
@click.option(
    "--payload",
    callback=read_input,
    required=True,
    metavar="JSON | @FILE | -",
    help="What it gets instead.",
)
@_reason
@by_option
@on_live_bus
async def edit(client: Client, printer: Printer, number: int, payload: msgspec.Raw, reason: str, by: str) -> None:
    """Send dead work again with another payload. The letter keeps the old one."""
    from bus.errors import Refused
    from console.offers import say_unserved

    found = await client.dead_letter(number)
    try:
        await client.redrive_letter(number, by=by, reason=reason, payload=payload)
    except Refused as refused:
        raise Failure(REFUSED, refused.reason, f"phasebus dead show {number}") from None
    if printer.as_json:
        printer.record({"number": number, "redriven": True, "payload": payload})
    else:
        printer.line(f"redriven {number} with another payload")
    await say_unserved(client, printer, [found.letter.capability])


@click.command()
@click.argument("numbers", type=click.IntRange(1), nargs=-1, required=True, metavar="NUMBER...")
@_reason
@by_option
@on_bus
async def discard(client: Client, printer: Printer, numbers: tuple[int, ...], reason: str, by: str) -> int:
    """Say that nobody wants dead work any more. The letters stay in the log, and can still be redriven."""
    from bus.errors import NotFound, Refused

    code = OK
    for number in dict.fromkeys(numbers):
        try:
            await client.discard_letter(number, by=by, reason=reason)
        except Refused as refused:
            code = REFUSED
            if printer.as_json:
                printer.record({"number": number, "discarded": False, "reason": refused.reason})
            else:
                printer.hint(f"error: {refused.reason}")
        except NotFound as error:
            raise Failure(NOT_FOUND, str(error), "phasebus dead ls --all") from None
        else:
            if printer.as_json:
                printer.record({"number": number, "discarded": True, "reason": reason})
            else:
                printer.line(f"discarded {number}")
    return code


@click.command()
@click.argument("capabilities", nargs=-1, required=True, metavar="CAPABILITY...")
@_reason
@by_option
@on_bus
async def release(client: Client, printer: Printer, capabilities: tuple[str, ...], reason: str, by: str) -> None:
    """Let a capability go on that takes nothing after a death (`on_dead="pause"`)."""
    for capability in dict.fromkeys(capabilities):
        await client.release(capability, by=by, reason=reason)
        if printer.as_json:
            printer.record({"capability": capability, "released": True})
        else:
            printer.line(f"released {capability}")
