"""What operators said of routes: how a capability's work is shared out among versions, since when, who said so and why.

Each capability has a subject of its own, `bus.ops.route.<capability>`; the newest record there is what stands. It is
stored at the position that its maker had seen, so nobody undoes unknowingly what somebody else has just done.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from bus.errors import MalformedMessage, SettingsError
from bus.format.envelope import Envelope, decode_data
from bus.format.subjects import capability as checked
from bus.format.subjects import is_own, mailbox, routed
from bus.registry.versions import check_range
from bus.rules.route import Route, Share

ROUTE_SET = "ops.route_set.v1"
ROUTE_REMOVED = "ops.route_removed.v1"
_MOST = 20


class RouteSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """From revision `revision` on, counted from 1, the capability's work is shared out like this."""

    by: str
    capability: str
    shares: tuple[Share, ...]
    revision: int
    reason: str = ""


class RouteRemoved(msgspec.Struct, frozen=True, omit_defaults=True):
    """The capability's work is for anybody who has it again, since `revision`."""

    by: str
    capability: str
    revision: int
    reason: str = ""


class Turn(msgspec.Struct, frozen=True):
    """One revision of a capability's route: who made it so, when and why; without `route` there is none since then."""

    capability: str
    revision: int
    by: str
    at: datetime
    reason: str
    route: Route | None
    position: int


_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    ROUTE_SET: msgspec.json.Decoder(RouteSet),
    ROUTE_REMOVED: msgspec.json.Decoder(RouteRemoved),
}


def shares_of(capability: str, weights: Mapping[str, float]) -> tuple[Share, ...]:
    """What a route may say of a capability. Raises SettingsError, InvalidName."""
    if is_own(checked(capability)) and (capability == mailbox(capability.split(".")[1]) or ".on." not in capability):
        raise SettingsError(f"{capability!r} is for one agent or instance by name: its work has no other way to go")
    shares = tuple(Share(check_range(versions.strip()), float(weight)) for versions, weight in weights.items())
    for each in shares:
        routed(each.versions, capability)
        if not 0 <= each.weight < float("inf"):
            raise SettingsError(f"a weight is 0 or more: {each.versions!r} has {each.weight:g}")
    if not any(each.weight > 0 for each in shares) or len(shares) > _MOST:
        raise SettingsError(f"a route has 1 to {_MOST} ranges of versions, and a weight over 0: '1.*=95' '2.0.0=5'")
    return shares


def turn(message: Envelope, position: int) -> Turn | None:
    """What a record says of a route, None if it says something else. Raises MalformedMessage."""
    decoder = _decoders.get(message.type)
    said = decode_data(message, decoder, "a route") if decoder is not None else None
    if not isinstance(said, RouteSet | RouteRemoved):
        return None
    route: Route | None = None
    if isinstance(said, RouteSet):
        try:
            weights = {each.versions: each.weight for each in said.shares}
            route = Route(said.capability, shares_of(said.capability, weights), said.revision)
        except (SettingsError, ValueError) as error:
            raise MalformedMessage(f"position {position}, a route: {error}") from error
    return Turn(said.capability, said.revision, said.by, message.time, said.reason, route, position)
