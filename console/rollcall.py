"""The roll call: which instances answer, which are gone or mute, who supervises, and who waits for whom."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime

import msgspec

from agents.leadership import PLACE
from bus.address import Started
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, NoResponders
from bus.registry.card import AgentDeregistered, Card, read_event
from bus.registry.presence import Held, read_beat
from bus.registry.roster import Instance, instance_of
from bus.rules.events import PhaseProgressed
from bus.rules.route import need
from bus.rules.run import RunState
from bus.signals import Running, running
from projections.attention import Living, Wait
from projections.doctor.crew import muteness
from projections.doctor.facts import Asked, Lead, Life, Member
from projections.doctor.work import opened

_PING_S = 0.5
_MOST = 200
_LISTENED_TO = 50
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


async def living(client: Client, runs: Collection[RunState]) -> Living:
    """Who is there, as far as somebody who looks at runs wants to know. Raises Unavailable."""
    holders = [holder.instance for state in runs for _, _, holder in state.held()]
    found, waiting, breakers, words = await asyncio.gather(
        members(client, holders, None), waits(client), client.breakers(), said(client, runs)
    )
    taking = [each for each in found.values() if each.life == "alive" and not each.takes_nothing]
    places = Counter[str]()
    for each in taking:
        places.update(each.capabilities)
    places.subtract(need(state.capability(p.key) or "", i.arm) for state in runs for p, i, _ in state.held())
    return Living(
        {each.instance for each in found.values() if each.life != "gone"},
        {name for each in found.values() if not each.takes_nothing for name in each.capabilities},
        full={name for each in taking for name in each.capabilities if places[name] <= 0},
        mute={each.instance: muteness(each) for each in found.values() if each.life == "mute"},
        waits=waiting,
        said=words,
        resting={each.breaker: opened(each) for each in breakers if each.status == "open"},
    )


async def said(client: Client, runs: Iterable[RunState]) -> dict[Asked, Sequence[datetime]]:
    """When attempts under way said something of themselves; of many runs, those of the newest. Raises Unavailable."""
    found: defaultdict[Asked, list[datetime]] = defaultdict(list)
    holding = [state for state in runs if any(holder.has_spoken for _, _, holder in state.held())]
    for state in sorted(holding, key=lambda state: state.started_at)[-_LISTENED_TO:]:
        async with aclosing(client.ledger.commits(state.run)) as commits:
            async for commit in commits:
                for event in commit.events:
                    if isinstance(event, PhaseProgressed):
                        found[state.run, event.phase, event.item, event.attempt].append(commit.at)
    return dict(found)


async def waits(client: Client) -> dict[Asked, Wait]:
    """Which attempts wait for a lock, a permit or a lead, and who has it. Raises Unavailable."""
    in_line = [each for each in await client.in_line() if each.ticket.run]
    if not in_line:
        return {}
    holders: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for had in await client.holdings():
        holders[had.place.kind, had.place.name].append(had.holder)
    found: dict[Asked, Wait] = {}
    for each in in_line:
        who, words = each.ticket, "permit of" if each.kind == "permit" else each.kind
        having = ", ".join(holders[each.kind, each.name])
        wait = Wait(f"{words} {each.name!r}", f"{each.kind}.{each.name}", having)
        found[who.run, who.phase, who.item, who.attempt] = wait
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


async def _ask(client: Client, instance: str) -> Member:
    """One that did not answer when all were asked, by itself."""
    try:
        answer = await client.connection.request(client.subjects.ping(instance), timeout_s=_PING_S)
    except NoResponders:
        return await _mute(client, instance, "gone")
    except BusError:
        return await _mute(client, instance, "mute")
    beat = read_beat(answer)
    held = frozenset(map(_asked, beat.held)) if beat is not None else frozenset()
    return Member(instance=instance, held=held)


async def _mute(client: Client, instance: str, life: Life) -> Member:
    """Its card, in the log, says where to look for its process. Who is gone for the server may only have been stopped
    for so long that the server has closed its connection."""
    card: Card | None = None
    age_s = 0.0
    subject = client.subjects.agent(instance.rpartition("-")[0], instance)
    with suppress(BusError):
        async with aclosing(client.log.read_back(subject)) as records:
            async for record in records:
                said = read_event(record.envelope())
                if isinstance(said, AgentDeregistered):
                    break
                # It may have been taken for lost since.
                if isinstance(said, Card):
                    card, age_s = said, (utc_now() - record.stored_at).total_seconds()
                    break
    if card is None:
        return Member(instance=instance, life=life)
    process = await running(card.pid, since_s=age_s) if card.host == socket.gethostname() else ""
    if life == "gone" and process in ("stopped", "running"):
        life = "mute"
    return _member(instance_of(card, None), life, process)


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
