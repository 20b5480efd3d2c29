"""Signals: the first SIGTERM or SIGINT asks a process to finish, the second ends it; signal 0 asks if it lives."""

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
    signals = 0

    def heard() -> None:
        nonlocal signals
        signals += 1
        # Counted here: `main` may have set the event for a reason of its own.
        if signals > 1:
            os._exit(_INTERRUPTED)
        stop.set()

    for each in _SIGNALS:
        loop.add_signal_handler(each, heard)
    try:
        return await main(stop)
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, ours or not."""
    if pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
