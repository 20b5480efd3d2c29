"""Signals: the first SIGTERM or SIGINT asks a process to finish, the second ends it; signal 0 asks if it lives, and
the system says what it does.

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
from pathlib import Path
from typing import Literal, TypeVar

import structlog

T = TypeVar("T")
logger = structlog.get_logger(__name__)

Running = Literal["", "running", "stopped", "ended"]
"""What the system says of a process of this machine; empty where nobody can tell."""

_PS_S = 1.0
_ROUNDED_S = 2.0
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


async def running(pid: int, *, since_s: float = 0.0) -> Running:
    """What a process of this machine does; 0 is none. One that is younger than `since_s` is another one, which has got
    the number of one that has ended."""
    if not pid:
        return ""
    if not is_alive(pid):
        return "ended"
    found = _in_proc(pid) or await _by_ps(pid)
    if found is None:
        return ""
    status, age_s = found
    if status in ("Z", "X", "") or age_s + _ROUNDED_S < since_s:
        return "ended"
    return "stopped" if status in ("T", "t") else "running"


def _in_proc(pid: int) -> tuple[str, float] | None:
    """The state and the age of a process, as Linux tells it."""
    try:
        # The name of the program, in parentheses, may have spaces in it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return fields[0], uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


async def _by_ps(pid: int) -> tuple[str, float] | None:
    """The same from `ps`, everywhere else."""
    try:
        async with asyncio.timeout(_PS_S):
            ps = await asyncio.create_subprocess_exec(
                *("ps", "-o", "stat=,etime=", "-p", str(pid)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            said, _ = await ps.communicate()
        status, _, age = said.decode(errors="replace").strip().partition(" ")
        return status[:1], _seconds(age)
    except (OSError, TimeoutError, ValueError):
        return None


def _seconds(etime: str) -> float:
    """What `ps` says of an age: `[[days-]hours:]minutes:seconds`."""
    days, _, clock = etime.strip().rpartition("-")
    total = 0
    for part in clock.split(":") if clock else ():
        total = total * 60 + int(part)
    return float(total + int(days or 0) * 86_400)
