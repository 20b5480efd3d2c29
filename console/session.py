"""What every command that talks to the bus has in common: its options, the connection, and where it prints."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, TypeVar

import click

from console.failure import NOT_FOUND, USAGE, Failure

if TYPE_CHECKING:
    from bus.client import Client
    from console.address import Address
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
    return _command(main, hands_out_work=False)


def on_live_bus(main: Main) -> Callable[..., int | None]:
    """The same for a command that hands out work: a stopped bus, whose log can only be read, is refused."""
    return _command(main, hands_out_work=True)


def _command(main: Main, *, hands_out_work: bool) -> Callable[..., int | None]:
    @functools.wraps(main)
    def command(
        *, url: str | None, context: str | None, store: Path | None, as_json: bool, **parameters: Any
    ) -> int | None:
        import asyncio

        from bus import logs
        from bus.settings import Settings
        from console import address
        from console.printer import Printer

        if hands_out_work and store is not None:
            raise Failure(USAGE, "nobody could serve the work: --store is for reading", f"phasebus up --store {store}")
        logs.configure("warning", pretty=not as_json)
        # A wrong setting is wrong without a bus too.
        Settings.load()
        place = address.find(url, context, store)

        async def connected() -> int | None:
            async with _connected(place) as client:
                return await main(client, Printer(as_json=as_json), **parameters)

        return asyncio.run(connected())

    return address_options(json_option(command))


@asynccontextmanager
async def _connected(place: Address) -> AsyncIterator[Client]:
    """A client of the bus at `place`. To look for a bus creates none."""
    from contextlib import AsyncExitStack

    from bus.connecting import connect
    from bus.errors import NotFound
    from console import address
    from console.store import explained

    async with AsyncExitStack() as stack:
        with explained(place.store, "leave out --store"):
            settings = await stack.enter_async_context(address.reached(place))
        try:
            client = await stack.enter_async_context(connect(name="phasebus", create=False, **settings))
        except NotFound as error:
            raise Failure(NOT_FOUND, str(error), "correct PHASEBUS_NAMESPACE, or start that bus: phasebus up") from None
        yield client


def operator() -> str:
    """Who types this: user@host."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"
