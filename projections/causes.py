"""Causes: everything that was said on the way from one beginning, and what each of it followed from.

All records with one correlation id are one story. Each names its cause by id, as far as that is in the log; work is
not, so what is said of an attempt follows from what was last said of it. A long story is stored in pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from bus.format.subjects import KINDS
from bus.history.happening import Happening
from bus.rules.events import Commit, type_of
from projections.projection import MEMORY, Projection, Rows

PAGE = 128
_RUN = ""
"""What is said of no phase in particular is said of the run."""


class Word(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One record of a story: its id, its position, when, where and by whom it was said, and what (`type`, or of a
    commit `type phase` of each event). `cause` is the id of the record it followed from, empty for none."""

    id: str
    position: int
    at: datetime
    subject: str
    source: str
    said: tuple[str, ...]
    cause: str = ""


class Page(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A stretch of a story, in order: `words` came after those on `before` other pages, which are `story#1` and on."""

    story: str
    words: tuple[Word, ...] = ()
    before: int = 0


class Told(msgspec.Struct, gc=False, frozen=True):
    """A record and what followed from it."""

    word: Word
    then: Sequence[Told]


def pages(last: Page) -> list[str]:
    """The keys of the pages before the last one, whose key is the story itself."""
    return [f"{last.story}#{number}" for number in range(1, last.before + 1)]


def tree(told: Iterable[Page]) -> list[Told]:
    """What followed from what, from the pages of a story: its beginnings, each with all that came of it."""
    words = sorted((word for page in told for word in page.words), key=lambda word: word.position)
    known = {word.id for word in words}
    then: dict[str, list[Told]] = {}
    # Whatever followed came later, so from the end backwards what followed is complete.
    for word in reversed(words):
        came = Told(word, then.pop(word.id, [])[::-1])
        then.setdefault(word.cause if word.cause in known else "", []).append(came)
    return then.get("", [])[::-1]


def _fold(rows: Rows[Any], happening: Happening) -> None:
    message = happening.message
    assert message is not None, "what can't be read is set aside before"
    run = happening.run
    story = message.correlationid or run or message.id
    if story.startswith(MEMORY):
        story = f".{story}"  # anybody can name a story like that
    page: Page = rows.get(story) or Page(story=story)
    cause = message.causationid or ""
    said: tuple[str, ...] = (message.type,)
    if happening.commit is not None:
        commit = happening.commit
        said = tuple([_named(event) for event in commit.events])
        cause = _follow(rows, commit, cause)
    elif not cause and message.runid is not None:
        known: Mapping[str, str] = rows.get(MEMORY + message.runid) or {}
        cause = known.get(message.phase or _RUN) or known.get(_RUN, "")
    word = Word(message.id, happening.position, happening.at, happening.subject, message.source, said, cause)
    if len(page.words) == PAGE:
        rows[f"{story}#{page.before + 1}"] = page
        page = Page(story=story, before=page.before + 1)
    rows[story] = replace(page, words=(*page.words, word))


def _named(event: Any) -> str:
    phase = getattr(event, "phase", "")
    return f"{type_of(event)} {phase}" if phase else type_of(event)


def _follow(rows: Rows[Any], commit: Commit, cause: str) -> str:
    """What a commit followed from; and from now on others may follow from it."""
    memory = f"{MEMORY}{commit.run}"
    before: Mapping[str, str] = rows.get(memory) or {}
    now = dict(before)
    followed = ""
    for event in commit.events:
        phase = getattr(event, "phase", _RUN)
        item = getattr(event, "item", None)
        place = phase if item is None else f"{phase}:{item}"
        followed = followed or before.get(place, "")
        now[place] = commit.id
        # A phase with items is what was last said of any of them.
        now[phase] = commit.id
    now.setdefault(_RUN, commit.id)
    rows[memory] = now
    return followed or cause or before.get(_RUN, "")


CAUSES: Projection[Any] = Projection(
    name="causes",
    version=1,
    row=Page,
    memory=dict[str, str],
    fold=_fold,
    # Parts of a result that is still being made are no story of their own.
    subjects=[f"{kind}.>" for kind in KINDS if kind != "part"],
    whole=True,
)
"""Who caused what, a story for each correlation id."""
