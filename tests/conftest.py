"""Fixtures that every kind of test may use: a real server of the test's own, and a connection to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.connection import Connection
from bus.server import Server, embedded


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
