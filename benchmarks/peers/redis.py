"""A redis-server of our own in a folder of its own, whose every write is synced, or none longer than a second ago."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

_START_S = 10.0


def is_installed() -> bool:
    return shutil.which("redis-server") is not None


@asynccontextmanager
async def redis(sync: Literal["always", "everysec"]) -> AsyncIterator[str]:
    """Its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="peers-redis-") as folder:
        where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", folder]
        kept = ["--save", "", "--appendonly", "yes", "--appendfsync", sync]
        process = await asyncio.create_subprocess_exec("redis-server", *where, *kept, stdout=subprocess.DEVNULL)
        try:
            await listening(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            await process.wait()


async def listening(port: int) -> None:
    """Wait until somebody does. Raises TimeoutError."""
    async with asyncio.timeout(_START_S):
        while not _listens(port):
            await asyncio.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0
