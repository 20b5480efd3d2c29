"""Connecting: where the bus is, whether it is what it promises, and the client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from bus.address import find_started
from bus.broker.connection import Connection
from bus.broker.natscontext import read_context
from bus.broker.server import embedded
from bus.client import Client
from bus.errors import Unavailable
from bus.format.subjects import Subjects
from bus.guards.guarding import Guards
from bus.log.durability import Durability, prove
from bus.log.log import Log
from bus.log.streams import info
from bus.logs import configure_if_not
from bus.registry.signposts import Signposts
from bus.runs.ledger import Ledger
from bus.runs.runs import Runs
from bus.settings import Settings

if TYPE_CHECKING:
    from bus.log.archive import Archive

logger = structlog.get_logger(__name__)


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    name: str = "client",
    settings: Settings | None = None,
    alone: bool = True,
    create: bool = True,
    check: bool = True,
    **values: Any,
) -> AsyncIterator[Client]:
    """Connect to the bus: to `url`, to `NATS_URL`, to a NATS context, to the one `phasebus up` runs in this folder or
    above it, or else to a server of its own in a temporary folder (not with `alone=False`: then Unavailable is raised).

    `values` are settings by name, on top of the environment's. The streams are checked, and created if they are not
    there (with `create=False`, NotFound is raised instead; with `check=False` they are left as they are, and nothing is
    promised: for whoever wants to find out what is wrong with them). A lost line is made again for ever. A program that
    has not set up structlog gets JSON logs on stderr. Raises SettingsError, Unavailable, Misconfigured.
    """
    settings = settings or Settings.load(url=url, **values)
    configure_if_not(settings.log_level)
    subjects = Subjects(settings.namespace)
    async with AsyncExitStack() as stack:
        login = await _login(settings, stack, alone=alone)
        durability = login.durability or await _proven(login, settings, check=check)
        connection = await stack.enter_async_context(
            Connection.open(
                login.url, name=name, credentials=login.credentials, connect_timeout_s=settings.request_timeout_s
            )
        )
        archive = await _archive(settings)
        log = Log(connection, subjects, settings, archive)
        if check:
            await log.set_up(create=create)
        if check and archive is not None:
            archive.must_be_of((await info(connection, subjects.stream, settings.request_timeout_s)).created)
        tasks = await stack.enter_async_context(_tasks())
        source = f"/{name}"
        ledger = Ledger(log, connection, source=source)
        guards = Guards(log, connection, settings, source=source)
        stack.push_async_callback(guards.close)
        signposts = Signposts(log, connection)
        stack.push_async_callback(signposts.close)
        runs = Runs(ledger, tasks, signposts)
        stack.callback(runs.close)
        yield Client(
            settings,
            connection,
            log,
            ledger,
            runs,
            guards,
            signposts,
            source=source,
            system_url=login.system_url,
            operator_url=login.operator_url,
            durability=durability,
        )


class _Login(NamedTuple):
    """How to sign in; and how durable it is, where one of us has set the server up."""

    url: str
    system_url: str | None
    operator_url: str | None
    credentials: Path | None = None
    durability: Durability | None = None


async def _login(settings: Settings, stack: AsyncExitStack, *, alone: bool) -> _Login:
    system_url = settings.system_url.get_secret_value() if settings.system_url else None
    operator_url = settings.operator_url.get_secret_value() if settings.operator_url else None
    if settings.url is not None:
        return _Login(settings.url.get_secret_value(), system_url, operator_url, settings.credentials)
    if settings.context is not None:
        context = read_context(settings.context)
        return _Login(context.login_url, system_url, operator_url, settings.credentials or context.credentials)
    started = find_started(logger.warning)
    if started is not None:
        return _Login(started.url, started.system_url, started.operator_url, durability=started.durability)
    if not alone:
        raise Unavailable("no bus found: start one with `phasebus up` in this folder or above, or set NATS_URL")
    server = await stack.enter_async_context(embedded(durability=settings.durability, namespace=settings.namespace))
    logger.info("no bus found, so a private one was started", store=str(server.store))
    return _Login(server.url, server.system_url, server.operator_url, durability=settings.durability)


async def _proven(login: _Login, settings: Settings, *, check: bool) -> Durability:
    if not check:
        return "unproven"
    return await prove(login.system_url, settings.durability, settings.request_timeout_s)


async def _archive(settings: Settings) -> Archive | None:
    if settings.archive is None:
        return None
    from bus.log.archive import Archive  # noqa: PLC0415 - only who has one pays for it

    return await Archive.open(settings.archive)


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
