"""`phasebus archive run`: what a policy lets go is archived, compared with the log, and taken out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from console.failure import REFUSED, Failure
from console.session import on_bus, operator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bus.archives.outgoing import Tally
    from bus.archives.retention import Policy
    from bus.client import Client
    from console.printer import Printer

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--to", type=_FOLDER, required=True, metavar="DIR", help="The folder of the archive; made if not there.")
@click.option(
    "--keep",
    "rules",
    multiple=True,
    required=True,
    metavar="CLASS=AGE",
    help="How long a class stays: run, mail, topic, agent, dead, ops; an age is 30d, 12h ... May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why the rest stays.")
@click.option("--take-over", is_flag=True, help="The archive there was, elsewhere, is lost or never ends.")
@click.option("--by", default=operator, metavar="WHO", help="Who decides; user@host unless told.")
@on_bus
async def run(
    client: Client, printer: Printer, to: Path, rules: tuple[str, ...], dry_run: bool, take_over: bool, by: str
) -> None:
    """Archive what is old enough, and take it out of the log.

    A run goes as a whole, so long after its end; one with an open dead letter stays. What is not named stays for ever.
    Repeated after a crash, it finishes what was begun. To read on as before, set PHASEBUS_ARCHIVE to the folder.
    """
    from bus.archives.archiving import archive, choose
    from bus.archives.retention import Policy
    from bus.errors import Refused

    policy = Policy.of(rules)
    if dry_run:
        _print(printer, policy, (await choose(client, policy)).tallies)
        printer.hint("nothing was done: leave out --dry-run")
        return
    try:
        outcome = await archive(client, to, policy, by=by, take_over=take_over)
    except Refused as refused:
        raise Failure(REFUSED, refused.reason, "phasebus events tail --subject '*.ops.archive'") from None
    _print(printer, policy, outcome.tallies)
    if printer.as_json:
        files = [{"file": each.file, "sha256": each.sha256, "records": each.records} for each in outcome.segments]
        printer.record({"segments": files, "removed": outcome.removed, "kept": outcome.kept})
        return
    for subject in outcome.kept:
        printer.hint(f"{subject} has gone on meanwhile: it is in the archive and in the log")
    printer.line(f"{outcome.removed} records left the log; {to} has {len(outcome.segments)} segments more")


def _print(printer: Printer, policy: Policy, tallies: Mapping[str, Tally]) -> None:
    from console.text import size

    if printer.as_json:
        for name, tally in tallies.items():
            printer.record({"class": name, "goes": tally})
        return
    rows = []
    keep = dict(rule.split("=", 1) for rule in policy.rules())
    for name, tally in tallies.items():
        stays = ", ".join(f"{count} {reason}" for reason, count in tally.stays.most_common())
        # What has no rule of its own goes with its run.
        rows.append(
            [
                name,
                keep.get(name, keep.get("run", "")),
                str(tally.subjects),
                str(tally.records),
                size(tally.size_bytes),
                stays,
            ]
        )
    printer.table(["CLASS", "KEEP", "SUBJECTS", "RECORDS", "SIZE", "STAYS"], rows)
