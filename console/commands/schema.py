"""`phasebus schema`: everything on the wire as one JSON document, to be committed and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.lazy import LazyGroup
from console.session import json_option

if TYPE_CHECKING:
    from bus.handlers.agent import Agent
    from bus.schema.document import Document, Offer, Schema

_COMMANDS = {
    "check": ("console.commands.schema_check:check", "Say what changed between two documents, and what that breaks."),
}
_CLOSE_NAMES = 3


@click.group(cls=LazyGroup, commands_at=_COMMANDS, invoke_without_command=True)
@click.option("--type", "wire", metavar="NAME", help="Only this type, such as phase.completed.v1.")
@click.option("--asyncapi", is_flag=True, help="As an AsyncAPI 3.1 document.")
@click.option(
    "--agent",
    "targets",
    multiple=True,
    metavar="FILE.py:NAME",
    help="Also what this agent's capabilities take and give, and the message types of its program.",
)
@click.option(
    "--namespace",
    default="bus",
    show_default=True,
    envvar="PHASEBUS_NAMESPACE",
    help="The prefix of the subjects in an AsyncAPI document.",
)
@json_option
@click.pass_context
def schema(
    ctx: click.Context, wire: str | None, asyncapi: bool, targets: tuple[str, ...], namespace: str, as_json: bool
) -> None:
    """Print the schemas of everything on the wire.

    One JSON Schema document of every event and message type, the same bytes for the same types: commit it, and let
    `phasebus schema check` compare it with the next one.
    """
    if ctx.invoked_subcommand is not None:
        return
    from importlib.metadata import version

    from bus.format.subjects import Subjects
    from bus.schema.document import encode, part
    from console.failure import USAGE, Failure
    from console.printer import to_json

    if asyncapi and wire is not None:
        raise Failure(USAGE, "--type is for the JSON Schema of one type, not for --asyncapi", "leave out one of them")
    whole = _document(targets)
    found: Document | Schema = whole
    if wire is not None:
        if wire not in whole.types:
            raise _unknown(wire, list(whole.types))
        found = part(whole, wire)
    if asyncapi:
        from bus.schema.asyncapi import asyncapi as described

        found = described(whole, Subjects(namespace).namespace, version("phasebus"))
    click.echo(to_json(found) if as_json else encode(found).decode(), nl=as_json)


def _document(targets: tuple[str, ...]) -> Document:
    """The document of this library's types, and of the programs that `targets` name."""
    from bus.handlers.agent import Agent
    from bus.schema import vocabulary
    from bus.schema.document import document
    from console.target import load

    # What a program registers is there once its file has been loaded.
    agents = [load(target, Agent) for target in targets]
    return document(vocabulary.vocabulary(), vocabulary.upcasters(), _offers(agents))


def _offers(agents: list[Agent]) -> dict[str, Offer]:
    from bus.schema.document import Offer
    from console.failure import USAGE, Failure

    offers: dict[str, Offer] = {}
    for agent in agents:
        for name, capability in agent.capabilities.items():
            offer = Offer(agent.name, capability.takes, capability.gives)
            before = offers.setdefault(name, offer)
            if (before.takes, before.gives) != (offer.takes, offer.gives):
                what = f"agents {before.agent!r} and {agent.name!r} have different types for capability {name!r}"
                raise Failure(USAGE, what, "give the second one another name, or let both use the same types")
    return offers


def _unknown(wire: str, known: list[str]) -> Exception:
    from difflib import get_close_matches

    from console.failure import NOT_FOUND, Failure

    close = get_close_matches(wire, known, _CLOSE_NAMES) or sorted(known)
    return Failure(NOT_FOUND, f"there is no type {wire!r}", f"one of {', '.join(close)}")
