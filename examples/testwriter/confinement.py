"""Keeps code that nobody has read from harming the machine: limits, a guard against side effects, forked attempts.

A guard rail, not a sandbox: it stops the accidents that random arguments cause (`rmtree("/")`, an endless loop, all
of the memory), not code that wants to get out.
"""

import contextlib
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

Reply = Callable[[bytes], NoReturn]
FILE_BYTES = 16 << 20
ANSWER_BYTES = 32 << 10
# Audit events of what a test must not do, by prefix. Source: docs.python.org/3/library/audit_events.html
OUTSIDE = (
    *("socket.connect", "socket.bind", "socket.send", "socket.get", "urllib.", "webbrowser.", "pty.spawn"),
    *("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.kill", "signal.pthread_kill"),
)
# Those whose arguments are paths: allowed inside the folder.
ON_FILES = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod"),
    *("os.chown", "os.utime", "os.setxattr", "os.removexattr", "tempfile.", "sqlite3.connect"),
)
# How this module itself ends and makes forks, in the process that was guarded.
OF_THE_OWNER = ("os.fork", "os.kill", "os.killpg")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(PermissionError):
    """Tested code tried to reach outside its folder."""


class Ended(NamedTuple):
    """How a forked attempt ended: `answer` is empty when it did not reply, `exit_code` None when it was killed."""

    answer: bytes
    exit_code: int | None
    seconds: float


def take_over_stdout() -> int:
    """The descriptor for results; prints of tested code go nowhere from here on."""
    results = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    return results


def end_with_owner() -> None:
    """Stdin is a pipe that only the owner holds: when it ends, however the owner did, so does this whole group."""

    owner = os.dup(0)
    # Tested code that reads its input finds nothing, instead of waiting for the owner.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)

    def watch() -> None:
        os.read(owner, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def limit(*, memory_bytes: int, seconds: float) -> None:
    """Bound this process and its children; an orphan ends by itself after `seconds`.

    macOS knows RLIMIT_AS but refuses to lower it, so there the time limit alone holds.
    """
    bounds = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))
    signal.alarm(int(seconds) + 1)


def guard(folder: Path) -> None:
    """From now on refuse, in this process, to write outside `folder`, open sockets or start programs."""
    owner = os.getpid()
    inside = os.path.realpath(folder) + os.sep

    def is_inside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor, a mode, a time: whatever it refers to was opened under this guard
        place = os.path.realpath(os.fsdecode(path))
        return place == os.devnull or place.startswith(inside)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            allowed = not arguments[2] & WRITING or is_inside(arguments[0])
        elif event.startswith(ON_FILES):
            allowed = all(is_inside(argument) for argument in arguments)
        else:
            allowed = not event.startswith(OUTSIDE) or (event in OF_THE_OWNER and os.getpid() == owner)
        if not allowed:
            raise Refused(f"refused: {event}{arguments!r:.200}")

    sys.addaudithook(refuse)


def warm_up(cache: Path) -> None:
    """Let Hypothesis load its tables before any fork, so that not every fork does; to be called before `guard`.

    The tables take a second to make, so the first child leaves them in `cache` for the others.
    """

    @settings(max_examples=5, database=None)
    @given(st.text(), st.floats(), st.integers())
    def test(_text: str, _number: float, _count: int) -> None:
        pass

    set_hypothesis_home_dir(cache / ".hypothesis")
    test()
    set_hypothesis_home_dir(Path.cwd())


def attempt(call: Callable[[Reply], None], *, limit_s: float) -> Ended:
    """Call a function in a forked copy of this process, which ends with its reply or is killed after `limit_s`."""
    started = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:

        def reply(answer: bytes) -> NoReturn:
            os.write(writer, answer[:ANSWER_BYTES])
            os._exit(0)

        with contextlib.suppress(BaseException):
            call(reply)
        os._exit(1)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], limit_s)
    answer = os.read(reader, ANSWER_BYTES) if ready else b""
    os.close(reader)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return Ended(answer, os.waitstatus_to_exitcode(status) if ready else None, time.monotonic() - started)
