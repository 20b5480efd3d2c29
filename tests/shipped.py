"""Servers that are started with the `nats.conf` that ships, one or three as the guide says; their ports are others."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec

from bus import BusError, connect
from bus.broker.connection import Connection
from bus.broker.server import _binary
from tests.harness import ROOT, until

PASSWORDS = {"PASSWORD": "b-us", "SYSTEM_PASSWORD": "s-ys", "OPERATOR_PASSWORD": "o-p", "AUDITOR_PASSWORD": "a-ud"}
ENVIRONMENT = {f"PHASEBUS_{name}": password for name, password in PASSWORDS.items()}


class _Addressed:
    """Who has an address for each login."""

    def url_of(self, user: str) -> str:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return self.url_of("bus")

    @property
    def system_url(self) -> str:
        return self.url_of("system")

    @property
    def auditor_url(self) -> str:
        return self.url_of("auditor")


class Shipped(_Addressed):
    """One server in a folder; `flags` go behind the file's name."""

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        self.port, self.websocket, monitoring = free_port(), free_port(), free_port()
        text = (ROOT / "nats.conf").read_text()
        for port, other in ((4222, self.port), (4280, self.websocket), (8222, monitoring)):
            assert f'"127.0.0.1:{port}"' in text
            text = text.replace(f'"127.0.0.1:{port}"', f'"127.0.0.1:{other}"')
        folder.mkdir(exist_ok=True)
        (folder / "nats.conf").write_text(text)
        self._folder = folder
        self._flags = flags
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [_binary(), "-c", "nats.conf", *self._flags],
            cwd=self._folder,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def url_of(self, user: str) -> str:
        name = {"bus": "PASSWORD"}.get(user, f"{user.upper()}_PASSWORD")
        return f"nats://{user}:{PASSWORDS[name]}@127.0.0.1:{self.port}"

    def listens(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Cluster(_Addressed):
    """Three servers that keep three copies of everything."""

    def __init__(self, folder: Path) -> None:
        routes = [f"nats://127.0.0.1:{free_port()}" for _ in range(3)]
        self.servers = {
            f"n{number}": Shipped(
                folder / f"n{number}",
                [
                    *("--server_name", f"n{number}", "--cluster_name", "bus"),
                    *("--cluster", route, "--routes", ",".join(routes)),
                ],
            )
            for number, route in enumerate(routes, 1)
        }

    def url_of(self, user: str) -> str:
        return ",".join(each.url_of(user) for each in self.servers.values())

    async def leader(self, connection: Connection, stream: str) -> str:
        """The server that leads a stream now, by name."""
        answer = await connection.request(f"$JS.API.STREAM.INFO.{stream}", timeout_s=5)
        return msgspec.json.decode(answer.data, type=_Stream).cluster.leader


class _Group(msgspec.Struct):
    leader: str = ""


class _Stream(msgspec.Struct):
    cluster: _Group


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Shipped]:
    """One that takes connections."""
    running = Shipped(folder)
    try:
        await until(running.listens)
        yield running
    finally:
        running.kill()


@asynccontextmanager
async def clustered(folder: Path, bound_s: float) -> AsyncIterator[Cluster]:
    """Three that have found each other, and have the streams of a bus."""
    cluster = Cluster(folder)
    try:
        await until(lambda: _has_streams(cluster), bound_s)
        yield cluster
    finally:
        for each in cluster.servers.values():
            each.kill()


async def _has_streams(cluster: Cluster) -> bool:
    try:
        async with connect(cluster.url, replicas=3, request_timeout_s=1):
            return True
    except BusError:
        return False


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
