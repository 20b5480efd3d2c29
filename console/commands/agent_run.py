"""`phasebus agent run`: a process that serves an agent, and stands by as supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.session import address_options

if TYPE_CHECKING:
    import asyncio

    from bus.agent import Agent
    from bus.logs import Level
    from console.address import Address


@click.command()
@click.argument("target", metavar="FILE.py:NAME | package.module:NAME")
@click.option("--pretty", is_flag=True, help="Logs for eyes instead of JSON.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Instead of PHASEBUS_LOG_LEVEL."
)
@click.option("--no-supervisor", is_flag=True, help="Do not let this process stand by as supervisor.")
@address_options
def run(
    target: str,
    pretty: bool,
    log_level: Level | None,
    no_supervisor: bool,
    url: str | None,
    context: str | None,
    store: Path | None,
) -> None:
    """Serve an agent until SIGTERM or Ctrl-C; logs go to stderr.

    The first signal lets it finish what it has begun, the second ends it at once.
    """
    import asyncio

    from bus import logs
    from bus.agent import Agent
    from bus.settings import Settings
    from bus.signals import until_signalled
    from console.address import find
    from console.failure import USAGE, Failure
    from console.target import load

    logs.configure(Settings.load(log_level=log_level).log_level, pretty=pretty)
    served = load(target, Agent)
    if not served.capabilities:
        raise Failure(USAGE, f"agent {served.name!r} has no capabilities: add one with @NAME.capability(...)")
    place = find(url, context, store)
    asyncio.run(until_signalled(lambda stop: _serve(served, place, stop, with_supervisor=not no_supervisor)))


async def _serve(served: Agent, place: Address, stop: asyncio.Event, *, with_supervisor: bool) -> None:
    import asyncio

    import structlog

    from bus.worker import serve
    from console.address import reached

    async with reached(place) as settings, asyncio.TaskGroup() as tasks:
        if with_supervisor:
            tasks.create_task(_stand_by(settings, stop))
        structlog.get_logger(__name__).info(
            "serving", agent=served.name, version=served.version, capabilities=list(served.capabilities)
        )
        await serve(served, stop, **settings)


async def _stand_by(settings: dict[str, Any], stop: asyncio.Event) -> None:
    """A supervisor for when there is no other. What goes wrong in it must not end the agent's work."""
    import structlog

    from agents.supervisor import Supervisor
    from bus.client import connect
    from bus.worker import new_instance

    try:
        async with connect(name="supervisor", **settings) as client:
            await Supervisor(client, new_instance("supervisor")).run(stop)
    except Exception:  # noqa: BLE001 - a bug there is logged, and the agent goes on
        structlog.get_logger(__name__).exception("no supervisor stands by here any more")
