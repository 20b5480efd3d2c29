"""Who is compared, what each keeps, and its processes beside a server of its kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.peers.redis import free_port, is_installed, listening, redis
from bus.broker.server import embedded

Kept = Literal["task and result", "task", "nothing"]
Serving = Literal["nats", "redis", "host"]
Environment = dict[str, str]

_ROOT = Path(__file__).parents[2]
_VERSION = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


class Peer(NamedTuple):
    name: str
    module: str
    keeps: Kept
    server: Serving
    # What it is installed as; nothing for our own.
    package: str = ""
    how: tuple[str, ...] = ()
    has_host: bool = False

    def command(self, python: str, role: str, *arguments: str) -> list[str]:
        return [python, "-m", f"benchmarks.peers.with_{self.module}", role, *arguments]

    def installed(self, pythons: Iterable[str]) -> tuple[str, str] | None:
        """The first interpreter that has it, and its version; None if none has."""
        if not self.package:
            return sys.executable, ""
        for python in pythons:
            found = subprocess.run([python, "-c", _VERSION, self.package], capture_output=True, text=True, check=False)
            if found.returncode == 0:
                return python, found.stdout.strip()
        return None

    @property
    def lacks_server(self) -> bool:
        return self.server == "redis" and not is_installed()


PEERS = (
    Peer("phasebus, ask", "phasebus", "task and result", "nats", has_host=True),
    Peer("taskiq on NATS", "taskiq", "task and result", "nats", "taskiq-nats"),
    Peer("taskiq on Redis", "taskiq", "task and result", "redis", "taskiq-redis"),
    Peer("Celery", "celery", "task and result", "redis", "celery"),
    Peer("Dramatiq", "dramatiq", "task and result", "redis", "dramatiq"),
    Peer("arq", "arq", "task and result", "redis", "arq"),
    Peer("SAQ", "saq", "task and result", "redis", "saq"),
    Peer("FastStream", "faststream", "task", "nats", "faststream"),
    Peer("phasebus, ask fast", "phasebus", "nothing", "nats", how=("fast",), has_host=True),
    Peer("AutoGen, gRPC", "autogen", "nothing", "host", "autogen-ext", has_host=True),
    Peer("Synadia agents", "synadia", "nothing", "nats", "synadia-ai-agent-service"),
)


@asynccontextmanager
async def served(peer: Peer, python: str, *, is_synced: bool, settings: str = "rate") -> AsyncIterator[Environment]:
    """A server for it alone, and what its processes need to know."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PEER_SETTINGS": settings}
    if peer.server == "host":
        port = free_port()
        environment["PEER_URL"] = f"127.0.0.1:{port}"
        with running([peer.command(python, "host")], environment):
            await listening(port)
            yield environment
    elif peer.server == "redis":
        async with redis("always" if is_synced else "everysec") as url:
            yield environment | {"PEER_URL": url}
    else:
        async with embedded(durability="synced" if is_synced else "fast") as server:
            environment["PEER_URL"] = server.operator_url if peer.package else server.url
            environment["NATS_URL"] = environment["PEER_URL"]
            environment["PEER_SYSTEM_URL"] = server.system_url
            with running([peer.command(python, "host")] if peer.has_host else [], environment):
                yield environment


@contextmanager
def running(commands: Sequence[Sequence[str]], environment: Environment) -> Iterator[None]:
    """Each in a session of its own, until the block ends: some have children."""
    with ExitStack() as processes:
        for command in commands:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=_ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            processes.callback(_end, process)
        yield


def output(command: Sequence[str], environment: Environment, timeout_s: float) -> str:
    """What it printed. Raises CalledProcessError and TimeoutExpired."""
    done = subprocess.run(
        command, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=True
    )
    return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    # It may be dead already: killing it was what was measured.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
