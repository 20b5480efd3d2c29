"""Importing: the lines of an export, appended to a log in their order, each byte and header as it was.

Everything is checked before anything is written. What is there already is left alone, so an import that was
interrupted can be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from hashlib import blake2b

import msgspec

from bus.archives.convoy import Convoy, Copy, last_position
from bus.client import Client
from bus.errors import MalformedMessage, Refused
from bus.format.subjects import Subjects, pattern
from bus.log import lines
from bus.log.record import Record

_CHUNK = 1_000
_CHUNK_BYTES = 4 * 2**20
_NAMED = 3


class Imported(msgspec.Struct, frozen=True):
    """What came of it: how many records were stored, how many were there before, and the lines left out, with why."""

    stored: int
    there: int
    left_out: Sequence[str]


async def import_lines(client: Client, opened: Callable[[], Iterable[bytes]]) -> Imported:
    """Append what the lines say; `opened` gives them from the first on, each time it is called.

    The namespace they come from may be another. Nobody else should write meanwhile. Raises MalformedMessage for what
    is no line of an export, or is not in the order of its subject, TooLarge, and Refused for a subject that holds
    something else: then nothing was written. Also Refused if somebody writes to such a subject meanwhile; Unavailable,
    after which it can be repeated.
    """
    upto = await last_position(client)
    there = await _standing(client, upto)
    wanted, left_out = await _check(client, opened, there)
    convoy = Convoy(client, {subject: stand.last for subject, stand in there.items()}, upto)
    # What of the lines of a subject is still to be passed over.
    rest = {subject: min(stand.count, wanted[subject].count) for subject, stand in there.items() if subject in wanted}
    skipped = sum(rest.values())
    chunk: list[Copy] = []
    size_bytes = 0
    for _, _, copy in _copies(client.subjects, opened):
        if copy.objection(client.connection) is not None:
            continue
        if rest.get(copy.subject):
            rest[copy.subject] -= 1
            continue
        if len(chunk) == _CHUNK or size_bytes > _CHUNK_BYTES:
            await convoy.append(chunk)
            chunk, size_bytes = [], 0
        chunk.append(await copy.packed(client))
        size_bytes += len(copy.content)
    await convoy.append(chunk)
    return Imported(convoy.stored, skipped, left_out)


class _Stand(msgspec.Struct):
    """What a subject holds: so many records, whose bytes and headers make this digest, the last at this position."""

    count: int = 0
    digest: bytes = b""
    last: int = 0

    def add(self, copy: Copy) -> None:
        said = msgspec.json.encode(sorted(copy.headers.items())) + b"\n" + copy.content
        self.digest = blake2b(self.digest + said, digest_size=16).digest()
        self.count += 1


async def _standing(client: Client, upto: int) -> dict[str, _Stand]:
    """What each subject of the log holds, of that which an import can write."""
    there: dict[str, _Stand] = {}
    async with aclosing(client.log.read(f"{client.subjects.namespace}.>", upto=upto)) as records:
        async for record in records:
            stand = there.setdefault(record.subject, _Stand())
            stand.last = record.position
            copy = _copy_of(record)
            if copy.objection(client.connection) is None:
                stand.add(copy)
    return there


async def _check(
    client: Client, opened: Callable[[], Iterable[bytes]], there: Mapping[str, _Stand]
) -> tuple[Mapping[str, _Stand], Sequence[str]]:
    """Read it all once: what it has for each subject, and the lines that have to be left out."""
    wanted: dict[str, _Stand] = {}
    left_out: list[str] = []
    foreign: set[str] = set()
    for number, position, copy in _copies(client.subjects, opened):
        if (objection := copy.objection(client.connection)) is not None:
            left_out.append(f"line {number}: {objection}")
            continue
        stand = wanted.setdefault(copy.subject, _Stand())
        # A run whose end comes before its beginning can't be read, and nothing can be taken back.
        if position <= stand.last:
            raise MalformedMessage(
                f"line {number} is out of order: it stood at position {position}, and on the same subject {stand.last} "
                "comes before it"
            )
        stand.add(copy)
        stand.last = position
        found = there.get(copy.subject, _NOTHING)
        if stand.count > found.count:
            copy.check_size(client)
        elif stand.count == found.count and stand.digest != found.digest:
            foreign.add(copy.subject)
        if number % _CHUNK == 0:
            await asyncio.sleep(0)
    for subject, stand in wanted.items():
        if stand.count < there.get(subject, _NOTHING).count and not await _begins_with(client, subject, stand):
            foreign.add(subject)
    if foreign:
        raise Refused(
            f"{_some(foreign)} hold other records than the file has for them: nothing was written; import into a "
            "namespace of its own"
        )
    return wanted, left_out


_NOTHING = _Stand()


async def _begins_with(client: Client, subject: str, stand: _Stand) -> bool:
    """Whether the log has on a subject what makes up the stand, and more."""
    first = _Stand()
    async with aclosing(client.log.read(subject)) as records:
        async for record in records:
            copy = _copy_of(record)
            if copy.objection(client.connection) is None:
                first.add(copy)
            if first.count == stand.count:
                break
    return first.digest == stand.digest


def _copies(subjects: Subjects, opened: Callable[[], Iterable[bytes]]) -> Iterator[tuple[int, int, Copy]]:
    """Each line's number, its position where it comes from, and its record on its subject in this namespace. Raises
    MalformedMessage."""
    stored = [pattern(each).fullmatch for each in subjects.logged()]
    for number, text in enumerate(opened(), 1):
        if not text.strip():
            continue
        found = lines.read(text, f"line {number}")
        subject = subjects.ours(found.subject)
        if not any(fits(subject) for fits in stored):
            raise MalformedMessage(f"line {number}: {found.subject!r} is not a subject of a bus's log")
        yield number, found.position, Copy(subject, found.headers, found.content)


def _copy_of(record: Record) -> Copy:
    return Copy(record.subject, record.headers, record.body)


def _some(subjects: Collection[str]) -> str:
    named = ", ".join(sorted(subjects)[:_NAMED])
    return named if len(subjects) <= _NAMED else f"{named} and {len(subjects) - _NAMED} more subjects"
