"""Orders of operators to instances: end in good order, take nothing more, take work again. Each with who and why.

They stand in the log on `bus.ops.agents`; what an instance hears of them is a reason to look there. A quarantine
stands until it is released, so it also holds for what starts later; a drain is for those that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Protocol

import msgspec

from bus.errors import MalformedMessage, SettingsError
from bus.format.envelope import Envelope, decode_data
from bus.registry.versions import check_range, fits

AREA = "agents"
AGENT_DRAINED = "ops.agent_drained.v1"
AGENT_QUARANTINED = "ops.agent_quarantined.v1"
AGENT_RELEASED = "ops.agent_released.v1"


class Named(Protocol):
    """An instance: its card, or what the roster has of it."""

    @property
    def agent(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def version(self) -> str: ...


class Whom(msgspec.Struct, frozen=True, omit_defaults=True):
    """All instances of an agent, or one, or those of a version or a range of them."""

    agent: str
    instance: str | None = None
    version: str | None = None

    def names(self, one: Named) -> bool:
        """Whether the instance is meant."""
        return (
            one.agent == self.agent
            and self.instance in (None, one.instance)
            and (self.version is None or fits(one.version, self.version))
        )

    def __str__(self) -> str:
        return self.instance or (f"{self.agent} {self.version}" if self.version is not None else self.agent)


class _Order(msgspec.Struct, frozen=True, omit_defaults=True):
    by: str
    whom: Whom
    reason: str = ""


class AgentDrained(_Order, frozen=True):
    """Those that are there finish what they have begun, and end."""


class AgentQuarantined(_Order, frozen=True):
    """They go on running, finish what they have begun, and take nothing more; so does what starts later."""


class AgentReleased(_Order, frozen=True):
    """The quarantine of exactly these is over."""


class Quarantine(msgspec.Struct, frozen=True):
    """A quarantine that stands."""

    whom: Whom
    by: str
    reason: str
    since: datetime
    position: int


_TYPES: dict[str, type[_Order]] = {
    AGENT_DRAINED: AgentDrained,
    AGENT_QUARANTINED: AgentQuarantined,
    AGENT_RELEASED: AgentReleased,
}
_decoders: dict[str, msgspec.json.Decoder[Any]] = {wire: msgspec.json.Decoder(type) for wire, type in _TYPES.items()}
Order = AgentDrained | AgentQuarantined | AgentReleased


def read_order(message: Envelope) -> Order | None:
    """The order in a message, None if it is something else. Raises MalformedMessage."""
    decoder = _decoders.get(message.type)
    order: Order | None = None if decoder is None else decode_data(message, decoder, "an order to agents")
    if order is not None and order.whom.version is not None:
        try:
            check_range(order.whom.version)
        except SettingsError as error:
            raise MalformedMessage(f"an order to agents: {error}") from error
    return order


class Orders:
    """What stands, folded from the log in order. `position` is how far."""

    def __init__(self) -> None:
        self.position = 0
        self._quarantines: dict[Whom, Quarantine] = {}
        self._drains: list[tuple[int, AgentDrained]] = []

    def note(self, message: Envelope, position: int) -> None:
        """Raises MalformedMessage."""
        self.position = position
        match read_order(message):
            case AgentQuarantined() as said:
                # Said once more, it is as old as it was; who and why are the latest.
                since = self._quarantines[said.whom].since if said.whom in self._quarantines else message.time
                self._quarantines[said.whom] = Quarantine(said.whom, said.by, said.reason, since, position)
            case AgentReleased() as said:
                self._quarantines.pop(said.whom, None)
            case AgentDrained() as said:
                self._drains.append((position, said))

    @property
    def quarantines(self) -> list[Quarantine]:
        return list(self._quarantines.values())

    def quarantine_of(self, one: Named) -> Quarantine | None:
        """The first quarantine that the instance is in."""
        return next((each for each in self._quarantines.values() if each.whom.names(one)), None)

    def drain_of(self, one: Named, *, after: int) -> AgentDrained | None:
        """The first drain after a position that the instance is meant by."""
        return next(self._drained(one, after), None)

    def _drained(self, one: Named, after: int) -> Iterator[AgentDrained]:
        return (said for position, said in self._drains if position > after and said.whom.names(one))
