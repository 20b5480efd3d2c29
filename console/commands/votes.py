"""`phasebus decision ls, show, propose, vote`: questions, who may answer them, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option
from console.failure import FAILED, NOT_FOUND, OK, REFUSED, Failure
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.coordination.decision import Decision
    from console.printer import Printer

_WHY = {"votes": "by votes", "tie": "by the rule for a tie", "no_quorum": "too few voted"}


def _voters(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        name, separator, weight = value.rpartition("=")
        if separator and not weight.isdecimal():
            raise click.BadParameter(f"{value!r} is not a voter: write NAME, or NAME=WEIGHT with a whole number")
        voter = name if separator else value
        if voter in found:
            raise click.BadParameter(f"{voter!r} is there twice")
        found[voter] = int(weight) if separator else 1
    return found


@click.command()
@click.option("--open", "only_open", is_flag=True, help="Only those that are not decided.")
@on_bus
async def ls(client: Client, printer: Printer, only_open: bool) -> None:
    """List decisions, the newest last."""
    from console.text import shortened

    found = await client.decisions(only_open=only_open)
    if printer.as_json:
        for each in found:
            printer.record(each)
    elif found:
        rows = [
            [
                each.id,
                _said(each),
                f"{len(each.votes)}/{len(each.proposal.voters)}",
                shortened(each.proposal.question, 60),
            ]
            for each in found
        ]
        printer.table(["DECISION", "OUTCOME", "VOTES", "QUESTION"], rows)
    else:
        printer.hint("no decisions: phasebus decision propose 'ship it?' --option yes --option no --voter NAME")


@click.command()
@click.argument("decision")
@click.option("--wait", "timeout_s", type=click.FloatRange(min=0), help="Wait for the outcome, so many seconds.")
@on_bus
async def show(client: Client, printer: Printer, decision: str, timeout_s: float | None) -> int:
    """Show one decision with its votes; exit code 1 if the proposal was rejected."""
    from bus.errors import NotFound

    try:
        found = await (
            client.decision(decision) if timeout_s is None else client.decided(decision, timeout_s=timeout_s)
        )
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus decision ls") from None
    _print(printer, found)
    return OK if found.is_open or found.option is not None else FAILED


@click.command()
@click.argument("question")
@click.option("--option", "options", multiple=True, required=True, metavar="TEXT", help="An answer; several times.")
@click.option(
    "--voter",
    "voters",
    multiple=True,
    required=True,
    callback=_voters,
    metavar="NAME[=WEIGHT]",
    help="Who may vote; several times.",
)
@click.option("--quorum", type=float, default=0.5, show_default=True, help="The share of all weight that has to vote.")
@click.option("--timeout", "timeout_s", type=float, default=3600.0, show_default=True, help="Seconds until the end.")
@click.option("--tie", default="reject", show_default=True, metavar="reject|first|OPTION", help="With equal votes.")
@by_option
@on_live_bus
async def propose(
    client: Client,
    printer: Printer,
    question: str,
    options: tuple[str, ...],
    voters: dict[str, int],
    quorum: float,
    timeout_s: float,
    tie: str,
    by: str,
) -> None:
    """Ask voters to choose an option."""
    made = await client.propose(
        question, options=options, voters=voters, quorum=quorum, timeout_s=timeout_s, tie=tie, by=by
    )
    _print(printer, made)


@click.command()
@click.argument("decision")
@click.argument("option")
@click.option("--comment", default="", help="Why.")
@by_option
@on_live_bus
async def vote(client: Client, printer: Printer, decision: str, option: str, comment: str, by: str) -> None:
    """Vote on a decision, as --by."""
    from bus.errors import NotFound, Refused

    try:
        found = await client.vote(decision, option, by=by, comment=comment)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus decision ls --open") from None
    except Refused as refused:
        raise Failure(REFUSED, refused.reason, f"phasebus decision show {decision}") from None
    _print(printer, found)


def _print(printer: Printer, found: Decision) -> None:
    from console.text import escaped

    if printer.as_json:
        printer.record(found)
        return
    printer.line(f"{found.id}: {escaped(found.proposal.question)}")
    printer.line(f"  {_said(found)}")
    for option, weight in found.tally.items():
        voters = [
            f"{voter} ({vote.comment})" if vote.comment else voter
            for voter, vote in found.votes.items()
            if vote.option == option
        ]
        printer.line(f"  {escaped(option)}: {weight}" + (f"  {escaped(', '.join(voters))}" if voters else ""))
    if found.is_open and found.missing:
        printer.line(f"  missing: {escaped(', '.join(found.missing))}")


def _said(found: Decision) -> str:
    from console.text import escaped

    if found.outcome is None:
        return f"open until {found.proposal.deadline_at:%Y-%m-%d %H:%M:%S}"
    return f"{escaped(found.option) if found.option is not None else 'rejected'}, {_WHY[found.outcome.why]}"
