"""The clerk: dead letters that did not fit into one batch with the commit that gave their work up.

The server stores no more than so many messages together. Of a commit that gives up more, the rest of the letters are
stored right behind it; if whoever does that dies in between, they are made from the log here, each with the id it would
have had, so none is there twice.
"""

from __future__ import annotations

import time

import structlog

from bus.client import Client
from bus.rules.events import Commit, PhaseFailed
from bus.rules.run import RunState
from bus.runs.ledger import LETTERS_IN_BATCH

logger = structlog.get_logger(__name__)

# Whoever commits is given this long to do it.
_PATIENCE_S = 2.0


class Clerk:
    """Looks after commits whose letters may not be there yet."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._open: list[tuple[float, RunState | None, Commit]] = []

    def note(self, before: RunState | None, commit: Commit) -> None:
        """A commit was stored; `before` is its run without it."""
        if sum(isinstance(event, PhaseFailed) for event in commit.events) > LETTERS_IN_BATCH:
            self._open.append((time.monotonic() + _PATIENCE_S, before, commit))

    async def look(self) -> None:
        """Store what is missing by now. Raises Unavailable, and then goes on with it the next time."""
        while self._open and self._open[0][0] < time.monotonic():
            _, before, commit = self._open[0]
            stored = await self._client.ledger.complete_letters(before, commit)
            if stored:
                logger.warning("letters restored", run=commit.run, position=commit.position, letters=stored)
            del self._open[0]

    def floor(self, position: int) -> int:
        """The position up to which every letter is there, as far as `position`."""
        return min((commit.position - 1 for _, _, commit in self._open), default=position)
