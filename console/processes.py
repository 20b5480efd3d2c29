"""Processes of our own: each with its log in a file, and none that outlives its owner, however the owner ends.

Each reads a pipe that only the owner holds open. When the pipe ends the process stops in good order, or by force a
little later: that is also how the owner stops it. Nothing here depends on the owner getting a chance to clean up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_GRACE_S = 3.0
_STOP_S = 5.0
_POLL_S = 0.02
_SHOWN_LINES = 8


class Died(Exception):
    """A process ended by itself. Says which, and what it wrote last."""


class Process:
    """One process, and the file of what it says."""

    def __init__(self, name: str, log: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self.is_expected_to_end = False
        with log.open("wb") as file:
            # A group of its own: Ctrl-C in a terminal is for the owner. Without -P the current folder, whatever is in
            # it, would come before the installed packages.
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, *arguments],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=environment,
                process_group=0,
            )
        self.pid = self._child.pid

    @property
    def has_ended(self) -> bool:
        return self._child.poll() is not None

    def freeze(self) -> None:
        """Hold it still, to look before it is killed or goes on (`thaw`)."""
        self._child.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, as a crash would end it; then what it had started, which nobody else would end now."""
        self.is_expected_to_end = True
        started = {group for pid in _descendants(self.pid) if (group := _group(pid)) != self.pid}
        self._child.kill()
        for group in started:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def ask_to_end(self) -> None:
        """Close its pipe."""
        assert self._child.stdin is not None, "a pipe"
        self.is_expected_to_end = True
        self._child.stdin.close()

    async def wait(self) -> None:
        """Until it has ended."""
        while not self.has_ended:  # noqa: ASYNC110 - a child's end is no event of the loop on every platform
            await asyncio.sleep(_POLL_S)

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        return "\n".join(lines) or "(it wrote nothing)"


class Processes:
    """Those of one owner."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._environment = environment
        self._all: dict[str, Process] = {}

    def start(self, name: str, *arguments: str) -> Process:
        """Start `phasebus` with these arguments. Its log is the file called like `name`."""
        process = Process(name, self._logs / f"{name}.log", arguments, self._environment)
        self._all[name] = process
        return process

    def by_pid(self, pid: int) -> Process | None:
        return next((process for process in self._all.values() if process.pid == pid), None)

    async def watch(self) -> None:
        """Wait until one ends that was not meant to. Raises Died."""
        while True:
            for process in self._all.values():
                if process.has_ended and not process.is_expected_to_end:
                    raise Died(f"{process.name} ended by itself; {process.log} ends with:\n{process.last_words()}")
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """End all of them, with what they started: in good order, after five seconds by force."""
        for process in self._all.values():
            process.ask_to_end()
        waiting = [asyncio.create_task(process.wait()) for process in self._all.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=_STOP_S)
        for process in self._all.values():
            if not process.has_ended:
                process.kill()
        await asyncio.gather(*waiting)


@asynccontextmanager
async def processes(logs: Path, environment: Mapping[str, str]) -> AsyncIterator[Processes]:
    """Processes that end with the block. `logs` is a folder that may not exist yet."""
    owned = Processes(logs, environment)
    try:
        yield owned
    finally:
        await owned.stop()


def _group(pid: int) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return pid


def _descendants(pid: int) -> list[int]:
    parents = dict(_parents())
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def _parents() -> Iterator[tuple[int, int]]:
    """Every process of this machine with its parent."""
    if sys.platform == "linux":
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # The name, in parentheses, may hold anything; the parent is the second field behind it.
                yield int(stat.parent.name), int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
    else:
        listing = subprocess.run(["/bin/ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        for line in listing.stdout.splitlines():
            pid, parent = line.split()
            yield int(pid), int(parent)


def _end_with_owner() -> None:
    os.read(0, 1)  # nobody writes: this returns when the owner has closed the pipe, or is gone
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _main() -> int:
    from console.main import main

    return main()


if __name__ == "__main__":
    threading.Thread(target=_end_with_owner, daemon=True).start()
    sys.exit(_main())
