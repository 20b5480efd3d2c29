"""Letters: dead letters as they stand now, each read together with the run it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import datetime

import msgspec
import structlog

from bus.errors import Archived, MalformedMessage, NotFound
from bus.format.envelope import Envelope, decode_data
from bus.letters import verdicts
from bus.letters.causes import Cause, cause_of
from bus.letters.verdicts import LetterDiscarded, LetterRedriven
from bus.letters.wanted import Wanted
from bus.log.log import Log
from bus.log.record import Record
from bus.rules import dead
from bus.rules.dead import DeadLetter, Standing, Unreadable
from bus.rules.run import RunState
from bus.runs.hearing import heard_as
from bus.runs.runs import Runs

logger = structlog.get_logger(__name__)

_AT_ONCE = 64
_EVERY = Wanted()
_redriven = msgspec.json.Decoder(LetterRedriven)
_discarded = msgspec.json.Decoder(LetterDiscarded)


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter with its number (its position in the log), its id, when it died, and how it stands.

    `causation` is the id of the commit that gave the work up; of a message nobody could read there is none.
    """

    number: int
    id: str
    at: datetime
    standing: Standing
    letter: DeadLetter | Unreadable
    correlation: str | None = None
    causation: str | None = None

    @property
    def cause(self) -> Cause:
        """What it may have in common with others."""
        return cause_of(self.letter)


class Letters:
    """Reads dead letters; each run they come from is read once. `set_aside` counts records that can't be read."""

    def __init__(self, log: Log, runs: Runs) -> None:
        self._log = log
        self._runs = runs
        self._states: dict[str, RunState | None] = {}
        self._archived: set[str] = set()
        self._verdicts: dict[str, LetterRedriven | LetterDiscarded] = {}
        self._judged_upto = 0
        self._repeats: dict[tuple[str, str, str], int] | None = None
        self.set_aside = 0

    async def all(
        self, wanted: Wanted = _EVERY, *, after: int = 0, upto: int | None = None
    ) -> AsyncGenerator[Letter, None]:
        """Those that are wanted, oldest first. Raises Unavailable."""
        await self._judge()
        chunk: list[tuple[Record, Envelope, DeadLetter | Unreadable]] = []
        seen: set[str] = set()
        subject = self._log.subjects.dead_letters
        if wanted.capability is not None:
            subject = self._log.subjects.dead(wanted.capability)
        async with aclosing(self._log.read(subject, after=after, upto=upto)) as records:
            async for record in records:
                try:
                    message = record.envelope()
                    letter = dead.read(message)
                except MalformedMessage as error:
                    self.set_aside += 1
                    logger.warning(
                        "record set aside", subject=record.subject, position=record.position, error=str(error)
                    )
                    continue
                if message.id in seen or not wanted.fits(record.position, message.time, letter):
                    continue
                seen.add(message.id)
                chunk.append((record, message, letter))
                if len(chunk) == _AT_ONCE:
                    for found in await self._standing(chunk, wanted):
                        yield found
                    chunk = []
        for found in await self._standing(chunk, wanted):
            yield found

    async def one(self, number: int) -> Letter:
        """The dead letter with that number, as it stands at this moment. Raises NotFound, MalformedMessage."""
        record = await self._log.at(number)
        if record is None or not record.subject.startswith(self._log.subjects.dead_letters.removesuffix("*")):
            raise NotFound(f"there is no dead letter {number}")
        message = record.envelope()
        letter = dead.read(message)
        await self._judge()
        self._states.clear()
        self._repeats = None
        [found] = await self._standing([(record, message, letter)], _EVERY)
        return found

    async def of_id(self, id: str, letter: DeadLetter) -> Letter | None:
        """The letter with that id about the same work as `letter`, if it is there."""
        wanted = Wanted(capability=letter.capability, run=letter.run)
        async with aclosing(self.all(wanted, after=letter.began)) as found:
            return await anext((each async for each in found if each.id == id), None)

    async def state(self, run: str) -> RunState | None:
        """The run, read once; None if it was archived, or is not there."""
        if run not in self._states:
            try:
                self._states[run] = await self._runs.load(run)
            except Archived:
                self._states[run] = None
                self._archived.add(run)
            except NotFound:
                # Nobody can do its work here; whoever brings its run along can.
                self._states[run] = None
                logger.warning("letter without a run", run=run)
        return self._states[run]

    def verdict(self, id: str) -> LetterRedriven | LetterDiscarded | None:
        """What somebody decided last about the letter with that id, apart from what its run says."""
        return self._verdicts.get(id)

    async def _standing(
        self, chunk: Iterable[tuple[Record, Envelope, DeadLetter | Unreadable]], wanted: Wanted
    ) -> list[Letter]:
        chunk = list(chunk)
        runs = {letter.run for _, _, letter in chunk if isinstance(letter, DeadLetter)}
        await asyncio.gather(*(self.state(run) for run in runs))
        found: list[Letter] = []
        for record, message, letter in chunk:
            if isinstance(letter, DeadLetter):
                standing = self._of_work(message.id, letter)
            else:
                standing = await self._of_bytes(record.position, message.id, letter)
            if wanted.status and standing not in wanted.status:
                continue
            found.append(
                Letter(
                    number=record.position,
                    id=message.id,
                    at=message.time,
                    standing=standing,
                    letter=letter,
                    correlation=message.correlationid,
                    causation=message.causationid,
                )
            )
        return found

    def _of_work(self, id: str, letter: DeadLetter) -> Standing:
        state = self._states[letter.run]
        is_discarded = isinstance(self._verdicts.get(id), LetterDiscarded)
        if state is not None:
            return dead.standing(letter, state, discarded=is_discarded)
        # No run is archived while its work is dead.
        return "resolved" if letter.run in self._archived else "discarded" if is_discarded else "open"

    async def _of_bytes(self, number: int, id: str, letter: Unreadable) -> Standing:
        """Of bytes only their subject tells what they may have become, once somebody can read them."""
        verdict = self._verdicts.get(id)
        if verdict is None:
            return "open"
        if isinstance(verdict, LetterDiscarded):
            return "discarded"
        if await self._repeated(letter) > number:
            return "died_again"
        subjects = self._log.subjects
        subject = subjects.ours(letter.subject)
        if subjects.is_topic(subject):
            heard = await self.state(heard_as(letter.capability, letter.origin))
            return "resolved" if heard is not None and heard.status == "completed" else "redriven"
        try:
            work = subjects.parse_work(subject)
        except MalformedMessage:
            return "redriven"
        state = await self.state(work.run)
        phase = state.phases.get(work.phase) if state is not None else None
        item = phase.item(work.item) if phase is not None else None
        return "resolved" if item is not None and item.status == "completed" else "redriven"

    async def _repeated(self, letter: Unreadable) -> int:
        """The newest number under which these very bytes of that subject lie here, for the same capability."""
        if self._repeats is None:
            self._repeats = {}
            async for record in self._log.read(self._log.subjects.dead_letters):
                try:
                    other = dead.read(record.envelope())
                except MalformedMessage:
                    continue
                if isinstance(other, Unreadable):
                    self._repeats[other.capability, other.subject, other.sha256] = record.position
        return self._repeats.get((letter.capability, letter.subject, letter.sha256), 0)

    async def _judge(self) -> None:
        """Read what was decided since."""
        async for record in self._log.read(self._log.subjects.ops("dead"), after=self._judged_upto):
            self._judged_upto = record.position
            try:
                message = record.envelope()
                verdict = _verdict(message)
            except MalformedMessage as error:
                logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
                continue
            if verdict is not None:
                self._verdicts[verdict.letter] = verdict


def _verdict(message: Envelope) -> LetterRedriven | LetterDiscarded | None:
    match message.type:
        case verdicts.LETTER_REDRIVEN:
            return decode_data(message, _redriven, "a redrive of a dead letter")
        case verdicts.LETTER_DISCARDED:
            return decode_data(message, _discarded, "a discarded dead letter")
    return None


async def is_discarded(log: Log, id: str, *, after: int) -> bool:
    """Whether somebody has discarded the letter with that id, after a position of the log. Raises Unavailable."""
    async with aclosing(log.read(log.subjects.ops("dead"), after=after)) as records:
        async for record in records:
            try:
                verdict = _verdict(record.envelope())
            except MalformedMessage:
                continue
            if isinstance(verdict, LetterDiscarded) and verdict.letter == id:
                return True
    return False


def letter_judged(message: Envelope) -> str | None:
    """The id of the dead letter that a record on `bus.ops.dead` decides about, if it does. Raises MalformedMessage."""
    verdict = _verdict(message)
    return verdict.letter if verdict is not None else None
