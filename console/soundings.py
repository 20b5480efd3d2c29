"""Soundings: what can be found out about the server and the streams, and about the way there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import msgspec

from bus import clock
from bus.broker.connection import Connection
from bus.broker.line import LoginRefused
from bus.client import Client
from bus.errors import BusError, Misconfigured, NoResponders, NotFound, SettingsError, Unavailable
from bus.log import layout, streams
from projections.doctor.facts import Ground

_QUIET_S = 0.15
_ASK_S = 1.0
_TTL_S = 1


class _Config(msgspec.Struct, frozen=True):
    sync_always: bool = False
    max_storage: int = 0


class _Stats(msgspec.Struct, frozen=True):
    storage: int = 0


class _JetStream(msgspec.Struct, frozen=True):
    config: _Config = _Config()
    stats: _Stats = _Stats()


class _Connected(msgspec.Struct, frozen=True):
    name: str = ""


class _Varz(msgspec.Struct, frozen=True):
    jetstream: _JetStream = _JetStream()


class _Connz(msgspec.Struct, frozen=True):
    connections: Sequence[_Connected] = ()


class _Server(msgspec.Struct, frozen=True):
    name: str = ""


T = TypeVar("T")


class _Answer(msgspec.Struct, Generic[T], frozen=True):
    data: T
    server: _Server = _Server()


_varz = msgspec.json.Decoder(_Answer[_Varz])
_connz = msgspec.json.Decoder(_Answer[_Connz])


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What the system account sees, or why there is no login of it: empty if there is one.

    `connected` are the names of all connections.
    """

    refused: str = ""
    unsynced: str | None = None
    full: float | None = None
    connected: tuple[str, ...] | None = None


async def unreached(error: BusError, url: str) -> Ground:
    """Why no connection came about."""
    parts = urlsplit(url.partition(",")[0])
    where = f"{parts.hostname}:{parts.port or 4222}"
    if isinstance(error.__cause__, LoginRefused):
        said = str(error.__cause__.__cause__).removeprefix("nats: ")
        return Ground(reached="refused", where=where, said=said)
    if isinstance(error, SettingsError):
        return Ground(reached="nowhere", where=where, said=str(error))
    said = str(error)
    try:
        async with asyncio.timeout(_ASK_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 4222)
            writer.close()
    except (OSError, TimeoutError):
        return Ground(reached="unreachable", where=where, said=said)
    return Ground(reached="mute", where=where, said=said)


async def overview(system_url: str | None, durability: str) -> Overview:
    """What only the system account may see of all servers."""
    if system_url is None:
        return Overview(refused="PHASEBUS_SYSTEM_URL is not set")
    try:
        async with Connection.open(system_url, name="doctor", connect_timeout_s=_ASK_S) as system:
            varz, connz = await asyncio.gather(
                _ask_all(system, "$SYS.REQ.SERVER.PING.VARZ", _varz),
                _ask_all(system, "$SYS.REQ.SERVER.PING.CONNZ", _connz),
            )
    except BusError as error:
        why = "the server refused it" if isinstance(error.__cause__, LoginRefused) else str(error)
        return Overview(refused=why)
    if not varz:
        return Overview(refused="it is no login of the system account")
    lax = [each.server.name for each in varz if not each.data.jetstream.config.sync_always]
    shares = [each.data.jetstream for each in varz if each.data.jetstream.config.max_storage > 0]
    return Overview(
        unsynced=lax[0] if lax and durability == "synced" else None,
        full=max((each.stats.storage / each.config.max_storage for each in shares), default=None),
        connected=tuple(each.name for answer in connz for each in answer.data.connections),
    )


async def _ask_all(system: Connection, subject: str, decoder: msgspec.json.Decoder[T]) -> list[T]:
    try:
        # Of thousands of connections, those that came last are left out.
        return [decoder.decode(each.data) async for each in system.request_many(subject, timeout_s=_QUIET_S)]
    except (NoResponders, msgspec.DecodeError):
        return []


async def ground(client: Client, where: str) -> Ground:
    """The streams, the disk and the clock; without what the system account sees."""
    connection, subjects = client.connection, client.subjects
    try:
        known = set(await streams.names(connection, _ASK_S))
    except Unavailable as error:
        off = "has no JetStream" in str(error) or "not enabled" in str(error)
        return Ground(reached="no_jetstream" if off else "mute", where=where, said=str(error))
    own = (
        *(subjects.stream, subjects.work_stream, subjects.timers_stream, subjects.cache_stream),
        *(f"KV_{subjects.leases_bucket}", f"KV_{subjects.limits_bucket}", f"OBJ_{subjects.payloads_bucket}"),
    )
    kept = [each for each in own if each in known]
    others = [each.lower() for each in sorted(known) if f"{each}_WORK" in known and each != subjects.stream]
    found = Ground(
        where=where,
        kept=kept,
        lost=[each for each in own[:2] if each not in known],
        others=others,
        max_payload=connection.max_payload,
    )
    if subjects.stream not in known:
        return found
    wrong, unwritable, ahead_s = await asyncio.gather(
        _wrong(client, known), _unwritable(client, known), _ahead_s(client)
    )
    return msgspec.structs.replace(found, wrong=wrong, unwritable=unwritable, ahead_s=ahead_s)


async def _wrong(client: Client, known: set[str]) -> str:
    """The first setting of a stream that is not as it should be."""
    subjects, replicas = client.subjects, client.settings.replicas
    for config in (layout.log_config(subjects, replicas), layout.work_config(subjects, replicas)):
        if config["name"] in known:
            try:
                await streams.ensure_stream(client.connection, config, _ASK_S, create=False)
            except Misconfigured as error:
                return str(error)
            except (NotFound, Unavailable):
                continue
    return ""


async def _unwritable(client: Client, known: set[str]) -> str:
    """Why nothing can be stored, if that is so: a small value is, in the bucket of leases, for a second."""
    if f"KV_{client.subjects.leases_bucket}" not in known:
        return ""
    try:
        await client.leases.bucket.put("doctor", b"", ttl_s=_TTL_S)
    except BusError as error:
        return str(error)
    return ""


async def _ahead_s(client: Client) -> float | None:
    """How far our clock is ahead of the server's; what the way there and back took is not counted."""
    try:
        before: datetime = clock.utc_now()
        told = await streams.info(client.connection, client.subjects.stream, _ASK_S)
        after = clock.utc_now()
    except BusError:
        return None
    if told.at > after:
        return (after - told.at).total_seconds()
    return max((before - told.at).total_seconds(), 0.0)
