"""Routes: how an operator shares a capability's work out among the versions of those who have it.

Pure. Which arm a piece of work gets is computed from what it sticks to and from the weights, so all who know of a route
decide the same without asking anybody, and the log keeps what was decided. A weight that grows takes work from the
other arms, and moves none between those.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping

import msgspec

from bus.format.subjects import routed
from bus.rules.events import Arm


class Share(msgspec.Struct, frozen=True):
    """One arm of a route: these versions (`1.*`, `>=1.2,<2`, `2.0.0`, `*`: all others) get as much as that weighs."""

    versions: str
    weight: float


class Route(msgspec.Struct, frozen=True):
    """The shares of a capability's work since its route has this revision, counted from 1."""

    capability: str
    shares: tuple[Share, ...]
    revision: int

    def has(self, versions: str) -> bool:
        """Whether these versions get any of the work."""
        return any(each.versions == versions and each.weight > 0 for each in self.shares)

    def part(self, versions: str) -> float:
        """How much of the work they get, 0 to 1."""
        found = sum(each.weight for each in self.shares if each.versions == versions)
        return found / sum(each.weight for each in self.shares)

    def chosen(self, sticky: str, without: Collection[str] = ()) -> str | None:
        """The versions that get the work that sticks to this; None: there are none but those it is to go `without`."""
        open_to = [each for each in self.shares if each.weight > 0 and each.versions not in without]
        if not open_to:
            return None
        # Weighted rendezvous: each share draws a number for itself, and the lowest for its weight wins.
        return min(
            open_to, key=lambda each: (-math.log(_drawn(sticky, each.versions)) / each.weight, each.versions)
        ).versions

    def arm(self, sticky: str, before: Arm | None = None, without: Collection[str] = ()) -> Arm | None:
        """Where work goes that sticks to this: to where it was, if that still gets work."""
        if before is not None and before.versions not in without and self.has(before.versions):
            return before
        versions = self.chosen(sticky, without)
        if versions is None:
            return None
        meant = before.versions if before is not None and before.versions in without else self.chosen(sticky)
        return Arm(versions, self.revision, instead_of=meant if meant is not None and meant in without else "")


Routes = Mapping[str, Route]
"""Those that stand, by capability."""
NO_ROUTES: Routes = {}


def need(capability: str, arm: Arm | None) -> str:
    """The capability that work is for: that of the versions it was given to, where a route has shared it out."""
    return capability if arm is None else routed(arm.versions, capability)


def _drawn(sticky: str, versions: str) -> float:
    """A number between 0 and 1, the same for the same two."""
    digest = hashlib.blake2b(f"{versions}\0{sticky}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64
