"""Connecting: where to, with what promise, and what is said when it can't be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bus import Misconfigured, NotFound, SettingsError, Unavailable, connect
from bus.address import Started, announced
from bus.broker.server import Server, embedded


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("NATS_URL", "NATS_CONTEXT", "PHASEBUS_SYSTEM_URL"):
        monkeypatch.delenv(name, raising=False)


async def test_without_any_setting_a_server_of_our_own_is_started_and_ended() -> None:
    async with connect() as client:
        receipt = await client.send("anything", {})
        assert receipt.durability == "synced"
        url = client.connection
    assert url.is_closed


async def test_the_environment_says_where_the_server_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", server.url)
    async with connect() as client:
        assert client.connection.server_version


async def test_a_nats_context_says_where_the_server_is(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "local.json").write_text(json.dumps({"url": server.url, "description": "ours"}))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    async with connect(context="local") as client:
        assert client.connection.is_connected
    with pytest.raises(SettingsError, match="nowhere"):
        async with connect(context="nowhere"):
            pass


async def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1\b") as caught:
        async with connect("nats://me:secret@127.0.0.1:1", request_timeout_s=0.5):
            pass
    assert "secret" not in str(caught.value)


async def test_a_receipt_promises_only_what_was_proven(server: Server) -> None:
    async with connect(server.url) as client:
        assert (await client.send("anything", {})).durability == "unproven"
    async with connect(server.url, system_url=server.system_url) as client:
        assert (await client.send("anything", {})).durability == "synced"


async def test_a_server_that_does_not_sync_is_refused_unless_that_is_wanted(tmp_path: Path) -> None:
    async with embedded(tmp_path / "fast", durability="fast") as server:
        with pytest.raises(Misconfigured, match="sync_interval"):
            async with connect(server.url, system_url=server.system_url):
                pass
        async with connect(server.url, system_url=server.system_url, durability="fast") as client:
            assert (await client.send("anything", {})).durability == "fast"


async def test_namespaces_do_not_see_each_other(server: Server) -> None:
    async with connect(server.url) as one, connect(server.url, namespace="other") as two:
        receipt = await one.send("anything", {})
        assert await two.log.last(two.subjects.runs) is None
        assert (await one.runs.load(receipt.run)).is_open


async def test_an_error_in_the_callers_block_comes_out_as_it_is(server: Server) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connect(server.url):
            raise ZeroDivisionError


async def test_a_bus_that_up_runs_here_or_above_is_found(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    with announced(Started(server.url, server.system_url, os.getpid())):
        monkeypatch.chdir(tmp_path / "below")
        async with connect() as client:
            assert client.connection.server_id
            receipt = await client.send("anything", {}, timeout_s=60)
    async with connect(server.url) as client:
        assert (await client.runs.load(receipt.run)).is_open


async def test_who_can_not_be_alone_says_that_there_is_no_bus() -> None:
    with pytest.raises(Unavailable, match="phasebus up"):
        async with connect(alone=False):
            pass


async def test_who_only_looks_creates_nothing(server: Server) -> None:
    with pytest.raises(NotFound, match="typo"):
        async with connect(server.url, namespace="typo", create=False):
            pass
    async with connect(server.url, namespace="right") as client:
        answer = await client.connection.request("$JS.API.STREAM.NAMES", timeout_s=5)
    assert sorted(json.loads(answer.data)["streams"]) == ["RIGHT", "RIGHT_WORK"]


async def test_a_server_that_is_started_again_on_its_store_is_found_by_who_was_connected(tmp_path: Path) -> None:
    async with embedded(tmp_path / "store") as first:
        url = first.url
        async with connect(url) as client:
            await first.stop()
            async with embedded(tmp_path / "store") as second:
                assert second.url == url
                assert (await client.send("anything", {})).position == 1
