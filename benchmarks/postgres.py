"""A PostgreSQL of the benchmark's own, if one is installed: a new cluster in a temporary folder, with its defaults."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

_PORT = "54329"


@contextmanager
def postgres() -> Iterator[dict[str, str] | None]:
    """What the library's PostgreSQL recorders read from their environment; None if there is no server or driver."""
    binaries = _binaries()
    if binaries is None or find_spec("psycopg_pool") is None:
        yield None
        return
    # It refuses to run as root.
    user = None if os.getuid() else "postgres"
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    if user is not None:
        shutil.chown(folder, user)
    name = user or pwd.getpwuid(os.getuid()).pw_name

    def run(program: str, *arguments: str) -> None:
        command = [str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    run("initdb", "--auth=trust")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-p {_PORT} -k {folder}", "start")
    try:
        yield {
            "POSTGRES_DBNAME": "postgres",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": _PORT,
            "POSTGRES_USER": name,
            "POSTGRES_PASSWORD": "",
            "POSTGRES_POOL_SIZE": "20",
            "POSTGRES_MAX_OVERFLOW": "60",
        }
    finally:
        with suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-w", "-m", "fast", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
