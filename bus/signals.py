"""SIGTERM and SIGINT: the first asks a process to finish, the second ends it at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_INTERRUPTED = 130


async def until_signalled(main: Callable[[asyncio.Event], Awaitable[T]]) -> T:
    """Run `main` with an event that the first signal sets. The handlers found are put back afterwards."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if stop.is_set():
            os._exit(_INTERRUPTED)
        stop.set()

    for each in _SIGNALS:
        loop.add_signal_handler(each, heard)
    try:
        return await main(stop)
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
