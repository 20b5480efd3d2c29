"""Hearing: finds in the log what the attempts of a run asked of others while they were under way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import aclosing, suppress
from datetime import timedelta

from bus.client import Client
from bus.errors import MalformedMessage
from bus.format.subjects import Subjects
from bus.log.record import Record
from bus.messages.topics import PUBLISHED
from bus.replay.asked import NOTHING, Asked, Place, Transcript
from bus.replay.recorded import Past, Span
from bus.rules.events import RunStarted
from bus.rules.plan import TASK
from bus.runs.ledger import commit_in

# Work that is handed over is begun before the log has it; by the clock of who does it, which may be ahead.
_HANDED_OVER = timedelta(seconds=10)


async def hear(source: Client, run: str, past: Past, capabilities: Collection[str]) -> dict[str, Transcript]:
    """By the commit that started them, what the attempts asked that were made for these capabilities.

    Read are those parts of the log in which they were under way. Raises Unavailable.
    """
    wanted = {place: span for place, span in past.spans.items() if past.serves(place[0], capabilities)}
    begun: defaultdict[str, list[Place]] = defaultdict(list)
    for place, span in past.spans.items():
        begun[span.commit].append(place)
    asked: defaultdict[str, list[Asked]] = defaultdict(list)
    commits = {span.commit for span in wanted.values()}
    subjects = source.subjects
    for after, upto in _merged([await _window(source, past, span) for span in wanted.values()]):
        reading = source.log.read(subjects.runs, subjects.topics(">"), after=after, upto=upto)
        async with aclosing(reading) as records:
            async for record in records:
                if record.subject == subjects.run(run):
                    continue
                with suppress(MalformedMessage):  # whoever wrote it, it was no client of ours
                    cause = record.envelope().causationid
                    if cause in commits and (found := _asked_in(subjects, record)) is not None:
                        asked[cause].append(found)
    return {commit: Transcript(asked[commit], begun[commit]) for commit in commits}


async def _window(source: Client, past: Past, span: Span) -> tuple[int, int]:
    after = span.position - 1
    if span.is_beginning:
        after = min(after, await source.log.position_at(past.began_at - _HANDED_OVER))
    return after, span.end or past.position


def _merged(windows: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same positions, each in one window only."""
    last: tuple[int, int] | None = None
    for after, upto in sorted(windows):
        if last is not None and after <= last[1]:
            last = last[0], max(last[1], upto)
            continue
        if last is not None:
            yield last
        last = after, upto
    if last is not None:
        yield last


def _asked_in(subjects: Subjects, record: Record) -> Asked | None:
    """What somebody asked by this record. Raises MalformedMessage."""
    if not record.subject.startswith(subjects.runs.removesuffix("*")):
        message = record.envelope()
        if message.type != PUBLISHED:
            return None
        topic = subjects.topic_of(record.subject)
        return Asked("fact", topic, message.data, record.position, id=message.id)
    run = subjects.run_of(record.subject)
    commit = commit_in(run, record)
    first = commit.events[0] if commit.events else None
    if not isinstance(first, RunStarted):
        return Asked("decision", run, NOTHING, record.position, run)
    if first.parent is not None:
        return None  # a phase of the run's own, which the rules have begun
    if first.plan.name == TASK:
        return Asked("work", first.plan.capabilities[0], first.input, record.position, run)
    return Asked("run", first.plan.name, first.input, record.position, run)
