"""Durability: what a receipt may promise. The server is asked; what can't be proven is not promised.

The default of nats-server loses whole streams on a power cut; with `sync_interval: always` nothing that was
acknowledged is lost. Only the system account can see which it is.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from bus.broker.connection import Connection
from bus.errors import Misconfigured, NoResponders

Durability = Literal["synced", "fast", "unproven"]
# Every server of a cluster answers; when none has for this long, all have.
_QUIET_S = 0.1


class _Config(msgspec.Struct, frozen=True):
    sync_always: bool = False


class _JetStream(msgspec.Struct, frozen=True):
    config: _Config = _Config()


class _Varz(msgspec.Struct, frozen=True):
    jetstream: _JetStream = _JetStream()


class _Server(msgspec.Struct, frozen=True):
    name: str = ""


class _Answer(msgspec.Struct, frozen=True):
    server: _Server = _Server()
    data: _Varz = _Varz()


_answer = msgspec.json.Decoder(_Answer)


async def prove(system_url: str | None, wanted: Literal["synced", "fast"], timeout_s: float) -> Durability:
    """What may be promised. Raises Misconfigured if `synced` is wanted and a server does not sync, Unavailable."""
    if wanted == "fast":
        return "fast"
    if system_url is None:
        return "unproven"
    async with Connection.open(system_url, name="durability", connect_timeout_s=timeout_s) as system:
        try:
            asked = system.request_many("$SYS.REQ.SERVER.PING.VARZ", timeout_s=_QUIET_S)
            answers = [_answer.decode(each.data) async for each in asked]
        except (NoResponders, msgspec.DecodeError):
            return "unproven"
    for each in answers:
        if not each.data.jetstream.config.sync_always:
            raise Misconfigured(
                f"server {each.server.name!r} does not sync before it acknowledges: set `sync_interval: always` in its "
                "jetstream block (see nats.conf), or choose PHASEBUS_DURABILITY=fast"
            )
    return "synced" if answers else "unproven"
