"""Where the bus is: as told, by the environment, started in this folder or above it, or stopped and to be read."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from bus import address as bus_address
from bus.address import Started
from bus.broker.natscontext import read_context
from bus.broker.server import embedded
from bus.settings import Settings
from console.failure import NOT_FOUND, UNREACHABLE, USAGE, Failure


class Address(msgspec.Struct, frozen=True):
    """`settings` are for `connect`; with a `store`, a server has to be started on it first."""

    settings: dict[str, Any] = {}
    store: Path | None = None


def find(
    url: str | None = None,
    context: str | None = None,
    store: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Address:
    """What the command was told, then NATS_URL, NATS_CONTEXT, then the bus started in this folder or above it.

    Raises Failure if there is none, or what was told can't be; SettingsError for a context that can't be read.
    """
    if sum(told is not None for told in (url, context, store)) > 1:
        raise Failure(USAGE, "--url, --context and --store are three ways to say where the bus is: give one")
    if url is not None:
        return Address({"url": url})
    if context is not None:
        known = read_context(context)
        return Address({"url": known.login_url, "credentials": known.credentials})
    if store is not None:
        if not (store / "jetstream").is_dir():
            raise Failure(NOT_FOUND, f"there is no log of a bus in {store}", "give the folder that `phasebus up` used")
        return Address(store=store)
    if environment.get("NATS_URL") or environment.get("NATS_CONTEXT"):
        return Address()
    started = find_started()
    if started is None:
        raise Failure(UNREACHABLE, "no bus found: start one with `phasebus up`, or set NATS_URL", "phasebus up")
    logins = {"url": started.url, "system_url": started.system_url, "operator_url": started.operator_url}
    return Address({**logins, "durability": started.durability})


@asynccontextmanager
async def reached(address: Address) -> AsyncIterator[dict[str, Any]]:
    """The settings to connect with. A stopped bus's log is served inside the block."""
    if address.store is None:
        yield address.settings
        return
    settings = Settings.load()
    async with embedded(address.store, durability=settings.durability, namespace=settings.namespace) as server:
        yield {"url": server.url, "system_url": server.system_url, "operator_url": server.operator_url}


def find_started(folder: Path | None = None) -> Started | None:
    """The bus that runs in this folder or the nearest one above it; what is passed over is said on stderr."""
    return bus_address.find_started(_say, folder)


def read(path: Path) -> Started | None:
    """The bus whose address is in a file, if it still runs. Why a file is ignored is said on stderr."""
    return bus_address.read_started(path, _say)


def _say(line: str) -> None:
    click.echo(line, err=True)
