"""Signals: the first SIGTERM or SIGINT asks a process to finish, the second ends it; signal 0 asks if it lives.

What others wrote runs in the process, too: a handler may not let itself be cancelled, or wait in a thread that nobody
can stop. That must not keep the process from ending, once all that is ours has ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import structlog

T = TypeVar("T")
logger = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_INTERRUPTED = 130
_LEAVING_S = 3.0


def run_until_signalled(main: Callable[[asyncio.Event], Awaitable[T]]) -> T:
    """Run `main` in an event loop of its own, with an event that the first signal sets.

    When it has ended, what does not end when it is cancelled has 3 s; then the process ends without it.
    """
    runner = asyncio.Runner()
    error: BaseException | None = None
    try:
        return runner.run(until_signalled(main))
    except BaseException as raised:
        error = raised
        raise
    finally:
        leaving = threading.Timer(_LEAVING_S, _leave, [error])
        leaving.daemon = True
        leaving.start()
        runner.close()
        leaving.cancel()


def _leave(error: BaseException | None) -> None:
    why = "a handler has not ended when it was cancelled, or waits in a thread"
    logger.warning("left behind", why=why, error=str(error) if error is not None else "")
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0 if error is None else 1)


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
