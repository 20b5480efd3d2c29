"""Dead letters as they stand now: which are still dead, which were sent again, which work was done after all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Literal

import msgspec

from bus import dead
from bus.client import Client
from bus.dead import DeadLetter, Unreadable
from bus.envelope import decode_data
from bus.errors import Archived, MalformedMessage
from bus.record import Record
from bus.run import SUCCEEDED, RunState
from console.failure import NOT_FOUND, Failure

Standing = Literal["open", "redriven", "resolved"]


class Letter(msgspec.Struct, frozen=True):
    """A dead letter with its number, when it died, and how it stands: `redriven` is on its way, or died again."""

    number: int
    at: datetime
    standing: Standing
    letter: DeadLetter | Unreadable


_redriven = msgspec.json.Decoder(dead.LetterRedriven)


class Letters:
    """Reads dead letters; each run they come from is read once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._runs: dict[str, RunState] = {}
        self._sent_again: set[str] | None = None
        self.unreadable = 0

    async def all(self) -> AsyncIterator[Letter]:
        """Every one there ever was, oldest first. Records that are none are counted in `unreadable`."""
        async for record in self._client.log.read(self._client.subjects.dead_letters):
            try:
                letter = await self._of(record)
            except MalformedMessage:
                self.unreadable += 1
                continue
            yield letter

    async def one(self, number: int) -> Letter:
        """The dead letter with that number. Raises Failure if there is none, MalformedMessage."""
        record = await self._client.log.at(number)
        if record is None or not record.subject.startswith(self._client.subjects.dead_letters.removesuffix("*")):
            raise Failure(NOT_FOUND, f"there is no dead letter {number}", "phasebus dead ls --all")
        return await self._of(record)

    async def _of(self, record: Record) -> Letter:
        message = record.envelope()
        letter = dead.read(message)
        if isinstance(letter, Unreadable):
            is_open = message.id not in await self._redriven()
            return Letter(record.position, message.time, "open" if is_open else "redriven", letter)
        return Letter(record.position, message.time, await self._standing(letter), letter)

    async def _standing(self, letter: DeadLetter) -> Standing:
        state = self._runs.get(letter.run)
        if state is None:
            try:
                state = self._runs[letter.run] = await self._client.runs.load(letter.run)
            except Archived:
                # No run is archived while its work is dead.
                return "resolved"
        if dead.is_open(letter, state):
            return "open"
        phase = state.phases[letter.phase]
        item = phase.item(letter.item)
        return "resolved" if (item or phase).status in SUCCEEDED else "redriven"

    async def _redriven(self) -> set[str]:
        """The ids of unreadable messages that were sent again."""
        if self._sent_again is None:
            self._sent_again = set()
            async for record in self._client.log.read(self._client.subjects.ops("dead")):
                message = record.envelope()
                if message.type == dead.LETTER_REDRIVEN:
                    self._sent_again.add(decode_data(message, _redriven, "a redrive of a dead letter").letter)
        return self._sent_again
