"""The roster: every instance there is and how it stands, folded from what instances say and what the log has.

An instance is live from its registration or its first answer on, suspected when two beats did not come, and
gone when the log says so: it ended, or somebody asked it in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from bus.registry.card import AgentDeregistered, AgentLost, Card, Offering, ended
from bus.registry.health import Level
from bus.registry.presence import Beat, Held, Load
from bus.registry.versions import fits

Status = Literal["live", "suspected", "draining", "quarantined", "gone"]
_SILENT_BEATS = 1.9
"""Suspected after this many beats' time: a frozen instance within two beats, one whose loop is a little late never."""


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of an agent: what is on its card, and its latest beat. `note` says why its status is what it is."""

    agent: str
    version: str
    instance: str
    host: str
    pid: int
    status: Status
    note: str = ""
    tags: tuple[str, ...] = ()
    capabilities: Mapping[str, Offering]
    load: Mapping[str, Load] = {}
    held: Sequence[Held] = ()
    lag_s: float = 0.0
    memory_mb: int = 0
    paused: Sequence[str] = ()
    health: Level = "healthy"
    standby: bool = False

    def matches(self, *, capability: str | None, version: str | None, tag: str | None) -> bool:
        """Whether it is one of those that are looked for; a tag may be the agent's, or that of a capability."""
        offered = [each for name, each in self.capabilities.items() if capability in (None, name)]
        tagged = tag is None or tag in self.tags or any(tag in each.tags for each in offered)
        return (bool(offered) or capability is None) and tagged and (version is None or fits(self.version, version))


class Change(msgspec.Struct, frozen=True):
    """An instance came, went, or stands otherwise than before; `before` is None when it came."""

    instance: Instance
    before: Status | None


def instance_of(card: Card, beat: Beat | None, status: Status | None = None, note: str = "") -> Instance:
    """An instance from its card and a beat; without one its status is what is told."""
    instance = Instance(
        agent=card.agent,
        version=card.version,
        instance=card.instance,
        host=card.host,
        pid=card.pid,
        status=status or "live",
        note=note,
        tags=card.tags,
        standby=card.standby,
        capabilities=card.capabilities,
    )
    return _with(instance, beat) if beat is not None else instance


class _Seen(msgspec.Struct):
    instance: Instance
    at_s: float
    every_s: float


class Roster:
    """Those that are there. `beat_s` is how often they beat who do not say otherwise; times are of a clock that never
    goes back."""

    def __init__(self, beat_s: float) -> None:
        self._beat_s = beat_s
        self._seen: dict[str, _Seen] = {}

    def found(self, instance: Instance, now_s: float) -> Iterator[Change]:
        """It is there."""
        seen = self._seen.get(instance.instance)
        if seen is None:
            self._seen[instance.instance] = _Seen(instance, now_s, self._beat_s)
            yield Change(instance, None)
        else:
            yield from _becomes(seen, instance, now_s)

    def came(self, card: Card, now_s: float, beat: Beat | None = None) -> Iterator[Change]:
        """It has registered."""
        return self.found(instance_of(card, beat), now_s)

    def heard(self, beat: Beat, at_s: float) -> Iterator[Change] | None:
        """A beat; None if its instance is not known here."""
        seen = self._seen.get(beat.instance)
        if seen is None:
            return None
        seen.every_s = beat.every_s or self._beat_s
        return _becomes(seen, _with(seen.instance, beat), at_s)

    def went(self, end: AgentDeregistered | AgentLost) -> Iterator[Change]:
        """The log says that it is gone."""
        seen = self._seen.pop(end.instance, None)
        if seen is not None:
            gone = msgspec.structs.replace(seen.instance, status="gone", note=ended(end), held=(), load={})
            yield Change(gone, seen.instance.status)

    def look(self, now_s: float) -> Iterator[Change]:
        """Who has been silent for too long by now."""
        for seen in self._seen.values():
            if seen.instance.status != "suspected" and is_silent(now_s - seen.at_s, seen.every_s):
                yield from _becomes(seen, suspected(seen.instance, now_s - seen.at_s), seen.at_s)


def is_silent(for_s: float, every_s: float) -> bool:
    """Whether somebody who beats that often should have been heard."""
    return for_s > every_s * _SILENT_BEATS


def suspected(instance: Instance, silent_s: float) -> Instance:
    """The instance, not heard for so long."""
    return msgspec.structs.replace(instance, status="suspected", note=f"not heard for {silent_s:.1f} s")


def _becomes(seen: _Seen, instance: Instance, at_s: float) -> Iterator[Change]:
    before, seen.instance, seen.at_s = seen.instance.status, instance, at_s
    if before != instance.status:
        yield Change(instance, before)


def _with(instance: Instance, beat: Beat) -> Instance:
    return msgspec.structs.replace(
        instance,
        status=beat.standing,
        note=beat.note,
        load=beat.capabilities,
        held=beat.held,
        lag_s=beat.lag_s,
        memory_mb=beat.memory_mb,
        paused=beat.paused,
        health=beat.health,
    )
