"""A campaign: many dead letters redriven on some terms, slowly enough, not too many, the first one tried alone.

It is a record that says what is wanted, and each redrive names it. Who it is run by keeps nothing: what is still to be
done are the letters that are still open, and what was done is in the log. So it goes on after whatever interrupts it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import msgspec
import structlog
from msgspec.structs import replace

from bus.errors import MalformedMessage, NotFound, Refused, TimedOut, TooLarge
from bus.format.envelope import decode_data
from bus.letters import verdicts
from bus.letters.letters import Letter, Letters
from bus.letters.resending import Bus, say, send_again
from bus.letters.verdicts import Ending, LetterRedriven, RedriveBegun, RedriveEnded, Terms
from bus.letters.wanted import Wanted
from bus.rules.dead import DeadLetter, standing
from bus.rules.events import RunRedriven
from bus.rules.inputs import input_of
from bus.rules.references import Unresolved

logger = structlog.get_logger(__name__)

Transform = Callable[[Any], Any]
"""The new input of the old one. It should depend on nothing else."""

_LONGEST_TRIAL_S = 86_400.0
_begun = msgspec.json.Decoder(RedriveBegun)
_ended = msgspec.json.Decoder(RedriveEnded)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one letter of a campaign: it was redriven, or could not be, and why.

    The last outcome has no letter, but an `ending`.
    """

    operation: str
    number: int = 0
    capability: str = ""
    run: str = ""
    refusal: str = ""
    ending: Ending | None = None
    redriven: int = 0
    refused: int = 0


class Campaign:
    """A redrive of many, as whoever runs it sees it."""

    def __init__(self, client: Bus, begun: RedriveBegun, by: str) -> None:
        self._client = client
        self._begun = begun
        self._by = by
        self._redriven = 0
        self._refused = 0
        self._due = 0.0

    @classmethod
    async def begin(cls, client: Bus, wanted: Wanted, terms: Terms, *, by: str, reason: str) -> Campaign:
        """Put it on record. Letters that come later are not in it. Raises Unavailable."""
        newest = await client.log.last(client.log.subjects.dead_letters)
        begun = RedriveBegun(
            by=by,
            operation=uuid4().hex[:12],
            wanted=replace(wanted, status=()),
            upto=newest.position if newest is not None else 0,
            terms=terms,
            reason=reason,
        )
        await say(client, verdicts.REDRIVE_BEGUN, begun)
        return cls(client, begun, by)

    @classmethod
    async def load(cls, client: Bus, operation: str, *, by: str) -> Campaign:
        """One that was begun and is not over. Raises NotFound; Refused: it is over; Unavailable."""
        begun = await find(client, operation)
        return cls(client, begun, by)

    async def run(self, transform: Transform | None) -> AsyncGenerator[Outcome, None]:
        """Redrive what is left of it. Raises Refused if it needs another transform than it is given, Unavailable."""
        terms = self._begun.terms
        if bool(terms.transform) != (transform is not None):
            raise Refused(
                f"this redrive is one with transform {terms.transform!r}"
                if terms.transform
                else "this redrive was begun without a transform"
            )
        before = await self._done()
        self._redriven = len(before)
        ending: Ending = "done"
        is_proven = not terms.try_one
        if not is_proven and before:
            is_proven = await self._succeeds(before[0])
            ending = "done" if is_proven else "died_again"
        if is_proven or not before:
            letters = Letters(self._client.log, self._client.runs)
            wanted = replace(self._begun.wanted, status=("open",))
            async with aclosing(letters.all(wanted, upto=self._begun.upto)) as found:
                async for letter in found:
                    if terms.most is not None and self._redriven >= terms.most:
                        ending = "capped"
                        break
                    await self._pace()
                    outcome = await self._one(letter, transform)
                    yield outcome
                    if not is_proven and not outcome.refusal and isinstance(letter.letter, DeadLetter):
                        is_proven = await self._succeeds(letter)
                        if not is_proven:
                            ending = "died_again"
                            break
        said = RedriveEnded(self._by, self._begun.operation, ending, self._redriven, self._refused)
        await say(self._client, verdicts.REDRIVE_ENDED, said)
        yield Outcome(operation=self._begun.operation, ending=ending, redriven=self._redriven, refused=self._refused)

    async def _one(self, found: Letter, transform: Transform | None) -> Outcome:
        said = Outcome(
            operation=self._begun.operation,
            number=found.number,
            capability=found.letter.capability,
            run=found.letter.run if isinstance(found.letter, DeadLetter) else "",
        )
        try:
            payload = msgspec.UNSET if transform is None else await transformed(self._client, found, transform)
            await send_again(
                self._client,
                found,
                by=self._by,
                reason=self._begun.reason,
                payload=payload,
                transform=self._begun.terms.transform if payload is not msgspec.UNSET else "",
                operation=self._begun.operation,
            )
        except (Refused, MalformedMessage, TooLarge) as error:
            self._refused += 1
            return replace(said, refusal=str(error))
        self._redriven += 1
        return said

    async def _pace(self) -> None:
        pace_per_s = self._begun.terms.pace_per_s
        if pace_per_s is None:
            return
        now = time.monotonic()
        await asyncio.sleep(max(self._due - now, 0.0))
        self._due = max(self._due, now) + 1 / pace_per_s

    async def _done(self) -> list[Letter]:
        """The letters that were redriven by this campaign before, oldest first."""
        letters = Letters(self._client.log, self._client.runs)
        done: list[Letter] = []
        by_run: dict[str, set[str]] = {}
        async with aclosing(letters.all(self._begun.wanted, upto=self._begun.upto)) as found:
            async for each in found:
                if each.standing == "open":
                    continue
                if not isinstance(each.letter, DeadLetter):
                    verdict = letters.verdict(each.id)
                    is_ours = isinstance(verdict, LetterRedriven) and verdict.operation == self._begun.operation
                else:
                    if each.letter.run not in by_run:
                        by_run[each.letter.run] = await self._redriven_of(each.letter.run)
                    is_ours = each.id in by_run[each.letter.run]
                if is_ours:
                    done.append(each)
        return done

    async def _redriven_of(self, run: str) -> set[str]:
        return {
            event.letter
            async for commit in self._client.ledger.commits(run)
            for event in commit.events
            if isinstance(event, RunRedriven) and event.operation == self._begun.operation
        }

    async def _succeeds(self, found: Letter) -> bool:
        """Wait until the letter's work is done, or has died again, or was stopped. Its own deadlines end it."""
        letter = found.letter
        if not isinstance(letter, DeadLetter):
            return True
        state = await self._client.runs.load(letter.run)
        try:
            async with (
                asyncio.timeout(_LONGEST_TRIAL_S),
                aclosing(self._client.ledger.follow(letter.run, after=state.position)) as commits,
            ):
                while standing(letter, state) in {"open", "redriven"}:
                    await anext(commits)
                    state = await self._client.runs.load(letter.run)
        except TimeoutError:
            raise TimedOut(
                f"dead letter {found.number}, the first, is still on its way: "
                f"resume the redrive later, as {self._begun.operation}"
            ) from None
        return standing(letter, state) == "resolved"


async def transformed(client: Bus, found: Letter, transform: Transform) -> Any:
    """The letter's new payload, UNSET if it is the old one. Raises Refused if the transform can't make one."""
    letter = found.letter
    if not isinstance(letter, DeadLetter):
        raise Refused(f"dead letter {found.number} is a message nobody could read: there is nothing to transform")
    try:
        # A letter that was too large to repeat its payload leaves it to the run.
        old: Any = (
            input_of(await client.runs.load(letter.run), letter.phase, letter.item)
            if letter.shortened
            else msgspec.json.decode(letter.payload)
        )
        before = msgspec.json.encode(old)
        new = transform(old)
        return msgspec.UNSET if msgspec.json.encode(new) == before else new
    except Unresolved as error:
        raise Refused(f"dead letter {found.number} has no input to transform: {error}") from error
    except Exception as error:  # it is the user's code
        raise Refused(f"the transform raised {type(error).__name__}: {error}") from error


async def find(client: Bus, operation: str) -> RedriveBegun:
    """How a campaign that is not over was begun. Raises NotFound, Refused, Unavailable."""
    begun: RedriveBegun | None = None
    async for record in client.log.read(client.log.subjects.ops("dead")):
        try:
            message = record.envelope()
            if message.type == verdicts.REDRIVE_BEGUN:
                said = decode_data(message, _begun, "the beginning of a redrive")
                begun = said if said.operation == operation else begun
            elif message.type == verdicts.REDRIVE_ENDED:
                end = decode_data(message, _ended, "the end of a redrive")
                if end.operation == operation:
                    raise Refused(f"redrive {operation} is over: {end.redriven} were redriven ({end.ending})")
        except MalformedMessage as error:
            logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
    if begun is None:
        raise NotFound(f"there is no redrive {operation!r} in this log")
    return begun
