"""The roll call: which instances answer, which are gone or mute, and who supervises."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable
from contextlib import aclosing, suppress

import msgspec

from agents.leadership import PLACE
from bus.address import Started
from bus.client import Client
from bus.errors import BusError, NoResponders
from bus.registry.card import Card, read_event
from bus.registry.presence import Held, read_beat
from bus.registry.roster import Instance, instance_of
from bus.signals import is_alive
from projections.doctor.facts import Asked, Lead, Life, Member, Running

_PING_S = 0.5
_PS_S = 1.0
_MOST = 200
_RESTING = ("draining", "quarantined")
_AGENT, _SUPERVISOR = "agent/", "supervisor"


async def members(client: Client, holders: Iterable[str], connected: Collection[str] | None) -> dict[str, Member]:
    """Everybody who answers; of the others those who hold something, or are connected. Raises Unavailable."""
    await client.signposts.known()
    there = [_with_arms(client, each) for each in await client.agents()]
    found = {each.instance: _member(each, "alive") for each in there if each.status != "suspected"}
    suspects = {each.instance for each in there} | set(holders)
    suspects |= {each.rpartition("/")[2] for each in connected or () if each.startswith(_AGENT)}
    silent = sorted(suspects - found.keys())[:_MOST]
    for member in await asyncio.gather(*(_ask(client, each) for each in silent)):
        found[member.instance] = member
    return found


def _with_arms(client: Client, there: Instance) -> Instance:
    """With what routes give to its version: that is work of its own kind, too."""
    needs = client.signposts.needs(there.capabilities, there.version)
    arms = {needed: there.capabilities[name] for name, needed in needs.items()}
    return msgspec.structs.replace(there, capabilities={**there.capabilities, **arms})


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
    held = frozenset(map(_asked, beat.held)) if beat is not None else frozenset()
    return Member(instance=instance, held=held)


async def _mute(client: Client, instance: str) -> Member:
    """Its card, in the log, says where to look for its process."""
    card: Card | None = None
    subject = client.subjects.agent(instance.rpartition("-")[0], instance)
    with suppress(BusError):
        async with aclosing(client.log.read_back(subject)) as records:
            async for record in records:
                # It may have been taken for lost since.
                said = read_event(record.envelope())
                if isinstance(said, Card):
                    card = said
                    break
    if card is None:
        return Member(instance=instance, life="mute")
    process = await running(card.pid) if card.host == socket.gethostname() else ""
    return _member(instance_of(card, None), "mute", process)


def _member(there: Instance, life: Life, process: Running = "") -> Member:
    return Member(
        instance=there.instance,
        agent=there.agent,
        host=there.host,
        pid=there.pid,
        life=life,
        process=process,
        takes_nothing=f"{there.status}{f': {there.note}' if there.note else ''}" if there.status in _RESTING else "",
        paused=frozenset(there.paused),
        capabilities={name: each.concurrency for name, each in there.capabilities.items()},
        held=frozenset(map(_asked, there.held)),
    )


def _asked(held: Held) -> Asked:
    return held.run, held.phase, held.item, held.attempt
