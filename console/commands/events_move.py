"""`phasebus events export` and `events import`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from console.failure import FAILED, OK, REFUSED, Failure
from console.selecting import choosing
from console.session import address_options, json_option, on_bus
from console.text import escaped

if TYPE_CHECKING:
    from bus.archives.importing import Imported
    from bus.client import Client
    from console.address import Address
    from console.printer import Printer

_OF_ITS_OWN = "phasebus events import FILE --into NAMESPACE"
_WRITES_ONE = "phasebus events export -o FILE"


@click.command()
@click.option(
    "-o", "--output", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Not to stdout."
)
@choosing()
@on_bus
async def export(client: Client, printer: Printer, path: Path | None, **chosen: Any) -> None:
    """Write records of the log as JSON lines, without any loss.

    A record is written whole: where one event of a commit is chosen, all of them are in its line. FILE appears when all
    of it is there.
    """
    from contextlib import aclosing

    from bus.history import feed
    from bus.log import lines
    from console.lookup import say_if_archived
    from console.selecting import selection

    wanted = await selection(client, chosen)
    count, position = 0, 0
    with _written(path) as file:
        async with aclosing(feed.records(client.log, wanted)) as found:
            async for each in found:
                file.write(
                    lines.write(lines.line(each.position, each.subject, each.stored_at, each.headers, each.body))
                )
                count, position = count + 1, each.position
    await say_if_archived(client, printer)
    printer.hint(f"exported {count} records" + (f", the last at position {position}" if count else ""))


@click.command("import")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE | -")
@click.option("--into", metavar="NAMESPACE", help="A namespace of its own; it is made if it is not there.")
@json_option
@address_options
def import_(
    path: str, into: str | None, as_json: bool, url: str | None, context: str | None, store: Path | None
) -> int:
    """Append an export to this bus, or to one of its own.

    In order, with each byte and header as it was. What is there already is left alone, so an interrupted import can be
    repeated. Refused, with nothing written, where a subject holds something else, and while agents or a supervisor are
    at work in the namespace: they would go on with runs that are half there.
    """
    import asyncio

    from bus import logs
    from bus.settings import Settings
    from console import address
    from console.printer import Printer

    printer = Printer(as_json=as_json)
    logs.configure("warning", pretty=not as_json)
    Settings.load()
    place = address.find(url, context, store)
    with _read(path) as file:
        done = asyncio.run(_import(place, into, file, "stdin" if path == "-" else path))
    if as_json:
        printer.record(done)
    for each in done.left_out:
        printer.hint(f"left out {escaped(each)}")
    printer.hint(f"imported {done.stored} records" + (f", {done.there} were there already" if done.there else ""))
    return FAILED if done.left_out else OK


async def _import(place: Address, into: str | None, file: IO[bytes], name: str) -> Imported:
    from contextlib import AsyncExitStack

    from agents.leadership import Leadership
    from bus.archives.importing import import_lines
    from bus.connecting import connect
    from bus.errors import MalformedMessage, Refused
    from bus.settings import Settings
    from console import address

    def opened() -> Iterator[bytes]:
        file.seek(0)
        return iter(file)

    async with AsyncExitStack() as stack:
        values = await stack.enter_async_context(address.reached(place))
        settings = Settings.load(namespace=into, **values)
        if settings.namespace != Settings.load().namespace:
            # The archive is of the log here, and not of the one over there.
            settings = msgspec.structs.replace(settings, archive=None)
        client = await stack.enter_async_context(connect(name="phasebus", settings=settings))
        at_work = [f"agent {beat.agent}" for beat in await client.agents()]
        if await Leadership(client, "import").leader() is not None:
            at_work.append("a supervisor")
        if at_work:
            raise Failure(
                REFUSED,
                f"{at_work[0]} is at work in namespace {client.subjects.namespace!r}: it would go on with runs that "
                "are half there",
                _OF_ITS_OWN,
            )
        try:
            return await import_lines(client, opened)
        except Refused as refused:
            raise Failure(REFUSED, refused.reason, _OF_ITS_OWN) from None
        except MalformedMessage as malformed:
            raise Failure(FAILED, f"{name}: {malformed}; nothing was written", _WRITES_ONE) from None


@contextmanager
def _written(path: Path | None) -> Iterator[IO[bytes]]:
    """Where the lines go: stdout, or a file that is there only when it is whole."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@contextmanager
def _read(path: str) -> Iterator[IO[bytes]]:
    """The file, or what a pipe brings: it is read more than once, so a pipe is copied."""
    with Path(path).open("rb") if path != "-" else nullcontext(sys.stdin.buffer) as file:
        if file.seekable() and path != "-":
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            yield copy
