"""Recall: whether what an instance is about to work on was computed before, and the keeping of what it computes.

Asked before the work is taken, so that one commit both takes and ends it. Whatever goes wrong here is a miss: the work
is done, as it would be without a cache.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import msgspec
import structlog

from bus.cache import cache
from bus.cache.cache import Components, Entry
from bus.cache.entries import Entries
from bus.cache.fingerprint import fingerprint
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, MalformedMessage
from bus.format.schemas import anything
from bus.format.subjects import Work
from bus.handlers.agent import Agent, Capability
from bus.rules.commands import Reuse
from bus.rules.events import PhaseCompleted, Source
from bus.rules.inputs import input_of
from bus.rules.route import need
from bus.rules.run import RunState
from bus.runs.ledger import commit_in
from bus.runs.runs import Decided

logger = structlog.get_logger(__name__)

_PATIENCE_S = 1.0


class Recalled(msgspec.Struct, frozen=True):
    """What was found, or why nothing was; with a `key`, the result is to be kept under it."""

    reuse: Reuse | None = None
    because: str = ""
    key: str = ""
    components: dict[str, str] = {}


class Recall:
    """That of one instance of an agent."""

    def __init__(self, client: Client, agent: Agent) -> None:
        self._client = client
        self._entries = Entries(client.connection, client.log, client.settings, source=client.source)
        # Now: what the code refers to may change while it runs.
        self._fixed = {name: fixed(agent, each) for name, each in agent.capabilities.items() if each.cache is not None}

    async def look(self, capability: Capability, work: Work) -> Recalled:
        """Whether the result of this work is known. Never raises for what is wrong with the bus."""
        if capability.cache is None:
            return Recalled()
        try:
            state = await self._client.runs.load(work.run)
        except BusError as error:
            # Whoever takes the work meets the same, and says so.
            logger.debug("not looked up", error=str(error))
            return Recalled()
        if not _can_be_taken(state, work):
            return Recalled()
        phase = state.phases[work.phase]
        if not state.plan.graph[work.phase].phase.cache:
            return Recalled(because=cache.OPTED_OUT)
        parts = cache.components(self._fixed[capability.name], input_of(state, work.phase, work.item))
        key = cache.key(parts)
        if state.force or phase.forced:
            return Recalled(None, cache.FORCED, key, parts)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found = await self._find(capability, key)
                if isinstance(found, Reuse):
                    return Recalled(found)
                because = found or await self._why(capability, state, work, key, parts)
        except (BusError, TimeoutError) as error:
            logger.warning("cache not asked", error=str(error) or f"no answer within {_PATIENCE_S:g} s")
            because = cache.SILENT
        return Recalled(None, because, key, parts)

    async def keep(self, capability: Capability, recalled: Recalled, decided: Decided) -> None:
        """Let what was just completed be found by others. Never raises for what is wrong with the bus."""
        state = decided.state
        for event in decided.events:
            if not isinstance(event, PhaseCompleted) or event.attempt is None or event.key != recalled.key:
                continue
            item = state.phases[event.phase].item(event.item)
            if not event.key or item is None or item.ended_at is None:
                continue
            assert capability.cache is not None, "only what is cached has a key"
            ttl_s = capability.cache.ttl_s
            entry = Entry(
                capability=capability.name,
                key=event.key,
                components=recalled.components,
                source=Source(state.run, event.phase, event.attempt, item.ended_at, event.item),
                position=state.position,
                expires_at=item.ended_at + timedelta(seconds=ttl_s) if ttl_s is not None else None,
            )
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._entries.put(entry, state.plan.name, utc_now())
            except (BusError, TimeoutError) as error:
                logger.warning("not cached", error=str(error) or f"no answer within {_PATIENCE_S:g} s")

    async def _find(self, capability: Capability, key: str) -> Reuse | str:
        """What the log says of what the cache says; or why that can't be used, if that is known."""
        entry = await self._entries.under(capability.name, key)
        if entry is None:
            return ""
        reuse = await self._completion(entry)
        if reuse is None:
            logger.warning("cached output is not in the log", key=key, source=entry.source)
            return ""
        assert capability.cache is not None, "only what is cached is looked up"
        if cache.is_over(reuse.source.at, capability.cache.ttl_s, utc_now()):
            return cache.EXPIRED
        try:
            msgspec.json.decode(reuse.output, type=capability.gives)
        except Exception as error:  # noqa: BLE001 - a type's own check may raise anything
            logger.warning("cached output does not fit", key=key, source=entry.source, error=str(error))
            return cache.UNFIT
        return reuse

    async def _completion(self, entry: Entry) -> Reuse | None:
        """The result an entry leads to, as the log has it under this very key: an entry can be forged, or be old."""
        source, log = entry.source, self._client.log
        record = await log.at(entry.position)
        if record is None or record.subject != log.subjects.run(source.run):
            return None
        try:
            commit = commit_in(source.run, record)
        except MalformedMessage:
            return None
        wanted = (source.phase, source.item, source.attempt, entry.key)
        for event in commit.events:
            if not isinstance(event, PhaseCompleted) or isinstance(event.output, msgspec.UnsetType):
                continue
            if (event.phase, event.item, event.attempt, event.key) == wanted:
                return Reuse(event.output, msgspec.structs.replace(source, at=commit.at))
        return None

    async def _why(self, capability: Capability, state: RunState, work: Work, key: str, parts: Components) -> str:
        before = await self._entries.at(capability.name, state.plan.name, work.phase, work.item)
        assert capability.cache is not None, "only what is cached is looked up"
        ttl_s, now = capability.cache.ttl_s, utc_now()
        expired = before is not None and before.key == key and cache.is_over(before.source.at, ttl_s, now)
        return cache.why(parts, before, expired=expired)


def fixed(agent: Agent, capability: Capability) -> dict[str, str]:
    """What the answers of a capability depend on besides the input."""
    assert capability.cache is not None, "only what is cached has components"
    schemas = [msgspec.json.schema(each, schema_hook=anything) for each in (capability.takes, capability.gives)]
    parts = {"capability": cache.hashed(capability.name), "types": cache.hashed(schemas)}
    if capability.cache.version is not None:
        return parts | {"version": cache.hashed(capability.cache.version)}
    return parts | {
        "agent version": cache.hashed(agent.version),
        "code": fingerprint(capability.handler),
        "python": cache.hashed(list(sys.version_info[:2])),
    }


def _can_be_taken(state: RunState, work: Work) -> bool:
    """Whether taking the work will not be refused, as far as is known; what undoes something is always done."""
    phase = state.phases.get(work.phase)
    item = phase.item(work.item) if phase is not None else None
    if phase is None or item is None or phase.undoing is not None or state.archived:
        return False
    is_ready = (item.status, item.attempt) == ("ready", work.attempt)
    return is_ready and need(state.capability(work.phase) or "", item.arm) == work.capability
