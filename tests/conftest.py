"""Fixtures that every kind of test may use: a real server of the test's own, and a connection to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from bus.broker.connection import Connection
from bus.broker.server import Server, embedded

# Every run of the suite draws the same examples, so that it says the same of the same code. New ones are looked for
# on purpose: `pytest --hypothesis-profile=explore tests/properties`.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")


def pytest_xdist_auto_num_workers() -> int:
    """More than there are cores: most tests wait for processes, leases and clocks."""
    return (os.cpu_count() or 1) * 3 // 2


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with embedded(tmp_path / "store") as running:
        yield running


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[Connection]:
    async with Connection.open(server.url, name="test") as connected:
        yield connected
