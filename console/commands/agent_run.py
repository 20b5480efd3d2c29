"""`phasebus agent run`: a process that serves an agent, and stands by as supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.session import address_options

if TYPE_CHECKING:
    import asyncio

    from bus.client import Client
    from bus.handlers.agent import Agent
    from bus.logs import Level
    from console.address import Address


@click.command()
@click.argument("target", metavar="FILE.py:NAME | package.module:NAME")
@click.option("--pretty/--no-pretty", default=None, help="Logs for eyes, or JSON; for eyes on a terminal unless told.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Instead of PHASEBUS_LOG_LEVEL."
)
@click.option("--no-supervisor", is_flag=True, help="Do not let this process stand by as supervisor.")
@click.option("--standby", is_flag=True, help="Take work only when no other instance asks for it.")
@address_options
def run(
    target: str,
    pretty: bool | None,
    log_level: Level | None,
    no_supervisor: bool,
    standby: bool,
    url: str | None,
    context: str | None,
    store: Path | None,
) -> None:
    """Serve an agent until SIGTERM or Ctrl-C; logs go to stderr.

    The first signal lets it finish what it has begun, the second ends it at once.
    """
    import sys

    from bus import logs
    from bus.handlers.agent import Agent
    from bus.settings import Settings
    from bus.signals import run_until_signalled
    from console.address import find
    from console.failure import USAGE, Failure
    from console.target import load

    is_terminal = sys.stderr.isatty()
    logs.configure(Settings.load(log_level=log_level).log_level, pretty=is_terminal if pretty is None else pretty)
    served = load(target, Agent)
    if not served.capabilities:
        raise Failure(USAGE, f"agent {served.name!r} has no capabilities: add one with @NAME.capability(...)")
    served.standby = served.standby or standby
    place = find(url, context, store)
    run_until_signalled(lambda stop: _serve(served, place, stop, with_supervisor=not no_supervisor))


async def _serve(served: Agent, place: Address, stop: asyncio.Event, *, with_supervisor: bool) -> None:
    import asyncio
    import sys

    from bus.connecting import connect
    from bus.worker.worker import Worker, new_instance
    from console.address import reached

    instance = new_instance(served.name)
    async with reached(place) as settings, asyncio.TaskGroup() as tasks:
        if with_supervisor:
            tasks.create_task(_stand_by(settings, stop))
        async with connect(name=f"agent/{served.name}/{instance}", alone=False, **settings) as client:
            if sys.stderr.isatty():
                tasks.create_task(_say_farewell(client, instance, stop))
            await Worker(client, served, instance).run(stop)
            # An operator may have drained it.
            stop.set()


async def _say_farewell(client: Client, instance: str, stop: asyncio.Event) -> None:
    """What a person who has typed Ctrl-C now waits for. The instance is asked as anybody would ask it."""
    from bus.errors import BusError
    from bus.registry.presence import read_beat

    await stop.wait()
    try:
        beat = read_beat(await client.connection.request(client.subjects.ping(instance), timeout_s=1.0))
    except BusError:
        return
    if beat is not None and beat.held:
        count, grace_s = len(beat.held), client.settings.grace_s
        work = f"{count} piece{'s' if count > 1 else ''} of work"
        click.echo(f"finishing {work}, {grace_s:g} s at most; Ctrl-C again ends it at once", err=True)


async def _stand_by(settings: dict[str, Any], stop: asyncio.Event) -> None:
    """A supervisor for when there is no other. What goes wrong in it must not end the agent's work."""
    import structlog

    from agents.supervisor import Supervisor
    from bus.connecting import connect
    from bus.worker.worker import new_instance

    try:
        async with connect(name="supervisor", **settings) as client:
            await Supervisor(client, new_instance("supervisor")).run(stop)
    except Exception:  # noqa: BLE001 - a bug there is logged, and the agent goes on
        structlog.get_logger(__name__).exception("no supervisor stands by here any more")
