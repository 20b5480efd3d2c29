"""`phasebus ask, send, tell, publish, subscribe`: messages to agents and topics, from a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.commands.start import read_input, turn_options
from console.failure import FAILED, OK
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    import msgspec

    from bus.client import Client
    from bus.messages.sending import Receipt
    from bus.rules.priority import Priority
    from console.printer import Printer

_VALUE = "JSON | @FILE | -"


def _delivery_options(command: Any) -> Any:
    """How `send` and `tell` may be told when, and how often."""
    for option in (
        click.option("--timeout", "timeout_s", type=float, default=86_400.0, metavar="SECONDS", help="Given up then."),
        click.option("--id", "id", metavar="ID", help="What was sent under this id before is not sent again."),
        click.option(
            "--at", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="Not before: 2026-11-22T02:00:00+0000."
        ),
        click.option("--key", default="", metavar="KEY", help="In the order of all that is sent with the same one."),
        click.option("--delay", "delay_s", type=float, metavar="SECONDS", help="Not before so many seconds from now."),
        turn_options,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("capability")
@click.argument("value", callback=read_input, metavar=_VALUE)
@click.option("--timeout", "timeout_s", type=float, default=30.0, metavar="SECONDS", help="30 unless told.")
@click.option("--fast", is_flag=True, help="Store nothing; the work is done at most once.")
@turn_options
@click.option("--key", default="", metavar="KEY", help="In the order of all that is sent with the same one.")
@click.option("--stream", "is_streamed", is_flag=True, help="Print what the handler emits while it works.")
@on_live_bus
async def ask(
    client: Client,
    printer: Printer,
    capability: str,
    value: msgspec.Raw,
    timeout_s: float,
    fast: bool,
    key: str,
    is_streamed: bool,
    priority: Priority | None,
    sender: str | None,
) -> int:
    """Have work done, and print the answer. Exit code 1 if the work was given up."""
    from bus.errors import WorkFailed

    if fast and is_streamed:
        raise click.UsageError("--fast stores nothing, so there is nothing to stream: leave one of the two out")
    if key and is_streamed:
        raise click.UsageError("--stream has no --key: leave one of the two out")
    try:
        if is_streamed:
            stream = client.stream(capability, value, timeout_s=timeout_s, priority=priority, sender=sender)
            async for part in stream:
                printer.record({"index": part.index, "attempt": part.attempt, "part": part.value})
            answer = await stream.answer()
        else:
            turn: dict[str, Any] = {"key": key, "priority": priority, "sender": sender}
            answer = await client.ask(capability, value, timeout_s=timeout_s, fast=fast, **turn)
    except WorkFailed as failed:
        printer.hint(str(failed))
        return FAILED
    printer.record(answer)
    return OK


@click.command()
@click.argument("capability")
@click.argument("value", callback=read_input, metavar=_VALUE)
@_delivery_options
@on_live_bus
async def send(client: Client, printer: Printer, capability: str, value: msgspec.Raw, **how: Any) -> None:
    """Hand work to whoever has a capability. Prints its run's id."""
    _say(printer, await client.send(capability, value, **how))


@click.command()
@click.argument("agent")
@click.argument("value", callback=read_input, metavar=_VALUE)
@_delivery_options
@on_live_bus
async def tell(client: Client, printer: Printer, agent: str, value: msgspec.Raw, **how: Any) -> None:
    """Send a message to one agent by name. Prints its run's id."""
    _say(printer, await client.tell(agent, value, **how))


@click.command()
@click.argument("topic")
@click.argument("value", callback=read_input, metavar=_VALUE)
@click.option("--id", "id", metavar="ID", help="The same id within two minutes is not published again.")
@on_live_bus
async def publish(client: Client, printer: Printer, topic: str, value: msgspec.Raw, id: str | None) -> None:
    """Tell everybody who subscribes to a topic. Prints its position in the log."""
    published = await client.publish(topic, value, id=id)
    if printer.as_json:
        printer.record(published)
    else:
        printer.line(str(published.position))


@click.command()
@click.argument("topics")
@click.option("--after", type=click.IntRange(0), metavar="POSITION", help="From there on; 0: all there ever was.")
@click.option("--limit", type=click.IntRange(1), metavar="COUNT", help="So many, and no more.")
@on_bus
async def subscribe(client: Client, printer: Printer, topics: str, after: int | None, limit: int | None) -> None:
    """Print what is published on topics. As JSON lines, of orders.* or orders.>; goes on until Ctrl-C."""
    from contextlib import aclosing

    count = 0
    async with aclosing(client.subscribe(topics, after=after)) as heard:
        async for news in heard:
            printer.record(news)
            count += 1
            if count == limit:
                return


def _say(printer: Printer, receipt: Receipt) -> None:
    from console.offers import lonely

    if printer.as_json:
        printer.record(receipt)
    else:
        printer.line(receipt.run)
    for capability in receipt.unserved:
        printer.hint(lonely(capability))
