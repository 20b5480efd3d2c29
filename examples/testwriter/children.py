"""Runs one of this folder's scripts in a process group of its own, which never outlives the call."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

LINE_BYTES = 1 << 20


class Finished(NamedTuple):
    """`exit_code` is None when the time limit ended it; `lines` are what it had printed by then."""

    lines: list[bytes]
    exit_code: int | None


async def run(script: str, *arguments: str, limit_s: float) -> Finished:
    """Run a script of this folder in an empty folder, with almost no environment.

    On a timeout, on cancellation and also at a normal end, everything it started is killed with it.
    """
    with tempfile.TemporaryDirectory(prefix="testwriter-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-B", str(Path(__file__).with_name(script)), *arguments),
            # Held open by this process alone: when it is gone, the child sees the end of it and ends too.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env=environment(folder),
            start_new_session=True,
            limit=LINE_BYTES,
        )
        assert process.stdout is not None, "stdout is a pipe"
        lines: list[bytes] = []
        try:
            async with asyncio.timeout(limit_s):
                async for line in process.stdout:
                    lines.append(line)
                return Finished(lines, await process.wait())
        except TimeoutError:
            return Finished(lines, None)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def environment(folder: str) -> dict[str, str]:
    """Nothing of the user's but the search path and the language: no keys, no tokens, no home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
    return kept | {"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
