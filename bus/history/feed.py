"""A feed: what a selection picks from the log, in order or backwards, and on request what is still to come.

The narrowest subjects and positions are read that hold all of it; pages are of bounded memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime

from bus.errors import SettingsError
from bus.history.happening import Happening, Said
from bus.history.selection import Selection
from bus.log.log import Log
from bus.log.record import Record


async def happenings(log: Log, selection: Selection, *, follow: bool = False) -> AsyncGenerator[Happening, None]:
    """The selected events, one by one. With `follow`, it goes on with what is stored from now on, for ever.

    Raises SettingsError for a selection that can't be followed (one with an end, or backwards), InvalidName,
    Unavailable.
    """
    count = 0
    async with aclosing(_places(log, selection, follow=follow)) as places:
        async for record, stored_at in places:
            for each in _in_order(selection, read(record, stored_at)):
                if selection.fits(each):
                    yield each
                    count += 1
                    if count == selection.limit:
                        return


async def records(log: Log, selection: Selection) -> AsyncGenerator[Record, None]:
    """The records that hold selected events, whole: a commit comes with all its events. `limit` counts records.

    Raises InvalidName, Unavailable.
    """
    count = 0
    async with aclosing(_places(log, selection, follow=False)) as places:
        async for record, stored_at in places:
            if selection.is_by_place or any(map(selection.fits, read(record, stored_at))):
                yield record
                count += 1
                if count == selection.limit:
                    return


def read(record: Record, stored_at: datetime | None = None) -> Sequence[Happening]:
    """What a record says: at least one happening. Raises MalformedMessage if the server does not say when it came."""
    return said(record, stored_at).happenings


def said(record: Record, stored_at: datetime | None = None) -> Said:
    """The same, before it is taken apart."""
    return Said(record.position, record.subject, stored_at or record.stored_at, record.body)


async def _places(log: Log, selection: Selection, *, follow: bool) -> AsyncGenerator[tuple[Record, datetime], None]:
    """The records whose place in the log fits, with the time they were stored at."""
    if follow and (selection.backwards or selection.upto is not None or selection.until is not None):
        raise SettingsError("to follow has no end: leave out upto, until and backwards")
    after, upto = await _bounds(log, selection)
    if upto is not None and upto <= after:
        return
    filters = selection.filters(log.subjects)
    if follow:
        found = log.follow(*filters, after=after)
    elif selection.backwards:
        found = log.read_back(*filters, before=None if upto is None else upto + 1)
    else:
        found = log.read(*filters, after=after, upto=upto)
    async with aclosing(found) as stored:
        async for record in stored:
            if record.position <= after:
                return  # backwards, and past the first one wanted
            stored_at = record.stored_at
            if selection.covers(record.position, record.subject, stored_at):
                yield record, stored_at


async def _bounds(log: Log, selection: Selection) -> tuple[int, int | None]:
    """`after` and `upto`, the times among it made positions."""
    after, upto = selection.after, selection.upto
    if selection.since is not None:
        after = max(after, await log.position_at(selection.since))
    if selection.until is not None:
        before = await log.position_at(selection.until)
        upto = before if upto is None else min(upto, before)
    return after, upto


def _in_order(selection: Selection, found: Sequence[Happening]) -> Sequence[Happening]:
    return found[::-1] if selection.backwards else found
