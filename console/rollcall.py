"""The roll call: which instances answer, which are gone or mute, and who supervises."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable

from agents.leadership import PLACE
from bus.address import Started
from bus.client import Client
from bus.errors import BusError, MalformedMessage, NoResponders
from bus.presence import Beat, read_beat
from bus.signals import is_alive
from bus.wire import Message
from projections.doctor.facts import Lead, Life, Member, Running

_PING_S = 0.5
_PS_S = 1.0
_MOST = 200
_AGENT, _SUPERVISOR = "agent/", "supervisor"


async def members(client: Client, holders: Iterable[str], connected: Collection[str] | None) -> dict[str, Member]:
    """Everybody who answers; of the others those who hold something, or are connected. Raises Unavailable."""
    found = {beat.instance: _member(beat, "alive") for beat in await client.agents()}
    suspects = set(holders) | {each.rpartition("/")[2] for each in connected or () if each.startswith(_AGENT)}
    silent = sorted(suspects - found.keys())[:_MOST]
    for member in await asyncio.gather(*(_ask(client, each) for each in silent)):
        found[member.instance] = member
    return found


async def lead(client: Client, connected: Collection[str] | None, started: Started | None) -> Lead:
    """Who leads, and who could. Raises Unavailable."""
    leader = await client.leases.holder_of(PLACE)
    standing_by = sum(1 for each in connected if each == _SUPERVISOR) if connected is not None else None
    pid = started.pid if started is not None else 0
    return Lead(leader=leader or "", standing_by=standing_by, pid=pid, process=await running(pid))


async def running(pid: int) -> Running:
    """What a process of this machine does."""
    if not pid:
        return ""
    if not is_alive(pid):
        return "ended"
    try:
        async with asyncio.timeout(_PS_S):
            ps = await asyncio.create_subprocess_exec(
                "ps", "-o", "stat=", "-p", str(pid), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            said, _ = await ps.communicate()
    except (OSError, TimeoutError):
        return ""
    status = said.decode(errors="replace").strip()[:1]
    return "stopped" if status in ("T", "t") else "ended" if status in ("Z", "") else "running"


async def _ask(client: Client, instance: str) -> Member:
    """One that did not answer when all were asked, by itself."""
    try:
        answer = await client.connection.request(client.subjects.ping(instance), timeout_s=_PING_S)
    except NoResponders:
        return Member(instance=instance, life="gone")
    except BusError:
        return await _mute(client, instance)
    beat = read_beat(answer)
    return _member(beat, "alive") if beat is not None else Member(instance=instance)


async def _mute(client: Client, instance: str) -> Member:
    """What it said of itself when it registered says where to look for its process."""
    agent = instance.rpartition("-")[0]
    beat: Beat | None = None
    try:
        record = await client.log.last(client.subjects.agent(agent, instance))
        if record is not None:
            beat = read_beat(Message("", record.envelope().data))
    except (BusError, MalformedMessage):
        pass
    if beat is None:
        return Member(instance=instance, life="mute")
    return _member(beat, "mute", await running(beat.pid) if beat.host == socket.gethostname() else "")


def _member(beat: Beat, life: Life, process: Running = "") -> Member:
    held = frozenset((each.run, each.phase, each.item, each.attempt) for each in beat.held)
    return Member(
        instance=beat.instance,
        agent=beat.agent,
        host=beat.host,
        pid=beat.pid,
        life=life,
        process=process,
        capabilities=beat.capabilities,
        held=held,
    )
