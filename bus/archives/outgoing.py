"""Outgoing: what a policy lets go out of a log now, up to which position of each subject, and why the rest stays.

What leaves a subject is always its beginning: the server takes out all up to a position, and nothing in between.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from itertools import islice
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from bus.archives.retention import CLASSES, Policy, letter_stays, run_stays
from bus.coordination import barrier
from bus.coordination.decision import DECIDED
from bus.errors import Archived, MalformedMessage
from bus.format.envelope import decode_data
from bus.format.payload import is_inline
from bus.letters.letters import letter_judged
from bus.log.log import Log
from bus.log.record import Record
from bus.registry.orders import AREA
from bus.rules import dead
from bus.rules.dead import DeadLetter, Unreadable
from bus.rules.run import RunState
from bus.runs.lane import PLACED, RESUMED, Resumed, row_of, token_of
from bus.runs.ledger import fold_records

_AT_ONCE = 64
_resumed = msgspec.json.Decoder(Resumed)

_Why = Callable[[Record], Awaitable[str | None]]


class _Letter(NamedTuple):
    """A dead letter, with the id of its record: by that it is named where it was decided about."""

    id: str
    letter: DeadLetter | Unreadable


_Letters = dict[int, _Letter]


class Tally(msgspec.Struct):
    """Of one class, how much goes, in subjects, records and bytes of content; and how much stays, by reason."""

    subjects: int = 0
    records: int = 0
    size_bytes: int = 0
    stays: Counter[str] = msgspec.field(default_factory=Counter)


class Outgoing(msgspec.Struct, frozen=True):
    """Of each subject that is concerned, the position up to which it goes; and by class what that is."""

    upto: dict[str, int] = msgspec.field(default_factory=dict)
    tallies: dict[str, Tally] = msgspec.field(default_factory=dict)


async def select(log: Log, policy: Policy, now: datetime) -> Outgoing:
    """What may go. `log` has to be one that reads without an archive. Raises Unavailable."""
    chosen = Outgoing()
    letters = await _letters(log)
    for name in CLASSES:
        before = policy.before(name, now)
        if before is None and name in ("part", "line"):
            # Partial results and places go with their run.
            before = policy.before("run", now)
        if before is None:
            continue
        tally = chosen.tallies[name] = Tally()
        upto = await log.position_at(before)
        if name == "run":
            await _Runs(log, chosen, tally, letters).select(before, upto)
        else:
            why = {
                "dead": _Dead(log, letters).why,
                "ops": _Ops(log, letters).why,
                "lease": _Newest(log).why,
                "barrier": _Barriers(log).why,
                "decision": _Decisions(log).why,
                "breaker": _Newest(log).why,
                "part": _Parts(log).why,
                "line": _Lines(log).why,
            }.get(name, _old_enough)
            await _select_beginnings(log, f"{log.subjects.namespace}.{name}.>", chosen, tally, why, upto)
    return chosen


class _Seen(msgspec.Struct):
    """A run as far as it has been read: where that is, how much, its state while it is open, and why it stays."""

    position: int = 0
    records: int = 0
    size_bytes: int = 0
    state: RunState | None = None
    has_ended: bool = False
    is_whole: bool = True
    stays: str | None = "is no run"


class _Runs:
    """Runs go as a whole: every commit is older than the policy's age, and the last one ended it."""

    def __init__(self, log: Log, chosen: Outgoing, tally: Tally, letters: _Letters) -> None:
        self._log = log
        self._chosen = chosen
        self._tally = tally
        self._letters: dict[str, list[DeadLetter]] = {}
        for _, letter in letters.values():
            if isinstance(letter, DeadLetter):
                self._letters.setdefault(letter.run, []).append(letter)

    async def select(self, before: datetime, upto: int) -> None:
        runs: dict[str, _Seen] = {}
        async with aclosing(self._log.read(self._log.subjects.runs, upto=upto)) as records:
            async for record in records:
                await self._see(runs.setdefault(record.subject, _Seen()), record, before)
        waiting = iter(runs.items())
        while batch := list(islice(waiting, _AT_ONCE)):
            await asyncio.gather(*(self._settle(subject, seen) for subject, seen in batch))

    async def _see(self, seen: _Seen, record: Record, before: datetime) -> None:
        run = self._log.subjects.run_of(record.subject)
        seen.position = record.position
        seen.records += 1
        seen.size_bytes += len(record.body)
        try:
            state = await self._after(run, seen, record)
        except Archived:
            seen.stays = "is archived already"
            return
        if state is not None:
            seen.stays = run_stays(state, self._letters.get(run, ()), before)
            # The states of ended runs are not kept: there are many, and hardly one goes on.
            seen.has_ended = not state.is_open
            seen.state = state if state.is_open else None
        seen.is_whole = seen.is_whole and not _has_lost_payload(record)

    async def _after(self, run: str, seen: _Seen, record: Record) -> RunState | None:
        if seen.has_ended:
            read = self._log.read(record.subject, upto=record.position)
            return fold_records(run, [each async for each in read], None)
        return fold_records(run, [record], seen.state)

    async def _settle(self, subject: str, seen: _Seen) -> None:
        if seen.stays is None and not seen.is_whole:
            seen.stays = "has lost a payload"
        if seen.stays is None and not _can_be_named(subject):
            seen.stays = "has a subject that can't be named"
        if seen.stays is None:
            newest = await self._log.last(subject)
            if newest is None or newest.position != seen.position:
                seen.stays = "ended too recently"
        if seen.stays is not None:
            self._tally.stays[seen.stays] += 1
            return
        self._chosen.upto[subject] = seen.position
        self._tally.subjects += 1
        self._tally.records += seen.records
        self._tally.size_bytes += seen.size_bytes


class _Dead:
    """A dead letter stays while its work is dead."""

    def __init__(self, log: Log, letters: _Letters) -> None:
        self._log = log
        self._letters = letters
        self._states: dict[str, RunState | None] = {}
        self._judged: set[str] | None = None

    async def why(self, record: Record) -> str | None:
        if record.position not in self._letters:
            return "is no dead letter"
        id, letter = self._letters[record.position]
        if isinstance(letter, DeadLetter):
            if letter.run not in self._states:
                self._states[letter.run] = await _state(self._log, letter.run)
            return letter_stays(letter, self._states[letter.run])
        if self._judged is None:
            found = self._log.read(self._log.subjects.ops("dead"))
            self._judged = {sent async for each in found if (sent := _letter_judged(each)) is not None}
        return None if id in self._judged else "is still dead"


class _Parts:
    """Partial results stay while their run goes on."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._open: dict[str, bool] = {}

    async def why(self, record: Record) -> str | None:
        run = record.subject.split(".")[2]
        if run not in self._open:
            state = await _state(self._log, run)
            self._open[run] = state is not None and state.is_open
        return "its run is open" if self._open[run] else None


class _Lines:
    """A place stays until its run is over, and what is said of a key while anything is parked behind it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._going_on: dict[str, bool] = {}
        self._newest = _Newest(log)

    async def why(self, record: Record) -> str | None:
        try:
            message = record.envelope()
            if message.type == RESUMED:
                return await self._parked(record, decode_data(message, _resumed, "a key that may go on").key)
        except MalformedMessage:
            return None
        if message.type != PLACED and (stays := await self._newest.why(record)) is not None:
            return stays
        run = message.runid
        if run is not None and run not in self._going_on:
            state = await _state(self._log, run)
            self._going_on[run] = state is not None and (state.is_open or state.status == "failed")
        return "its run is not over" if run is not None and self._going_on[run] else None

    async def _parked(self, record: Record, key: str) -> str | None:
        lane, _, _ = record.subject.rpartition(".")
        newest = await self._log.last(f"{lane}.parked.{token_of(key)}")
        return "its key is parked" if newest is not None and row_of(newest.position, newest.envelope()).waits else None


class _Ops:
    """What operators did: what is decided about a dead letter stays for as long as the letter."""

    def __init__(self, log: Log, letters: _Letters) -> None:
        self._stays = {
            log.subjects.ops("archive"): "tells of archives",
            log.subjects.ops("schedule"): "says which schedules there are",
            log.subjects.ops(AREA): "says which agents are in quarantine",
            log.subjects.ops("released"): "says which capabilities may go on",
        }
        self._letters = {letter.id for letter in letters.values()}

    async def why(self, record: Record) -> str | None:
        if record.subject in self._stays:
            return self._stays[record.subject]
        return "its dead letter is there" if _letter_judged(record) in self._letters else None


class _Newest:
    """The newest of a subject stays: the next one is expected to stand after it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._newest: dict[str, int] = {}

    async def why(self, record: Record) -> str | None:
        if record.subject not in self._newest:
            newest = await self._log.last(record.subject)
            self._newest[record.subject] = newest.position if newest is not None else 0
        return "says how it stands" if record.position >= self._newest[record.subject] else None


class _Barriers:
    """The parties of the newest generation stay: they may be waiting still."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._newest: dict[str, int] = {}

    async def why(self, record: Record) -> str | None:
        if record.subject not in self._newest:
            newest = await self._log.last(record.subject)
            self._newest[record.subject] = _generation(newest) if newest is not None else 0
        return "says how it stands" if _generation(record) >= self._newest[record.subject] else None


class _Decisions:
    """A decision goes when it has its outcome; that stays, so that the id stays taken."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._newest = _Newest(log)
        self._is_open: dict[str, bool] = {}

    async def why(self, record: Record) -> str | None:
        if record.subject not in self._is_open:
            newest = await self._log.last(record.subject)
            self._is_open[record.subject] = newest is None or not _is_decided(newest)
        return "is not decided" if self._is_open[record.subject] else await self._newest.why(record)


async def _old_enough(record: Record) -> None:
    """Only what is old enough is asked about."""


async def _select_beginnings(log: Log, subjects: str, chosen: Outgoing, tally: Tally, why: _Why, upto: int) -> None:
    """Of each subject everything up to the first record that stays."""
    stopped: set[str] = set()
    async with aclosing(log.read(subjects, upto=upto)) as records:
        async for record in records:
            reason = "stands behind one that stays" if record.subject in stopped else await why(record)
            if reason is None and _has_lost_payload(record):
                reason = "has lost its payload"
            if reason is None and not _can_be_named(record.subject):
                reason = "has a subject that can't be named"
            if reason is not None:
                stopped.add(record.subject)
                tally.stays[reason] += 1
                continue
            tally.subjects += record.subject not in chosen.upto
            tally.records += 1
            tally.size_bytes += len(record.body)
            chosen.upto[record.subject] = record.position


def _generation(record: Record) -> int:
    """Of a barrier; 0: it says nothing."""
    try:
        return barrier.read(record.envelope()).generation
    except MalformedMessage:
        return 0


def _is_decided(record: Record) -> bool:
    try:
        return record.envelope().type == DECIDED
    except MalformedMessage:
        return False


def _can_be_named(subject: str) -> bool:
    """Whether the server can be told to take out what is on this subject and nothing else.

    Anybody may have published on one that is not UTF-8, or that as a filter would stand for others too.
    """
    try:
        subject.encode()
    except UnicodeEncodeError:
        return False
    return "*" not in subject and ">" not in subject


def _has_lost_payload(record: Record) -> bool:
    """Whether it still refers to a payload that could not be had: the archive would hold a name and nothing else."""
    return not is_inline(record.body) and b'"dataref"' in record.body


async def _letters(log: Log) -> _Letters:
    """Every dead letter by its number, without what makes it large."""
    found: _Letters = {}
    async for record in log.read(log.subjects.dead_letters):
        try:
            message = record.envelope()
            letter = dead.read(message)
        except MalformedMessage:
            continue
        if isinstance(letter, DeadLetter):
            small: DeadLetter | Unreadable = replace(letter, payload=msgspec.Raw(b"null"), attempts=())
        else:
            small = replace(letter, body=b"")
        found[record.position] = _Letter(message.id, small)
    return found


async def _state(log: Log, run: str) -> RunState | None:
    """None: there is no such run, or it was archived, and then nothing of it was dead."""
    try:
        return fold_records(run, [each async for each in log.read(log.subjects.run(run))], None)
    except Archived:
        return None


def _letter_judged(record: Record) -> str | None:
    """The id of the dead letter that a record decides about, if it does."""
    try:
        return letter_judged(record.envelope())
    except MalformedMessage:
        return None
