"""One server for all of the library's own cases, and a namespace of its own for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from bus.broker.server import Server

_numbers = count(1)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("contract") / "store", None, "synced", "bus")
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may kill."""
    server = Server(tmp_path / "store", None, "synced", "bus")
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(autouse=True)
def environment(shared: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sets; read by every application that is made."""
    monkeypatch.setenv("PERSISTENCE_MODULE", "bus.eventsourcing")
    monkeypatch.setenv("NATS_URL", shared.url)
    monkeypatch.setenv("PHASEBUS_NAMESPACE", f"case{next(_numbers)}")
