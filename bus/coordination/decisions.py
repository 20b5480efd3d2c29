"""Decisions on the bus: each has a subject of its own and grows by guarded appends: no vote is lost or counted twice.

Its deadline needs nobody in particular: who waits for it, who votes or looks when it is over, and the supervisor all
append the same outcome, and the log takes the first one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from uuid import uuid4

import structlog

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.coordination import decision as rules
from bus.coordination.decision import Command, Decision, Propose, Settle, Vote
from bus.errors import DecisionError, MalformedMessage, NotFound, Refused, TimedOut
from bus.format.envelope import envelope
from bus.log.log import Log, VersionConflict
from bus.log.record import Record
from bus.log.streams import info
from bus.runs.steering import new_id

logger = structlog.get_logger(__name__)


class Decisions:
    """Every decision of a namespace. It owns nothing that has to be closed."""

    def __init__(self, log: Log, *, source: str) -> None:
        self._log = log
        self._source = source

    async def load(self, id: str) -> Decision:
        """A decision as the log has it. Raises NotFound, Unavailable."""
        state = await self._refresh(id, None, 0)
        if state[0] is None:
            raise NotFound(f"there is no decision {id!r} in this log")
        return state[0]

    async def settled(self, id: str) -> Decision:
        """As the log has it, after its outcome was appended if it is due. Raises NotFound, Unavailable."""
        state = await self.load(id)
        due = state.is_open and rules.outcome(state, utc_now()) is not None
        return await self.submit(id, Settle()) if due else state

    async def submit(self, id: str, command: Command) -> Decision:
        """Carry out a command, and settle the decision if that is possible by then.

        Raises Refused, DecisionError, NotFound, TooLarge, Unavailable.
        """
        state, position = (None, 0) if isinstance(command, Propose) else await self._refresh(id, None, 0)
        if state is None and not isinstance(command, Propose):
            raise NotFound(f"there is no decision {id!r} in this log")
        # What follows is settled with the same knowledge; somebody else may be faster with it.
        for step in (command, Settle()):
            while True:
                now = utc_now()
                if state is None and position:
                    raise Refused(f"decision {id} was archived, or its subject is taken: give another id")
                event = rules.decide(state, step, id=id, now=now)
                if event is None:
                    break
                message = envelope(rules.type_of(event), event, id=uuid4().hex, source=self._source, time=now)
                try:
                    position = await self._log.append(self._log.subjects.decision(id), message, expected=position)
                except VersionConflict:
                    state, position = await self._refresh(id, state, position)
                    continue
                state = rules.evolve(state, event, id=id, at=now, position=position)
                break
        assert state is not None, "it was proposed"
        return state

    async def _refresh(self, id: str, state: Decision | None, position: int) -> tuple[Decision | None, int]:
        """The decision with what was stored since, and the newest position on its subject."""
        async with aclosing(self._log.read(self._log.subjects.decision(id), after=position)) as records:
            async for record in records:
                state, position = fold(state, id, record), record.position
        return state, position


def fold(state: Decision | None, id: str, record: Record) -> Decision | None:
    """The decision after a record on its subject. What can't be read changes nothing, and is logged."""
    try:
        message = record.envelope()
        return rules.evolve(state, rules.read(message), id=id, at=message.time, position=record.position)
    except MalformedMessage as error:
        logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
        return state


class Deciding:
    """The verbs about decisions; a part of the client."""

    connection: Connection
    log: Log
    source: str
    _decisions: Decisions

    async def propose(
        self,
        question: str,
        *,
        options: Iterable[str],
        voters: Mapping[str, int] | Iterable[str],
        quorum: float = 0.5,
        timeout_s: float = 60.0,
        tie: str = rules.REJECT,
        by: str | None = None,
        decision: str | None = None,
    ) -> Decision:
        """Ask `voters` (names, or names with weights) to choose one of `options` within `timeout_s`.

        The option with the most weight wins, provided that at least `quorum` of all weight has voted. With equal votes
        `tie` says what then: `reject`, `first` (of the options that lead), or an option. It is decided early if the
        votes to come could not change it. `decision` is its id, made if not given. Raises DecisionError, Refused if
        there is one with that id, Unavailable.
        """
        if isinstance(voters, str):
            raise DecisionError(f"voters are names, or names with weights, not the text {voters!r:.40}")
        weights = dict(voters) if isinstance(voters, Mapping) else dict.fromkeys(voters, 1)
        chosen = options if isinstance(options, str) else tuple(options)
        command = Propose(
            by=by or self.source,
            question=question,
            options=chosen,
            voters=weights,
            quorum=quorum,
            tie=tie,
            timeout_s=timeout_s,
        )
        return await self._decisions.submit(decision or new_id("decision"), command)

    async def vote(self, decision: str, option: str, *, by: str, comment: str = "") -> Decision:
        """Vote as `by`; the same once more changes nothing. Who that really is, nobody checks: see the guide.

        Raises Refused for somebody who is no voter or has voted otherwise, for no option, or when it has ended;
        NotFound, Unavailable.
        """
        return await self._decisions.submit(decision, Vote(by, option, comment))

    async def decision(self, decision: str) -> Decision:
        """A decision as the log has it. Raises NotFound, Unavailable."""
        return await self._decisions.load(decision)

    async def decided(self, decision: str, *, timeout_s: float) -> Decision:
        """The decision once it has an outcome: by its deadline at the latest. Raises TimedOut, NotFound."""
        try:
            async with asyncio.timeout(timeout_s):
                while (state := await self._decisions.settled(decision)).is_open:
                    await self._until_changed(state)
        except TimeoutError:
            raise TimedOut(f"decision {decision} is open still after {timeout_s:g} s") from None
        return state

    async def decisions(self, *, only_open: bool = False) -> list[Decision]:
        """Every decision, the newest last; of those whose time is over, as they were last stored."""
        subjects = self.log.subjects
        there = await info(self.connection, subjects.stream, self.log.patience_s, subjects=subjects.decisions)
        found: dict[str, Decision | None] = {}
        if there.subjects:
            async with aclosing(self.log.read(subjects.decisions)) as records:
                async for record in records:
                    id = subjects.decision_of(record.subject)
                    found[id] = fold(found.get(id), id, record)
        return [state for state in found.values() if state is not None and (state.is_open or not only_open)]

    async def ballots(self, voter: str, *, after: int = 0) -> AsyncGenerator[Decision, None]:
        """Each decision that waits for the vote of `voter`, those to come included; never ends by itself.

        `after` is a position of the log (`Decision.position`): only what was proposed since then.
        """
        subjects = self.log.subjects
        async with aclosing(self.log.follow(subjects.decisions, after=after)) as records:
            async for record in records:
                id = subjects.decision_of(record.subject)
                first = fold(None, id, record)
                if first is None or voter not in first.proposal.voters:
                    continue
                state = await self._decisions.settled(id)
                if state.is_open and voter in state.missing:
                    yield state

    async def _until_changed(self, state: Decision) -> None:
        """Until there is another event of it, or its time is over."""
        left_s = (state.proposal.deadline_at - utc_now()).total_seconds()
        subject = self.log.subjects.decision(state.id)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0.0)):
                async with aclosing(self.log.follow(subject, after=state.position)) as records:
                    await anext(records)
