"""What every command that talks to the bus has in common: its options, the connection, and where it prints."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, TypeVar

import click

if TYPE_CHECKING:
    from bus.client import Client
    from console.printer import Printer

F = TypeVar("F", bound=Callable[..., Any])
Main = Callable[Concatenate["Client", "Printer", ...], Awaitable[int | None]]


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document per line on stdout.")(command)


def address_options(command: F) -> F:
    """Add the ways to say where the bus is, apart from the environment and the folder."""
    folder = click.Path(file_okay=False, path_type=Path)
    for option in (
        click.option("--store", type=folder, metavar="DIR", help="The folder of a stopped bus: its log is read there."),
        click.option("--context", metavar="NAME", help="A context of the `nats` command line tool."),
        click.option("--url", metavar="URL", help="Where the bus is: nats://user:password@host:port."),
    ):
        command = option(command)
    return command


def on_bus(main: Main) -> Callable[..., int | None]:
    """Make a command of `main`: it gets a connected client, a printer and its own parameters; returns the exit code."""

    @functools.wraps(main)
    def command(
        *, url: str | None, context: str | None, store: Path | None, as_json: bool, **parameters: Any
    ) -> int | None:
        import asyncio

        from bus import logs
        from bus.client import connect
        from console import address
        from console.printer import Printer

        logs.configure("warning", pretty=not as_json)
        place = address.find(url, context, store)

        async def connected() -> int | None:
            async with address.reached(place) as settings, connect(name="phasebus", **settings) as client:
                return await main(client, Printer(as_json=as_json), **parameters)

        return asyncio.run(connected())

    return address_options(json_option(command))


def operator() -> str:
    """Who types this: user@host."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"
