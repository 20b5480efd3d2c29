"""Custody: who holds which attempt, and whether they still can; what they can't is taken back.

Suspect, confirm, recover. A suspicion is a closed connection, silence, or a beat without the attempt; none of them is
proof. The instance itself is asked, and only then its attempt ended, by a command that the run's rules check again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog

from agents.census import Census, Fate
from agents.docket import Docket, Key
from agents.herald import Herald
from agents.registrar import Registrar
from bus.client import Client
from bus.errors import BusError, Refused
from bus.problem import Problem
from bus.registry.card import Loss
from bus.registry.presence import Held
from bus.rules.commands import Fail
from bus.rules.events import Cause
from bus.runs.halts import Halt
from bus.runs.recovery import Recovered

logger = structlog.get_logger(__name__)

_WORDS = {
    "crashed": "is gone",
    "frozen": "does not answer: it is frozen",
    "blocked": "does not answer: a handler blocks its event loop (a plain `def` runs in a thread)",
    "forgotten": "has lost the attempt",
}


class _Suspicion(NamedTuple):
    """Why an instance may be gone, and whether that is only because nothing is heard of it."""

    instance: str
    evidence: str
    by_silence: bool


class Custody:
    """The holders on one term's docket, and whoever else has registered."""

    def __init__(self, client: Client, docket: Docket, registrar: Registrar, herald: Herald, leader: str) -> None:
        self._client = client
        self._docket = docket
        self._registrar = registrar
        self._herald = herald
        self._leader = leader
        self._lease_s = client.settings.lease_s
        self._census = Census(client, self._suspect)
        self._suspicions: asyncio.Queue[_Suspicion] = asyncio.Queue()
        self._examined: set[str] = set()
        self._missing: dict[Key, float] = {}
        self._foreign: dict[str, set[Held]] = {}

    @property
    def census(self) -> Census:
        """Who has been heard of."""
        return self._census

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Hear signs of life."""
        async with self._census.watching():
            yield

    async def look_round(self) -> None:
        """Who died while nobody led is not waited for: everybody that holds something is asked at once.

        And again after a while, because whoever is away may be about to come back, as after a restart of the server.
        """
        await asyncio.gather(*map(self._look_for, self._known()))

    async def heed(self) -> None:
        """Examine every suspect, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                suspicion = await self._suspicions.get()
                tasks.create_task(self._examine(suspicion))

    async def check(self) -> None:
        """Suspect who is silent; find what was forgotten; tell again who goes on with what is not his."""
        holders = self._docket.holders
        # Asking takes time too: it begins before the lease is over, and counts when it is.
        early_s = -self._census.patience_s
        known = self._known()
        for instance in known:
            if self._silent_s(instance) > self._census.lease_s(instance) + early_s and instance not in self._examined:
                self._examined.add(instance)
                self._suspicions.put_nowait(_Suspicion(instance, "its beats stopped", by_silence=True))
        await asyncio.gather(*(self._check_forgotten(each) for each in holders))
        held = {key for instance in holders for key in self._docket.held_by(instance)}
        self._missing = {key: since for key, since in self._missing.items() if key in held}
        self._tell_again()
        self._census.forget(known)

    def _known(self) -> set[str]:
        """Who holds something, or has registered and not ended."""
        return {*self._docket.holders, *self._registrar}

    def _silent_s(self, instance: str) -> float:
        """For how long it should have been heard of, and was not: before it registered nobody could hear it."""
        return min(self._census.silent_s(instance), self._registrar.known_s(instance))

    def _suspect(self, instance: str) -> None:
        self._suspicions.put_nowait(_Suspicion(instance, "its connection closed", by_silence=False))

    async def _look_for(self, instance: str) -> None:
        try:
            if await self._census.confirm(instance) != "crashed":
                return
            await asyncio.sleep(self._lease_s / 3)
            if await self._census.confirm(instance) == "crashed":
                cause, seen = await self._told_apart(instance, "crashed")
                await self._lose(instance, cause, f"not there when {self._leader} began to lead{seen}")
        except BusError as error:
            # Its silence will tell.
            logger.warning("not examined", instance=instance, error=str(error))

    async def _examine(self, suspicion: _Suspicion) -> None:
        """Confirm a suspicion, and take back what the instance holds if it is true."""
        instance = suspicion.instance
        try:
            if instance not in self._known():
                return
            fate = await self._census.confirm(instance)
            if fate == "alive":
                return
            if fate == "mute" or suspicion.by_silence:
                # It has a whole lease to be heard of in.
                lease_s = self._census.lease_s(instance)
                await asyncio.sleep(lease_s - self._silent_s(instance))
                if self._silent_s(instance) < lease_s:
                    return
            cause, seen = await self._told_apart(instance, fate)
            await self._lose(instance, cause, f"{suspicion.evidence}{seen}")
        except BusError as error:
            # It stays silent, so it is examined again.
            logger.warning("not examined", instance=instance, error=str(error))
        finally:
            if suspicion.by_silence:
                self._examined.discard(instance)

    async def _told_apart(self, instance: str, fate: Fate) -> tuple[Loss, str]:
        """Why it does not answer, and what says so: what its process does, if that is one of this machine.

        Of a process of another one nobody here can tell whether it is stopped or its event loop blocked: it is called
        frozen. The server forgets who has been stopped for long, so that nobody is there to be asked.
        """
        does = await self._registrar.running(instance)
        if does == "stopped":
            return "frozen", "; its process is stopped"
        if fate == "crashed":
            return "crashed", ""
        return ("blocked", "; its process runs") if does == "running" else ("frozen", "")

    async def _check_forgotten(self, instance: str) -> None:
        """A living instance that does not list an attempt for a whole lease has lost it, or could not store its end."""
        for key in self._unlisted(instance):
            # By the beats alone: however long we were frozen ourselves, an old one says nothing new.
            heard_at = self._census.heard_at(instance)
            if heard_at - self._missing.setdefault(key, heard_at) <= self._lease_s:
                continue
            try:
                fate = await self._census.confirm(instance)
            except BusError as error:
                logger.warning("not examined", instance=instance, error=str(error))
                return
            self._missing.pop(key, None)
            # Its answer was made now, after all that we have read.
            if fate == "alive" and key in self._unlisted(instance):
                await self._recover(instance, [key], "forgotten", "it lives, but does not hold the attempt")

    def _unlisted(self, instance: str) -> list[Key]:
        """The attempts that the log says it holds, and its newest beat does not."""
        beat = self._census.beat(instance)
        if beat is None:
            return []
        listed = {(each.run, each.phase, each.item, each.attempt) for each in beat.held}
        held = self._docket.held_by(instance)
        for key in listed.intersection(held):
            self._missing.pop(key, None)
        return [key for key in held if key not in listed]

    def _tell_again(self) -> None:
        """An instance that still lists what is not its own has not heard that it was taken from it."""
        foreign: dict[str, set[Held]] = {}
        for beat in self._census.beats:
            if not beat.held:
                continue
            own = {Held(*key) for key in self._docket.held_by(beat.instance)}
            foreign[beat.instance] = set(beat.held) - own
        # Seen twice: what it has only just taken may not have been read here yet.
        again = {each: held & self._foreign.get(each, set()) for each, held in foreign.items()}
        self._foreign = foreign
        self._client.ledger.halt(
            {each: Halt(tuple(held), "the log has it as over") for each, held in again.items() if held}
        )

    async def _lose(self, instance: str, cause: Loss, evidence: str) -> None:
        """Take back all that an instance holds, and say that it is lost."""
        held = self._docket.held_by(instance)
        await self._recover(instance, held, cause, evidence)
        await self._registrar.lose(instance, cause, evidence, len(held))

    async def _recover(self, instance: str, held: Sequence[Key], cause: Cause, evidence: str) -> None:
        """Take these attempts back, and say which were."""
        problem = Problem("lost", f"{instance} {_WORDS[cause]}", "transient", detail=evidence)
        # What it held, and was silent about from the beginning on, it had before this leader led.
        on_start = not self._census.heard_at(instance)

        async def recover(key: Key) -> Recovered | None:
            run, phase, item, attempt = key
            try:
                await self._client.runs.submit(run, Fail(phase, item, attempt, instance, problem, cause, evidence))
            except Refused as error:
                logger.debug("already settled", run=run, phase=phase, attempt=attempt, reason=error.reason)
                return None
            return Recovered(run, phase, attempt, cause, item, instance, evidence)

        recovered = await asyncio.gather(*map(recover, held))
        await self._herald.recovered([each for each in recovered if each is not None], on_start=on_start)
