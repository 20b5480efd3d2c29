"""Causes: everything that was said on the way from one beginning, and what each of it followed from.

All records with one correlation id are one story. Each names its cause by id, as far as that is in the log; work is
not, so what is said of an attempt follows from what was last said of it. A long story is stored in pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from bus.format.subjects import KINDS
from bus.history.happening import Happening
from bus.rules.events import Commit, type_of
from projections.projection import MEMORY, Projection, Rows, each_of

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


def _stretch(rows: Rows[Any], happenings: Sequence[Happening]) -> None:
    tellings: dict[str, _Telling] = {}
    followings: dict[str, dict[str, str]] = {}
    for each in happenings:
        message = each.message
        assert message is not None, "what can't be read is set aside before"
        cause = message.causationid or ""
        said: tuple[str, ...] = (message.type,)
        if each.commit is not None:
            commit = each.commit
            said = tuple([_named(event) for event in commit.events])
            known = followings.get(commit.run)
            if known is None:
                known = followings[commit.run] = dict(rows.get(MEMORY + commit.run) or {})
            cause = _follow(known, commit, cause)
        elif not cause and message.runid is not None:
            known = followings.get(message.runid) or rows.get(MEMORY + message.runid) or {}
            cause = known.get(message.phase or _RUN) or known.get(_RUN, "")
        story = message.correlationid or each.run or message.id
        if story.startswith(MEMORY):
            story = f".{story}"  # anybody can name a story like that
        telling = tellings.get(story)
        if telling is None:
            telling = tellings[story] = _Telling(rows.get(story) or Page(story=story))
        if len(telling.words) == PAGE:
            # A story can have the name of a page of another: each has to find what the other has stored.
            _store(rows, tellings)
            rows[f"{story}#{telling.before + 1}"] = telling.page
            telling = tellings[story] = _Telling(Page(story=story, before=telling.before + 1))
        telling.words.append(Word(message.id, each.position, message.time, each.subject, message.source, said, cause))
    _store(rows, tellings)
    for run, known in followings.items():
        rows[MEMORY + run] = known


class _Telling:
    """The last page of a story, while words are added to it."""

    __slots__ = ("_story", "before", "words")

    def __init__(self, page: Page) -> None:
        self._story, self.before, self.words = page.story, page.before, list(page.words)

    @property
    def page(self) -> Page:
        return Page(story=self._story, words=tuple(self.words), before=self.before)


def _store(rows: Rows[Any], tellings: dict[str, _Telling]) -> None:
    for story, telling in tellings.items():
        rows[story] = telling.page
    tellings.clear()


def _named(event: Any) -> str:
    phase = getattr(event, "phase", "")
    return f"{type_of(event)} {phase}" if phase else type_of(event)


def _follow(known: dict[str, str], commit: Commit, cause: str) -> str:
    """What a commit followed from; and from now on others may follow from it."""
    id, followed, of_run = commit.id, "", known.get(_RUN, "")
    for event in commit.events:
        phase = getattr(event, "phase", _RUN)
        item = getattr(event, "item", None)
        place = phase if item is None else f"{phase}:{item}"
        if not followed and (last := known.get(place, id)) != id:
            followed = last
        known[place] = id
        # A phase with items is what was last said of any of them.
        known[phase] = id
    known.setdefault(_RUN, id)
    return followed or cause or of_run


CAUSES: Projection[Any] = Projection(
    name="causes",
    version=1,
    row=Page,
    memory=dict[str, str],
    fold=each_of(_stretch),
    stretch=_stretch,
    # Parts of a result that is still being made are no story of their own.
    subjects=[f"{kind}.>" for kind in KINDS if kind != "part"],
    whole=True,
)
"""Who caused what, a story for each correlation id."""
