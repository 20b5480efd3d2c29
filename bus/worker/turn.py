"""A turn: what one delivery of a lane leads to. Its run is seen through, or parked with its key, or a key goes on.

Where a death parks its key, what died and what comes after it leave the lane for the key's own line
(`bus.worker.parking`), which is served in its lane's turn when the lane says that the key may go on.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Literal

import msgspec
import structlog

from bus.client import Client
from bus.clock import utc_now
from bus.errors import Archived, MalformedMessage, NotFound
from bus.format.envelope import Envelope, decode_data
from bus.guards.circuit import Circuit
from bus.handlers.agent import Capability
from bus.letters.letters import is_discarded
from bus.rules import dead
from bus.rules.inputs import work
from bus.rules.run import RunState
from bus.runs.lane import Resumed, beginning, lane_of
from bus.runs.task import WORK
from bus.worker.attempts import Attempts
from bus.worker.parking import Parking
from bus.worker.room import Room

logger = structlog.get_logger(__name__)

_IN_LINE_S = 0.2
_LOOK_S = 0.1
# So much of a key that was parked is served in one turn of its lane, where other keys wait for theirs.
_IN_A_ROW = 16

Outcome = Literal["over", "parked", "not_now"]
_resumed = msgspec.json.Decoder(Resumed)


class Turn:
    """What one delivery of a lane is served with. It returns whether that is done, or somebody else is to go on."""

    def __init__(
        self, client: Client, attempts: Attempts, capability: Capability, room: Room, circuit: Circuit | None
    ) -> None:
        self._client = client
        self._attempts = attempts
        self._capability = capability
        self._room = room
        self._circuit = circuit
        self._parking = Parking(client, capability.name)

    async def place(self, place: Envelope, subject: str) -> bool:
        """See the run of a place through, or park it; whether that is done."""
        first = beginning(place)
        run = first.runid
        assert run is not None, "a place names its run"
        try:
            state = await self._begun(run, place)
        except Archived:
            return True
        if subject != self._client.subjects.line(state.capability(WORK) or "", lane_of(state.key)):
            # Its id was taken before, by other work.
            return True
        row = await self._parking.row(state.key)
        if not row.waits:
            outcome = await self._serve(state, first.id)
        elif state.is_open or await self._is_dead(state, ""):
            outcome = "parked"
        else:
            outcome = "over"
        if outcome == "parked":
            logger.info("parked", run=run, key=state.key)
            await self._parking.park(state.key, row, run, first.id)
            if self._capability.on_dead != "park":
                # It did when the line began; nothing holds it any more.
                await self._parking.again(state.key, run)
        return outcome != "not_now"

    async def resume(self, message: Envelope) -> bool:
        """Go on with a key because of a run of it; whether that need not be tried again."""
        resumed = decode_data(message, _resumed, "a key that may go on")
        if message.runid is None:
            raise MalformedMessage("a key may go on because of no run")
        outcome, stopped = await self._unpark(message.runid, resumed)
        state = await self._state(message.runid)
        if outcome == "not_now" or state is None or state.key != resumed.key or stopped == state.run:
            return outcome != "not_now"
        row = await self._parking.row(resumed.key)
        outcome = "parked"
        if not row.waits:
            outcome = await self._serve(state, message.causationid or message.id, resumed.letter)
        elif not state.is_open and not await self._is_dead(state, resumed.letter):
            outcome = "over"
        if outcome == "parked":
            # It was not in the line, or stands there once more, which does no harm.
            await self._parking.park(resumed.key, row, state.run, message.causationid or message.id)
        return outcome != "not_now"

    async def _unpark(self, run: str, resumed: Resumed) -> tuple[Outcome, str]:
        """Serve what waits in the line of a key, as far as that goes: what came of the last, and the run that stopped
        it. If many wait, others have their turn before it goes on, still because of `run`."""
        key = resumed.key
        row = await self._parking.row(key)
        if not row.waits:
            return "over", ""
        upto, count, stopped = row.after, 0, ""
        outcome: Outcome = "over"
        async with aclosing(self._parking.waiting(key, row)) as waiting:
            async for each in waiting:
                if count == _IN_A_ROW:
                    await self._parking.unpark(key, row, upto, waiting=True)
                    await self._parking.again(key, run, resumed)
                    return "parked", run
                state = await self._state(each.run)
                outcome = "over" if state is None else await self._serve(state, each.begun, resumed.letter)
                if outcome != "over":
                    stopped = each.run
                    break
                upto, count = each.position, count + 1
        if outcome == "over" or count:
            await self._parking.unpark(key, row, upto, waiting=outcome != "over")
        return outcome, stopped

    async def _state(self, run: str) -> RunState | None:
        """None: there is nothing to be done any more."""
        try:
            return await self._client.runs.load(run)
        except (Archived, NotFound):
            return None

    async def _begun(self, run: str, place: Envelope) -> RunState:
        """The run of a place; begun here, if who sent it has not come to that. Raises Archived, MalformedMessage."""
        try:
            return await self._client.runs.load(run)
        except NotFound:
            await self._client.ledger.begin(place)
        try:
            return await self._client.runs.load(run)
        except NotFound as error:
            raise MalformedMessage(f"what stands on the subject of run {run!r} is no run") from error

    async def _serve(self, state: RunState, causation: str, discarded: str = "") -> Outcome:
        """See a run through. `discarded` is a letter that holds nobody any more."""
        while True:
            if not state.is_open:
                return "parked" if await self._is_dead(state, discarded) else "over"
            if self._attempts.draining:
                return "not_now"
            if _is_due(state):
                # Others may have a hand free.
                if not await self._room.enter(_IN_LINE_S, handed=False):
                    return "not_now"
                try:
                    await self._attempts.take(self._capability, work(state, WORK, None), causation, self._circuit)
                finally:
                    self._room.leave()
                state = await self._client.runs.load(state.run)
                if not state.is_open:
                    continue
            # Its time has not come, or somebody else has it.
            await asyncio.sleep(_LOOK_S)
            state = await self._client.runs.load(state.run)

    async def _is_dead(self, state: RunState, discarded: str) -> bool:
        """Whether work that was given up holds what comes after it, until somebody redrives or discards it."""
        if self._capability.on_dead != "park" or state.status != "failed":
            return False
        death = state.phases[WORK].death_of(None)
        if death is None:
            return False
        letter = dead.name_of_death(state.run, WORK, None, death)
        return letter != discarded and not await is_discarded(self._client.log, letter, after=state.position)


def _is_due(state: RunState) -> bool:
    """Whether its attempt can be taken by who has its place."""
    item = state.phases[WORK].item(None)
    return (
        state.paused_at is None
        and item is not None
        and item.status == "ready"
        and (item.ready_at is None or item.ready_at <= utc_now())
    )
