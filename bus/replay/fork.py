"""A fork: a bus of its own on a private server, into which parts of a log can be copied and worked on.

While it is open, whatever in this process (and in its children) looks for a bus finds the fork: a handler that sends
something sends it there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from bus.broker.server import embedded
from bus.client import Client
from bus.connecting import connect

NAMESPACE = "fork"
# What would lead back to where the process came from, or does not fit a single server that is thrown away.
_NOT_HERE = ("SYSTEM_URL", "OPERATOR_URL", "CREDENTIALS", "REPLICAS", "ARCHIVE")
_ELSEWHERE = ("NATS_CONTEXT", *(f"PHASEBUS_{name}" for name in _NOT_HERE))


@asynccontextmanager
async def forked() -> AsyncIterator[Client]:
    """An empty fork; it is gone when the block ends. Raises Unavailable if no server could be started."""
    async with embedded(durability="fast") as server:
        told = {"NATS_URL": server.url, "PHASEBUS_NAMESPACE": NAMESPACE, "PHASEBUS_DURABILITY": "fast"}
        with _environment(told, _ELSEWHERE):
            async with connect(name="fork") as client:
                yield client


@contextmanager
def _environment(told: Mapping[str, str], without: tuple[str, ...]) -> Iterator[None]:
    before = dict(os.environ)
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(told)
    try:
        yield
    finally:
        for name in (*told, *without):
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in (*told, *without) if name in before})
