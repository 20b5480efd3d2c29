"""Who is meant by an order, who is found by a version, and how an instance stands: without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest

from bus import Agent
from bus.errors import InvalidName, MalformedMessage, SettingsError
from bus.format.envelope import envelope
from bus.registry.card import AgentDeregistered, AgentLost, Card, Offering, without_schemas
from bus.registry.orders import (
    AGENT_DRAINED,
    AGENT_QUARANTINED,
    AGENT_RELEASED,
    AgentDrained,
    AgentQuarantined,
    AgentReleased,
    Orders,
    Whom,
)
from bus.registry.presence import Beat
from bus.registry.roster import Roster, instance_of
from bus.registry.service import semantic
from bus.registry.versions import check_range, fits
from bus.worker.introduction import card

AT = datetime(2026, 1, 2, tzinfo=UTC)


def a_card(instance: str = "pricing-1", version: str = "1.2.0") -> Card:
    offered = {"price": Offering(concurrency=2, timeout_s=5, tags=("slow",))}
    return Card(
        agent="pricing",
        version=version,
        instance=instance,
        host="h",
        pid=1,
        tags=("eu",),
        capabilities=offered,
    )


def a_beat(**fields: object) -> Beat:
    return msgspec.structs.replace(Beat(agent="pricing", instance="pricing-1"), **fields)


@pytest.mark.parametrize(
    ("version", "wanted", "is_in"),
    [
        ("1.2.0", ">=1.2,<2", True),
        ("2.0.0", ">=1.2,<2", False),
        ("1.10", ">1.9", True),
        ("1.3.0-rc.1", ">=1.2,<2", False),
        ("1.3.0-rc.1", ">=1.3.0rc1", True),
        ("dev", ">=0", False),
        ("dev", "dev", True),
        ("1.2.0", "1.2", False),
        ("1.2.0", "==1.*", True),
    ],
)
def test_a_version_is_in_a_range_as_packages_are(version: str, wanted: str, is_in: bool) -> None:
    assert fits(version, check_range(wanted)) is is_in


@pytest.mark.parametrize("wanted", [">=", "<>1", ">=1.x", "", " "])
def test_what_is_no_range_is_refused(wanted: str) -> None:
    with pytest.raises(SettingsError):
        check_range(wanted)


@pytest.mark.parametrize(
    ("whom", "is_meant"),
    [
        (Whom("pricing"), True),
        (Whom("other"), False),
        (Whom("pricing", "pricing-1"), True),
        (Whom("pricing", "pricing-2"), False),
        (Whom("pricing", version="<1.3"), True),
        (Whom("pricing", version=">=1.3"), False),
    ],
)
def test_an_order_means_an_agent_an_instance_or_versions(whom: Whom, is_meant: bool) -> None:
    assert whom.names(a_card()) is is_meant


def test_a_quarantine_stands_until_exactly_it_is_released() -> None:
    orders = Orders()
    for position, (kind, said) in enumerate(
        [
            (AGENT_QUARANTINED, AgentQuarantined("ann", Whom("pricing"), "wrong prices")),
            (AGENT_QUARANTINED, AgentQuarantined("bob", Whom("pricing", version="<2"))),
            (AGENT_RELEASED, AgentReleased("ann", Whom("pricing"))),
            ("ops.something.v1", {}),
        ],
        1,
    ):
        orders.note(envelope(kind, said, id=str(position), source="test", time=AT), position)
    standing = orders.quarantine_of(a_card())
    assert (standing and standing.by, orders.position) == ("bob", 4)
    assert orders.quarantine_of(a_card(version="2.1")) is None


@pytest.mark.parametrize("said", [{"by": "eve"}, {"by": "eve", "whom": {"agent": "pricing", "version": ">="}}, None])
def test_an_order_that_makes_no_sense_is_set_aside_and_the_next_one_counts(said: object) -> None:
    orders = Orders()
    with pytest.raises(MalformedMessage):
        orders.note(envelope(AGENT_QUARANTINED, said, id="1", source="test", time=AT), 1)
    assert (orders.position, orders.quarantine_of(a_card())) == (1, None)


def test_a_drain_is_for_those_that_were_there() -> None:
    orders = Orders()
    said = AgentDrained("ann", Whom("pricing"))
    orders.note(envelope(AGENT_DRAINED, said, id="1", source="test", time=AT), 7)
    assert orders.drain_of(a_card(), after=6) == said
    assert orders.drain_of(a_card(), after=7) is None


def test_an_instance_is_suspected_within_two_beats_and_live_again_with_the_next() -> None:
    roster = Roster(beat_s=1.0)
    (came,) = roster.came(a_card(), 0.0)
    assert (came.instance.status, came.before) == ("live", None)
    assert not list(roster.look(1.5))
    (silent,) = roster.look(1.95)
    assert (silent.instance.status, silent.before) == ("suspected", "live")
    assert not list(roster.look(9.0))
    (back,) = roster.heard(a_beat(), 9.1) or ()
    assert (back.instance.status, back.before) == ("live", "suspected")


def test_an_instance_that_beats_less_often_is_suspected_within_two_of_its_own_beats() -> None:
    roster = Roster(beat_s=1.0)
    list(roster.came(a_card(), 0.0, a_beat()))
    list(roster.heard(a_beat(every_s=3.0), 1.0) or ())
    assert not list(roster.look(6.0))
    (silent,) = roster.look(6.8)
    assert (silent.instance.status, silent.instance.note) == ("suspected", "not heard for 5.8 s")
    list(roster.heard(a_beat(), 7.0) or ())
    assert list(roster.look(9.0))


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (AgentDeregistered("pricing", "pricing-1", "drained by ann"), "drained by ann"),
        (AgentLost("pricing", "pricing-1", "crashed", "its connection closed", 0), "crashed: its connection closed"),
    ],
)
def test_an_instance_is_gone_when_the_log_says_so(end: AgentDeregistered | AgentLost, note: str) -> None:
    roster = Roster(beat_s=1.0)
    list(roster.came(a_card(), 0.0, a_beat(standing="draining")))
    (gone,) = roster.went(end)
    assert (gone.instance.status, gone.before, gone.instance.note) == ("gone", "draining", note)
    assert not list(roster.went(end))
    assert roster.heard(a_beat(), 0.1) is None


def test_a_tag_is_the_agents_or_that_of_the_capability_that_is_looked_for() -> None:
    one = instance_of(a_card(), None)
    assert one.matches(capability="price", version=None, tag="eu")
    assert one.matches(capability="price", version=">=1", tag="slow")
    assert not one.matches(capability="other", version=None, tag="eu")
    assert not one.matches(capability=None, version=None, tag="us")


def test_a_card_has_the_schemas_and_what_is_told_to_all_has_not() -> None:
    agent = Agent("pricing", version="1.2.0", tags=["eu"])

    @agent.capability("price", tags=["slow"], concurrency=3)
    async def price(query: dict[str, int]) -> list[str]:
        return list(query)

    whole = card(agent, "pricing-1", "h", 1)
    offering = whole.capabilities["price"]
    assert (offering.concurrency, offering.tags, whole.tags) == (3, ("slow",), ("eu",))
    assert msgspec.json.decode(bytes(offering.gives)) == {"type": "array", "items": {"type": "string"}}  # type: ignore[arg-type]
    bare = without_schemas(whole).capabilities["price"]
    assert bare.takes is msgspec.UNSET and bare.gives is msgspec.UNSET


def test_tags_are_names() -> None:
    with pytest.raises(SettingsError, match="several"):
        Agent("pricing", tags="eu")
    with pytest.raises(InvalidName):
        Agent("pricing", tags=["a b"])


def test_a_lifespan_yields_once_and_there_is_one() -> None:
    agent = Agent("pricing")

    @agent.lifespan()
    async def opened() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(SettingsError, match="two lifespans"):
        agent.lifespan()(opened)

    async def no_generator() -> AsyncIterator[int]:
        raise NotImplementedError

    with pytest.raises(SettingsError, match="yields once"):
        Agent("other").lifespan()(no_generator)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "is_told_as"),
    [("1.2.3", "1.2.3"), ("1", "1.0.0"), ("1.2-rc.1", "1.2.0-rc.1"), ("01.2", "1.2.0"), ("dev 7", "0.0.0+dev-7")],
)
def test_the_service_protocol_gets_three_numbers(version: str, is_told_as: str) -> None:
    assert semantic(version) == is_told_as
