"""`phasebus up`: a server of its own and the agents that ship, in this process, for as long as it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.session import json_option

if TYPE_CHECKING:
    import asyncio

    from bus.broker.server import Server
    from bus.client import Client
    from bus.settings import Settings

_LOST_S = 3.0

_READY = """\
The bus runs: nats://127.0.0.1:{port}, log in {store}, durability {durability}.
Other terminals, in this folder or below it:
  phasebus agent run FILE.py:agent
  phasebus run start PLAN.toml --follow
  phasebus attention
Elsewhere: set NATS_URL to the url in {file}; to its auditor_url, where nothing is to be changed.
Ctrl-C ends it; the log stays."""


@click.command()
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".phasebus/log"),
    show_default=True,
    help="The folder the log is kept in.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Where to listen on 127.0.0.1; a free port unless told.")
@click.option(
    "--websocket",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Also listen there on 127.0.0.1 for WebSockets: for dashboards, with the auditor's login.",
)
@click.option(
    "--durability",
    type=click.Choice(["synced", "fast"]),
    help="synced (default): on disk before acknowledged; fast: a power cut may cost the last second.",
)
@json_option
def up(store: Path, port: int | None, websocket: int | None, durability: str | None, as_json: bool) -> None:
    """Start a bus with its supervisor here, until Ctrl-C.

    With NATS_URL or NATS_CONTEXT set, no server is started: the supervisor joins the one that is there.
    """
    import asyncio

    from bus import logs
    from bus.address import FILE
    from bus.settings import Settings
    from bus.signals import until_signalled
    from console import address
    from console.failure import REFUSED, Failure

    settings = Settings.load(durability=durability)
    logs.configure(settings.log_level, pretty=not as_json)
    if settings.url is not None or settings.context is not None:
        asyncio.run(until_signalled(lambda stop: _join(settings, stop, as_json)))
        return
    if (running := address.read(FILE)) is not None:
        raise Failure(REFUSED, f"a bus runs here already: process {running.pid}", "phasebus run ls")
    for above in Path.cwd().parents:
        if address.read(above / FILE) is not None:
            click.echo(f"warning: this bus hides the one of {above} from this folder and those below it", err=True)
            break
    for each in filter(None, (port, websocket)):
        _must_be_free(each)
    asyncio.run(until_signalled(lambda stop: _serve(settings, store, port, websocket, stop, as_json)))


def _must_be_free(port: int) -> None:
    """Raises Failure if somebody listens there; OSError if nobody like us may."""
    import errno
    import socket

    from console.failure import REFUSED, Failure

    with socket.socket() as probe:
        # As the server will: what is left of ended connections is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Failure(REFUSED, f"port {port} is in use: choose another one") from None


async def _serve(
    settings: Settings, store: Path, port: int | None, websocket: int | None, stop: asyncio.Event, as_json: bool
) -> None:
    import asyncio
    import os
    from contextlib import AsyncExitStack

    from bus.address import FILE, Started, announced
    from bus.broker.server import embedded
    from bus.connecting import connect
    from console.store import explained

    async with AsyncExitStack() as stack:
        with explained(store, "give another --store, or use the bus that runs"):
            server = await stack.enter_async_context(
                embedded(
                    store,
                    port=port,
                    durability=settings.durability,
                    namespace=settings.namespace,
                    websocket=websocket or False,
                )
            )
        started = Started(
            server.url,
            server.system_url,
            os.getpid(),
            settings.durability,
            server.operator_url,
            server.auditor_url,
            server.websocket_url,
        )
        login: dict[str, Any] = {"url": server.url, "system_url": server.system_url, "durability": settings.durability}
        async with connect(name="supervisor", **login) as client:
            with announced(started):
                values = {"port": server.port, "store": str(server.store), "durability": settings.durability}
                _say(_READY.format(**values, file=FILE.resolve()), values | {"pid": started.pid}, as_json)
                guard = asyncio.create_task(_keep_alive(server, client))
                try:
                    await _supervise(client, stop, guard)
                finally:
                    guard.cancel()


async def _join(settings: Settings, stop: asyncio.Event, as_json: bool) -> None:
    from bus.connecting import connect

    async with connect(name="supervisor", settings=settings) as client:
        _say("The supervisor serves the bus at NATS_URL. Ctrl-C ends it; the bus goes on.", {"joined": True}, as_json)
        await _supervise(client, stop)


async def _supervise(client: Client, stop: asyncio.Event, *beside: asyncio.Task[None]) -> None:
    """The agents that ship, until `stop`; whatever else runs beside them must not fail."""
    import asyncio

    from agents.supervisor import Supervisor
    from bus.worker.worker import new_instance

    serving = asyncio.create_task(Supervisor(client, new_instance("supervisor")).run(stop))
    try:
        done, _ = await asyncio.wait({serving, *beside}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        serving.cancel()
        await asyncio.wait({serving})


async def _keep_alive(server: Server, client: Client) -> None:
    """Start the server again if it dies or freezes: its address stays, so everybody comes back."""
    import asyncio
    import time

    import structlog

    seen = time.monotonic()
    while True:
        await asyncio.sleep(_LOST_S / 6)
        if client.connection.is_connected:
            seen = time.monotonic()
        elif time.monotonic() - seen > _LOST_S:
            structlog.get_logger(__name__).warning("the server is gone and is started again", pid=server.pid)
            await server.restart()
            seen = time.monotonic()


def _say(text: str, record: dict[str, object], as_json: bool) -> None:
    from console.printer import to_json

    click.echo(to_json(record) if as_json else text)
