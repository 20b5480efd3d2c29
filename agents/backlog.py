"""The backlog: the messages of work that waits, kept as the log says. What is ready has one that will be delivered.

Work need not survive a crash of the server, and it may survive more than it should: what was taken before is in its
stream again, and nobody is given it any more. So messages that are missing, or that nobody will get, are published
again, and those of attempts that are over are removed. What somebody put where nobody asks is kept as a dead letter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice

import structlog

from agents.docket import Docket
from agents.herald import Herald
from bus.client import Client
from bus.clock import utc_now
from bus.errors import Archived, InvalidName, MalformedMessage, NotFound
from bus.format.subjects import Work
from bus.format.subjects import capability as capability_name
from bus.letters.burying import bury
from bus.log.consumers import consumer_of, passed_by
from bus.log.reading import Reader
from bus.log.streams import info, purge, remove
from bus.rules.inputs import work
from bus.rules.priority import QUEUES
from bus.rules.run import RunState
from bus.rules.timers import Timer
from bus.runs.recovery import Recovered

logger = structlog.get_logger(__name__)

_LATE = timedelta(seconds=1)
_AT_ONCE = 200
_NOBODYS = "unknown"
# A namespace, `work`, a capability, a level, a sender, a row, and what waits there.
_IN_QUEUE = 7
_ASKED_FOR = {(queue.level, str(queue.row)) for queue in QUEUES}


class Backlog:
    """That of one term of a leader."""

    def __init__(self, client: Client, docket: Docket, herald: Herald) -> None:
        self._client = client
        self._docket = docket
        self._herald = herald
        self._began_at = utc_now()
        self._timeout_s = client.settings.request_timeout_s
        self._reader = Reader(client.connection, client.subjects.work_stream, timeout_s=self._timeout_s)
        self._left: set[str] = set()

    async def look(self) -> None:
        """Once. Raises Unavailable."""
        # Of work in line the place is in the log, and no message is needed.
        ready = self._docket.ready_since(utc_now() - _LATE)
        late = [(state, timer) for state, timer in ready if not state.is_in_line]
        found = await self._there()
        there = {subject: of for subject, of in found.items() if _is_asked_for(subject)}
        for subject in islice(found.keys() - there.keys(), _AT_ONCE):
            await self._bury(subject)
        await self._drop(there)
        # In whatever row it stands.
        waiting = {of.attempt_alone: of for of in there.values() if of is not None}
        stands = [(state, timer, waiting.get(_attempt(state, timer))) for state, timer in late]
        for _, _, of in stands:
            if of is not None:
                self._client.ledger.remind(of)
        lost = [(state, timer) for state, timer, of in stands if of is None]
        lost += await self._passed_over([(state, timer, of) for state, timer, of in stands if of is not None])
        for state, timer in lost:
            self._client.ledger.dispatch(state, [(timer.phase, timer.item)])
        recovered = [Recovered(state.run, each.phase, each.attempt, "work_lost", each.item) for state, each in lost]
        await self._herald.recovered(recovered, on_start=all(timer.at < self._began_at for _, timer in late))

    async def _there(self) -> Mapping[str, Work | None]:
        """The subjects of all work that waits, and what they say."""
        connection, stream = self._client.connection, self._client.subjects.work_stream
        try:
            if not (await info(connection, stream, self._timeout_s)).messages:
                return {}
            there = await info(connection, stream, self._timeout_s, subjects=">")
            return {subject: self._read(subject) for subject in there.subjects}
        except NotFound:
            # A worker makes it again; nothing waits in it.
            return {}

    async def _drop(self, there: Mapping[str, Work | None]) -> None:
        """Remove what is of no use any more: what is seen twice had time to be taken and acknowledged."""
        left = {subject for subject, of in there.items() if of is not None and not self._is_known(of)}
        again, self._left = left & self._left, left
        for subject in islice(again, _AT_ONCE):
            of = there[subject]
            if of is not None and await self._is_over(of):
                logger.info("work removed", run=of.run, phase=of.phase, item=of.item, attempt=of.attempt)
                await purge(self._client.connection, self._client.subjects.work_stream, subject, self._timeout_s)

    async def _passed_over(self, late: Sequence[tuple[RunState, Timer, Work]]) -> list[tuple[RunState, Timer]]:
        """Of what is late and has a message, that whose message nobody will be given; it is removed."""
        connection, stream = self._client.connection, self._client.subjects.work_stream
        by_consumer: defaultdict[str, list[tuple[RunState, Timer, Work]]] = defaultdict(list)
        for state, timer, of in late:
            by_consumer[consumer_of(of.capability, of.level, of.row)].append((state, timer, of))
        found: list[tuple[RunState, Timer]] = []
        for consumer, ready in by_consumer.items():
            try:
                passed = await passed_by(connection, stream, consumer, self._timeout_s)
            except NotFound:
                continue  # nobody has ever asked there
            for state, timer, of in ready[:_AT_ONCE]:
                subject = self._client.subjects.work(of)
                record = await self._reader.last(subject)
                if record is not None and record.position <= passed:
                    await purge(connection, stream, subject, self._timeout_s)
                    found.append((state, timer))
        return found

    async def _bury(self, subject: str) -> None:
        """Keep what is where nobody asks, and take it out of the stream."""
        client, stream = self._client, self._client.subjects.work_stream
        record = await self._reader.last(subject)
        if record is None:
            return
        try:
            capability = capability_name(subject.split(".")[2].replace(":", "."))
        except InvalidName:
            capability = _NOBODYS
        await bury(
            client.log,
            client.subjects,
            capability,
            subject,
            record.body,
            f"{subject!r} is in no queue: nobody asks there",
            limit_bytes=client.connection.max_payload,
            source=client.source,
            instance=client.source,
            agent="",
            headers=record.headers,
            origin=record.position,
            stored_at=record.stored_at,
            delivered=0,
        )
        logger.warning("work in no queue", subject=subject, capability=capability)
        await remove(client.connection, stream, record.position, self._timeout_s)

    def _read(self, subject: str) -> Work | None:
        """What a subject says; None: who gets it keeps it as a dead letter."""
        try:
            return self._client.subjects.parse_work(subject)
        except MalformedMessage:
            return None

    def _is_known(self, of: Work) -> bool:
        """Whether it is ready, as far as has been read."""
        state = self._docket.get(of.run)
        return state is not None and _is_ready(state, of)

    async def _is_over(self, of: Work) -> bool:
        """Whether it can't be taken any more, as of now."""
        try:
            return not _is_ready(await self._client.runs.load(of.run), of)
        except (NotFound, Archived):
            return True


def _is_asked_for(subject: str) -> bool:
    """Whether instances ask where it is. What is too short for a queue they find in the main one."""
    tokens = subject.split(".")
    return len(tokens) < _IN_QUEUE or (tokens[3], tokens[5]) in _ASKED_FOR


def _attempt(state: RunState, timer: Timer) -> Work:
    return work(state, timer.phase, timer.item).attempt_alone


def _is_ready(state: RunState, of: Work) -> bool:
    phase = state.phases.get(of.phase)
    item = phase.item(of.item) if phase is not None and state.is_open else None
    if item is None or (item.status, item.attempt) != ("ready", of.attempt):
        return False
    # Sent another way, it has another message.
    return work(state, of.phase, of.item).capability == of.capability
