"""The keeper: a small process above a handler's own, so that nothing of an attempt outlives it.

It leads a process group, runs the handler in a child, and reads a socket that only the worker holds the other end of.
When that ends, because the worker has closed it or is gone (`kill -9` too, on Linux and macOS), the keeper kills the
group: itself, the handler, and whatever that has started. A handler that keeps its interpreter busy can't prevent it,
and no process id is ever used that could by then be another's.

Started as a script it imports nothing but the standard library, before it has forked.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

ENDED = b"\0"
"""What the keeper writes before the exit code, after whatever `faulthandler` has said on the same socket."""

PATH = "_PHASEBUS_PATH"
"""The variable that tells a script where its worker found this library."""


def keep(work: Callable[[], None], data: int, line: int) -> NoReturn:
    """Run `work` in a child, and end with it and the whole group as soon as the other end of `line` is closed.

    `data` is the child's alone. If the child ends first, its exit code (negative: the signal) is written to `line`,
    behind a zero byte.
    """
    with suppress(PermissionError):  # a session's leader leads its group already
        os.setpgid(0, 0)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, _noticed)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(woken)
        os.close(wake)
        _run(work)
    os.close(data)
    # Who wants it to end ends its child, or its worker.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    polled = select.poll()
    polled.register(line, select.POLLIN)
    polled.register(woken, select.POLLIN)
    has_ended = False
    while True:
        ready = [fd for fd, _ in polled.poll()]
        if line in ready:
            # Nobody writes there: it has ended.
            os.killpg(0, signal.SIGKILL)
        os.read(woken, 64)
        done, status = (0, 0) if has_ended else os.waitpid(child, os.WNOHANG)
        if done:
            has_ended = True
            with suppress(OSError):
                os.write(line, ENDED + str(os.waitstatus_to_exitcode(status)).encode())


def _noticed(_number: int, _frame: object) -> None:
    """A handler, so that the signal wakes the poll."""


def _run(work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


def _serve() -> None:
    """What the handler's process does first: find this library where its worker found it."""
    sys.path[:] = json.loads(os.environ.pop(PATH))
    from bus.handlers.inside import serve  # noqa: PLC0415 - only now can it be found

    serve(int(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    keep(_serve, int(sys.argv[1]), int(sys.argv[2]))
