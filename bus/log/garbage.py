"""Garbage among the payloads: objects that no record of the log refers to, and what broken uploads have left.

The log decides, nothing is counted or kept beside it. Each object says on which subject its message was to be appended,
so most references are found at once; only what is not found there costs a reading of the log, from when it was stored.

Why that is safe beside appends: whoever is going to refer to an object puts it first, which makes it young again. So
what is old, and not referred to by any record, is garbage, unless a writer takes longer than `older_than_s` between the
two. Whoever puts it after it was looked at moves its position, and then it is not removed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

import msgspec

from bus.broker.connection import Connection, is_subject
from bus.format.payload import NAME
from bus.format.subjects import Subjects
from bus.log.objects import Found, Objects
from bus.log.reading import Reader
from bus.log.streams import info

_REFERENCE = re.compile(NAME.pattern.encode())
# The clocks of a cluster's servers, one of which dated the object and another the record, may differ by so much.
_CLOCKS_S = 300.0


COLLECTED = "ops.payloads_collected.v1"


class PayloadsCollected(msgspec.Struct, frozen=True):
    """Somebody had garbage removed: so many objects of so many bytes, and uploads that broke off."""

    by: str
    objects: int
    size_bytes: int
    uploads: int
    older_than_s: float


class Garbage(msgspec.Struct, frozen=True):
    """What can be removed: objects, what is left of removed ones, uploads by nuid; `kept` objects are used or young."""

    objects: Sequence[Found] = ()
    remains: Sequence[Found] = ()
    uploads: Sequence[str] = ()
    kept: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(found.meta.size for found in self.objects)


async def find(
    objects: Objects, connection: Connection, subjects: Subjects, *, older_than_s: float, timeout_s: float
) -> Garbage:
    """What is garbage now. Objects under names that are not ours are left alone. Raises Unavailable."""
    if not await objects.is_there():
        return Garbage()
    # Before the objects: an upload that becomes one in between is known then.
    uploads = await objects.chunks.count()
    # All ages are by the server's clock.
    cutoff = (await info(connection, objects.stream, timeout_s)).at - timedelta(seconds=older_than_s)
    found = [each async for each in objects.all()]
    there = [each for each in found if not each.meta.deleted]
    unused = {each.meta.name: each for each in there if each.at < cutoff and NAME.fullmatch(each.meta.name)}
    log = _References(Reader(connection, subjects.stream, timeout_s=timeout_s))
    for subject in sorted({_hint(each, subjects) for each in unused.values()} - {""}):
        for name in await log.among(unused, subject):
            del unused[name]
    if unused:
        for name in await log.among(unused, ">", await _earliest(objects, unused.values())):
            del unused[name]
    return Garbage(
        list(unused.values()),
        [each for each in found if each.meta.deleted and each.at < cutoff and NAME.fullmatch(each.meta.name)],
        await _broken(objects, uploads.keys() - {each.meta.nuid for each in there}, cutoff),
        len(there) - len(unused),
    )


async def remove(objects: Objects, garbage: Garbage) -> Garbage:
    """Remove it; returns what really was: not what somebody has put again since. Raises Unavailable."""
    removed = [each for each in garbage.objects if await objects.remove(each)]
    for each in garbage.remains:
        await objects.forget(each)
    for nuid in garbage.uploads:
        await objects.chunks.remove(nuid)
    kept = garbage.kept + len(garbage.objects) - len(removed)
    return msgspec.structs.replace(garbage, objects=removed, kept=kept)


class _References:
    """What records refer to. They are searched, not understood: a name too many only keeps an object."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def among(self, names: Collection[str], subject: str, since: datetime | None = None) -> set[str]:
        """Those of the names that occur on the subject, in what was stored since an instant."""
        used: set[str] = set()
        after = await self._reader.position_at(since) if since is not None else 0
        async with aclosing(self._reader.read(subject, after=after)) as records:
            async for record in records:
                if b"dataref" in record.body:
                    used.update(name.decode() for name in _REFERENCE.findall(record.body))
        return used & set(names)


def _hint(found: Found, subjects: Subjects) -> str:
    """The subject on which the object's message was to be appended, if it says so."""
    said = (found.meta.metadata or {}).get("subject", "")
    return said if said.startswith(f"{subjects.namespace}.") and is_subject(said) else ""


async def _earliest(objects: Objects, unused: Collection[Found]) -> datetime | None:
    """When the first of them came; None for one of which nobody knows."""
    began = [await objects.chunks.began_at(each.meta.nuid) for each in unused]
    known = [at for at in began if at is not None]
    return min(known) - timedelta(seconds=_CLOCKS_S) if len(known) == len(began) else None


async def _broken(objects: Objects, nuids: Collection[str], cutoff: datetime) -> list[str]:
    """The uploads that have become no object and to which nothing has come for long."""
    ended = {nuid: await objects.chunks.ended_at(nuid) for nuid in nuids}
    return [nuid for nuid, at in ended.items() if at is not None and at < cutoff]
