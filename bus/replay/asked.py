"""What handlers asked of others while they made an attempt, as the log has it; and how what they ask now differs. Pure.

Work, runs and facts that a handler starts name the commit with its `phase.started` as their cause. One commit may have
started several attempts of a run: what they asked is told apart by what it is, and else taken in the order of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from bus.history.diff import Difference, first_difference

Kind = Literal["work", "run", "fact", "decision"]
Change = Literal["changed", "more", "fewer", "unrecorded"]

NOTHING = msgspec.Raw(b"null")

Place = tuple[str, int | None, int]
"""An attempt of a run: phase, item, number."""


class Asked(msgspec.Struct, frozen=True):
    """One thing that was asked: work for a capability, a run of a plan, a fact on a topic, a decision about a run.

    `run` is the run it became, `position` where that is in the log, `id` that of the message.
    """

    kind: Kind
    what: str
    given: msgspec.Raw
    position: int
    run: str = ""
    id: str = ""

    @property
    def value(self) -> object:
        return msgspec.json.decode(self.given)


class Departure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where what a handler asks of others is not what it asked then; nothing of it was done.

    `changed`: `given` is where the two part. `more`: then it did not ask that; or nobody was there to be asked, which
    leaves no trace. `fewer`: it does not ask that any more. `unrecorded`: it was asked with `fast`, and the log keeps
    nothing of such questions.
    """

    change: Change
    kind: Kind
    what: str
    given: Difference | None = None


class Transcript:
    """What the attempts that one commit started asked of others; `attempts` are all of them, whoever's they were."""

    def __init__(self, asked: Sequence[Asked] = (), attempts: Sequence[Place] = ()) -> None:
        self.left = list(asked)
        self.waiting = set(attempts)

    def take(self, kind: Kind, what: str, value: object) -> Asked | None:
        """The first that is left and is just this."""
        for each in self.left:
            if (each.kind, each.what) == (kind, what) and first_difference(each.value, value) is None:
                self.left.remove(each)
                return each
        return None

    def near(self, kind: Kind, what: str) -> Asked | None:
        """The first that is left of what is asked otherwise now."""
        return next((each for each in self.left if (each.kind, each.what) == (kind, what)), None)


class Interview:
    """One attempt made again: what its handler asks now, against the transcript."""

    def __init__(self, transcript: Transcript, place: Place) -> None:
        self._transcript = transcript
        self._place = place
        self._others: list[tuple[Kind, str, object]] = []
        self._unrecorded: list[Departure] = []

    def ask(self, kind: Kind, what: str, given: msgspec.Raw) -> Asked | None:
        """What was asked then, if it was just this. If not, it is noted."""
        found = self.take(kind, what, given)
        if found is None:
            self.note(kind, what, given)
        return found

    def take(self, kind: Kind, what: str, given: msgspec.Raw) -> Asked | None:
        """The same, and nothing is noted."""
        return self._transcript.take(kind, what, msgspec.json.decode(given))

    def note(self, kind: Kind, what: str, given: msgspec.Raw) -> None:
        """This was not asked then."""
        self._others.append((kind, what, msgspec.json.decode(given)))

    def note_unrecorded(self, what: str) -> None:
        """Something was asked of which the log keeps nothing."""
        self._unrecorded.append(Departure(change="unrecorded", kind="work", what=what))

    def forget(self, kind: Kind, what: str) -> None:
        """The newest of what was noted of this was asked then, too."""
        index = max(place for place, each in enumerate(self._others) if each[:2] == (kind, what))
        del self._others[index]

    def near(self, kind: Kind, what: str) -> Asked | None:
        """The first that is left of what is asked otherwise now."""
        return self._transcript.near(kind, what)

    def like(self, kind: Kind, is_like: Callable[[str], bool]) -> list[str]:
        """What is left of this kind under names that are like what is looked for."""
        return [each.what for each in self._transcript.left if each.kind == kind and is_like(each.what)]

    def has(self, run: str) -> bool:
        """Whether this run is among what was asked, and is left."""
        return any(each.run == run and each.kind != "decision" for each in self._transcript.left)

    def departures(self) -> list[Departure]:
        """What is asked otherwise, when the handler is done. What is left is missed once all attempts that the commit
        started have been made again: before that, it may be another one's."""
        left = self._transcript.left
        self._transcript.waiting.discard(self._place)
        is_last = not self._transcript.waiting
        found = self._unrecorded
        for kind, what, value in self._others:
            then = self._transcript.near(kind, what) if is_last else None
            if then is None:
                found.append(Departure(change="more", kind=kind, what=what))
            else:
                left.remove(then)
                parting = first_difference(then.value, value)
                found.append(Departure(change="changed", kind=kind, what=what, given=parting))
        if is_last:
            # What looks like a decision may be what the rules have led to.
            missed = [each for each in left if each.kind != "decision"]
            found += [Departure(change="fewer", kind=each.kind, what=each.what) for each in missed]
            left.clear()
        return found
