"""`phasebus agent ls, show`: who is there now. Asked, not read; the log knows who was there, and the schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.failure import NOT_FOUND, Failure
from console.session import on_bus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bus.client import Client
    from bus.registry.roster import Instance
    from console.printer import Printer


@click.command()
@click.option("--capability", metavar="NAME", help="Only those that have it.")
@click.option("--version", metavar="RANGE", help="Only those of a version, or a range: '>=1.2,<2'.")
@click.option("--tag", metavar="TAG", help="Only those with a tag, their own or the capability's.")
@on_bus
async def ls(client: Client, printer: Printer, capability: str | None, version: str | None, tag: str | None) -> None:
    """List the instances that are there now, and how they stand.

    live: takes work. suspected: connected, but does not answer. draining: finishes what it has begun, and ends.
    quarantined: goes on running, and takes nothing more. standby, degraded: takes what no other instance asks for.
    unwell: takes nothing until it is better.
    """
    there = await client.agents(capability, version=version, tag=tag)
    if printer.as_json:
        for instance in there:
            printer.record(record(instance))
    elif there:
        headings = ["AGENT", "VERSION", "INSTANCE", "STATUS", "HOST", "PID", "CAPABILITIES", "HOLDS"]
        printer.table(headings, [_row(instance) for instance in there])
    elif (capability, version, tag) != (None, None, None):
        printer.hint("no such agent is there: phasebus agent ls")
    else:
        printer.hint("no agent answers: start one with `phasebus agent run FILE.py:agent`")
    quarantines = await client.quarantines()
    for each in quarantines if not printer.as_json else ():
        why = f": {each.reason}" if each.reason else ""
        printer.hint(f"quarantine of {each.whom} by {each.by} since {each.since:%Y-%m-%d %H:%M:%S}{why}")


@click.command()
@click.argument("name", metavar="INSTANCE | AGENT")
@on_bus
async def show(client: Client, printer: Printer, name: str) -> None:
    """Show all there is to know of an instance, also of one that is gone.

    By an agent's name, of every instance of it that is there.
    """
    from bus.errors import InvalidName, NotFound

    names = [each.instance for each in await client.agents() if name in (each.agent, each.instance)]
    try:
        instances = [await client.agent(each) for each in names or [name]]
    except (InvalidName, NotFound):
        raise Failure(NOT_FOUND, f"there is no agent or instance {name!r}", "phasebus agent ls") from None
    for number, instance in enumerate(instances):
        if printer.as_json:
            printer.record(record(instance))
            continue
        if number:
            printer.line()
        _describe(printer, instance)


def held(instance: Instance) -> Sequence[str]:
    """What it holds, as a person would name it."""
    return [
        f"{each.run}/{each.phase}" + (f":{each.item}" if each.item is not None else "") + f" #{each.attempt}"
        for each in instance.held
    ]


def record(instance: Instance) -> dict[str, Any]:
    """The instance with what it holds as objects: on the wire they are arrays."""
    from msgspec.structs import asdict

    return asdict(instance) | {
        "load": {name: asdict(load) for name, load in instance.load.items()},
        "held": [asdict(each) for each in instance.held],
    }


def _row(instance: Instance) -> list[str]:
    from console.text import escaped

    capabilities = ", ".join(_loaded(instance, name) for name in instance.capabilities)
    where = [instance.host, str(instance.pid)]
    row = [instance.agent, instance.version, instance.instance, _standing(instance), *where, capabilities]
    return [escaped(cell) for cell in (*row, ", ".join(held(instance)) or "-")]


def _standing(instance: Instance) -> str:
    """Its status, and what keeps it from being served first."""
    health = instance.health if instance.health != "healthy" else ""
    return ", ".join(filter(None, (instance.status, "standby" if instance.standby else "", health)))


def _loaded(instance: Instance, name: str) -> str:
    load = instance.load.get(name)
    concurrency = instance.capabilities[name].concurrency
    paused = " (paused)" if name in instance.paused else ""
    return f"{name} {load.held if load is not None else '?'}/{concurrency}{paused}"


def _describe(printer: Printer, instance: Instance) -> None:
    from console.text import escaped

    status = f"{_standing(instance)} ({instance.note})" if instance.note else _standing(instance)
    facts = {
        "agent": f"{instance.agent} {instance.version}",
        "status": status,
        "process": f"{instance.pid} on {instance.host}",
        "tags": ", ".join(instance.tags),
        "memory": f"{instance.memory_mb} MB" if instance.memory_mb else "",
        "lag": f"{instance.lag_s:g} s" if instance.lag_s else "",
        "holds": ", ".join(held(instance)),
    }
    printer.line(escaped(instance.instance))
    for what, fact in facts.items():
        if fact:
            printer.line(escaped(f"  {what:8} {fact}"))
    for name, offering in instance.capabilities.items():
        tags = f", tags {', '.join(offering.tags)}" if offering.tags else ""
        printer.line(escaped(f"  {_loaded(instance, name)}, {offering.timeout_s:g} s at most{tags}"))
        for side, schema in (("takes", offering.takes), ("gives", offering.gives)):
            printer.line(escaped(f"    {side} {_text(schema)}"))


def _text(schema: object) -> str:
    import msgspec

    return bytes(schema).decode(errors="replace") if isinstance(schema, msgspec.Raw) else "?"
