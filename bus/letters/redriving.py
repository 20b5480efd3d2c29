"""Redriving: the verbs about dead letters. Whatever is decided is in the log, with its maker's name and reason."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from bus.broker.connection import Connection
from bus.errors import Archived, NotFound, Refused
from bus.format.subjects import capability as as_capability
from bus.letters import verdicts
from bus.letters.campaign import Campaign, Outcome, Transform
from bus.letters.letters import Letter, Letters
from bus.letters.resending import say, send_again
from bus.letters.verdicts import CapabilityReleased, LetterDiscarded, Terms
from bus.letters.wanted import Wanted
from bus.log.log import Log
from bus.rules.dead import DeadLetter, Unreadable
from bus.rules.run import RunState
from bus.runs.ledger import Ledger
from bus.runs.runs import Runs


class Redriving:
    """A part of the client. A letter's number is its position in the log.

    All raise NotFound if there is no such letter, Unavailable.
    """

    connection: Connection
    ledger: Ledger
    log: Log
    runs: Runs
    source: str

    def dead_letters(self, wanted: Wanted | None = None, **fields: Any) -> AsyncGenerator[Letter, None]:
        """Those that are wanted, oldest first; given whole or as its fields: `dead_letters(status=["open"])`."""
        return Letters(self.log, self.runs).all(wanted or Wanted(**fields))

    async def dead_letter(self, number: int) -> Letter:
        """One dead letter as it stands now."""
        return await Letters(self.log, self.runs).one(number)

    async def redrive_letter(self, number: int, *, by: str, reason: str = "", payload: Any = msgspec.UNSET) -> None:
        """Send dead work again to where it came from, with `payload` in place of what it had.

        Nothing else of its run is done again but what waits for it. Raises Refused if it is not dead any more: of many
        who redrive it one does. MalformedMessage, TooLarge.
        """
        found = await self.dead_letter(number)
        # Bytes are sent without an answer, and whoever gets them looks into the log: once more does no harm.
        is_sent = found.standing == "redriven" and isinstance(found.letter, Unreadable)
        if found.standing not in {"open", "discarded"} and not is_sent:
            raise Refused(f"dead letter {number} {_STANDS[found.standing]}")
        await send_again(self, found, by=by, reason=reason, payload=payload)

    async def discard_letter(self, number: int, *, by: str, reason: str = "") -> None:
        """Say that nobody wants this work any more. The letter stays where it is, and can still be redriven."""
        found = await self.dead_letter(number)
        if found.standing != "open":
            raise Refused(f"dead letter {number} {_STANDS[found.standing]}")
        discarded = LetterDiscarded(by, found.id, reason)
        state = await self._keyed(found)
        together = [self.ledger.resumed(state, letter=found.id)] if state is not None else []
        await say(self, verdicts.LETTER_DISCARDED, discarded, together=together)

    async def _keyed(self, found: Letter) -> RunState | None:
        """The run of a letter, if it stood in line: work of its key may be parked behind it."""
        if not isinstance(found.letter, DeadLetter):
            return None
        try:
            state = await self.runs.load(found.letter.run)
        except (Archived, NotFound):
            return None
        return state if state.key else None

    async def redrive_letters(
        self,
        wanted: Wanted,
        *,
        by: str,
        reason: str = "",
        terms: Terms | None = None,
        transform: Transform | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Redrive what is wanted and dead, one after the other, on these terms; each outcome as it is known.

        The redrive is on record, and each outcome names it: whatever interrupts it, `resume_redrive` goes on.
        With `terms.try_one` the first has to succeed before any other goes.
        """
        campaign = await Campaign.begin(self, wanted, terms or Terms(), by=by, reason=reason)
        async with aclosing(campaign.run(transform)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def resume_redrive(
        self, operation: str, *, by: str, transform: Transform | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Go on with a redrive of many that was interrupted, on its own terms. Raises NotFound; Refused: it is over."""
        campaign = await Campaign.load(self, operation, by=by)
        async with aclosing(campaign.run(transform)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def release(self, capability: str, *, by: str, reason: str = "") -> None:
        """Let a capability with `on_dead="pause"` take work again after a death."""
        said = CapabilityReleased(by, as_capability(capability), reason)
        await say(self, verdicts.CAPABILITY_RELEASED, said, area="released")


_STANDS = {
    "redriven": "was redriven before, and is on its way",
    "resolved": "is resolved: its work is done",
    "died_again": "was redriven before, and died again: a newer one stands for it",
    "discarded": "is discarded",
}
