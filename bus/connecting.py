"""Connecting: where the bus is, whether it is what it promises, and the client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from bus.address import find_started
from bus.client import Client
from bus.connection import Connection
from bus.durability import Durability, prove
from bus.errors import Unavailable
from bus.ledger import Ledger
from bus.log import Log
from bus.logs import configure_if_not
from bus.natscontext import read_context
from bus.runs import Runs
from bus.server import embedded
from bus.settings import Settings
from bus.subjects import Subjects

logger = structlog.get_logger(__name__)


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    name: str = "client",
    settings: Settings | None = None,
    alone: bool = True,
    create: bool = True,
    **values: Any,
) -> AsyncIterator[Client]:
    """Connect to the bus: to `url`, to `NATS_URL`, to a NATS context, to the one `phasebus up` runs in this folder or
    above it, or else to a server of its own in a temporary folder (not with `alone=False`: then Unavailable is raised).

    `values` are settings by name, on top of the environment's. The streams are checked, and created if they are not
    there (with `create=False`, NotFound is raised instead). A lost line is made again for ever. A program that has not
    set up structlog gets JSON logs on stderr. Raises SettingsError, Unavailable, Misconfigured.
    """
    settings = settings or Settings.load(url=url, **values)
    configure_if_not(settings.log_level)
    subjects = Subjects(settings.namespace)
    async with AsyncExitStack() as stack:
        login, system_url, credentials, promised = await _login(settings, stack, alone=alone)
        durability = promised or await prove(system_url, settings.durability, settings.request_timeout_s)
        connection = await stack.enter_async_context(
            Connection.open(login, name=name, credentials=credentials, connect_timeout_s=settings.request_timeout_s)
        )
        log = Log(connection, subjects, settings)
        await log.set_up(create=create)
        tasks = await stack.enter_async_context(_tasks())
        source = f"/{name}"
        ledger = Ledger(log, connection, source=source)
        yield Client(
            settings,
            connection,
            log,
            ledger,
            Runs(ledger, tasks),
            source=source,
            system_url=system_url,
            durability=durability,
        )


async def _login(
    settings: Settings, stack: AsyncExitStack, *, alone: bool
) -> tuple[str, str | None, Path | None, Durability | None]:
    """Url, system account's url, credentials; and how durable it is, where one of us has set the server up."""
    system_url = settings.system_url.get_secret_value() if settings.system_url else None
    if settings.url is not None:
        return settings.url.get_secret_value(), system_url, settings.credentials, None
    if settings.context is not None:
        context = read_context(settings.context)
        return context.login_url, system_url, settings.credentials or context.credentials, None
    started = find_started(logger.warning)
    if started is not None:
        return started.url, started.system_url, None, started.durability
    if not alone:
        raise Unavailable("no bus found: start one with `phasebus up` in this folder or above, or set NATS_URL")
    server = await stack.enter_async_context(embedded(durability=settings.durability))
    logger.info("no bus found, so a private one was started", store=str(server.store))
    return server.url, server.system_url, None, settings.durability


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose body raises what it raises, not a group of it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as raised:
        if len(raised.exceptions) == 1:
            raise raised.exceptions[0] from None
        raise
