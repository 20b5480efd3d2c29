from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
import pytest

from bus.errors import InvalidName, SettingsError
from bus.handlers.agent import Agent
from bus.handlers.context import Context


class Price(msgspec.Struct):
    sku: str


async def price(query: Price, context: Context) -> int:
    return len(query.sku + context.phase)


def test_a_declared_handler_is_still_the_same_function() -> None:
    agent = Agent("pricing", version="1.2.0")
    assert agent.capability("price")(price) is price
    declared = agent.capabilities["price"]
    assert (declared.name, declared.handler, declared.takes, declared.gives) == ("price", price, Price, int)
    assert (declared.wants_context, declared.is_async) == (True, True)


async def test_a_handler_can_be_called_in_a_unit_test() -> None:
    assert await price(Price("A-7"), Context()) == len("A-7phase")
    await Context().progress(0.5, "nobody listens")


def test_a_plain_function_runs_in_a_thread_and_needs_no_annotations() -> None:
    agent = Agent("pricing")

    @agent.capability("price.quick", timeout_s=1.0, concurrency=4)
    def quick(query):  # type: ignore[no-untyped-def]
        return query

    declared = agent.capabilities["price.quick"]
    assert (declared.takes, declared.gives, declared.is_async, declared.wants_context) == (Any, Any, False, False)
    assert (declared.timeout_s, declared.concurrency) == (1.0, 4)


def test_object_means_anything_wherever_it_stands() -> None:
    agent = Agent("pricing")

    def echo(query: dict[str, object]) -> list[object]:
        return list(query)

    agent.capability("echo")(echo)
    assert msgspec.convert({"a": [1]}, agent.capabilities["echo"].takes) == {"a": [1]}


@pytest.mark.parametrize("name", ["", "a.b", "Pricing", "a b", "*", "x" * 64])
def test_an_agent_has_a_name_that_can_be_part_of_a_subject(name: str) -> None:
    with pytest.raises(InvalidName, match="agent"):
        Agent(name)


@pytest.mark.parametrize("name", ["", "a..b", "Price", "a b", "price.*"])
def test_a_capability_is_a_dotted_name(name: str) -> None:
    with pytest.raises(InvalidName, match="capability"):
        Agent("pricing").capability(name)


def test_a_capability_is_declared_once() -> None:
    agent = Agent("pricing")
    agent.capability("price")(price)
    with pytest.raises(SettingsError, match="'pricing' has capability 'price' twice"):
        agent.capability("price")


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_capability_has_a_bound_that_a_clock_can_reach(timeout_s: float) -> None:
    with pytest.raises(SettingsError, match="timeout_s"):
        Agent("pricing").capability("price", timeout_s=timeout_s)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_capability_serves_at_least_one_at_a_time(concurrency: int) -> None:
    with pytest.raises(SettingsError, match="concurrency"):
        Agent("pricing").capability("price", concurrency=concurrency)


def takes_nothing() -> None: ...


def takes_three(_a: int, _b: Context, _c: int) -> None: ...


def takes_the_context_by_name(_query: int, *, context: Context) -> None: ...


def takes_no_json(_query: Callable[[], None]) -> None: ...


def gives_no_json(_query: int) -> AsyncIterator[int]:
    raise NotImplementedError


async def gives_many(_query: int):  # type: ignore[no-untyped-def]
    yield 1


def takes_an_unknown_type(_query: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


def takes_an_unknown_member(_query: datetime.missing) -> None:  # type: ignore[name-defined]
    ...


REFUSED = [
    takes_nothing,
    takes_three,
    takes_the_context_by_name,
    takes_no_json,
    gives_no_json,
    gives_many,
    takes_an_unknown_type,
    takes_an_unknown_member,
]


@pytest.mark.parametrize("handler", REFUSED, ids=lambda handler: handler.__name__)
def test_a_handler_that_can_not_work_is_refused_when_it_is_declared(handler: Callable[..., Any]) -> None:
    with pytest.raises(SettingsError, match="handler of 'price'"):
        Agent("pricing").capability("price")(handler)


def scaled(factor: int, query: int) -> int:
    return factor * query


class Scale:
    def __call__(self, query: int) -> int:
        return 2 * query


@pytest.mark.parametrize("handler", [partial(scaled, 2), Scale(), Scale().__call__])
def test_what_can_be_called_can_be_a_handler(handler: Callable[..., Any]) -> None:
    agent = Agent("pricing")
    agent.capability("scale")(handler)
    assert agent.capabilities["scale"].call(3, Context()) == 6


def test_the_effect_key_is_the_same_for_every_attempt_of_one_piece_of_work() -> None:
    keys = {Context(run="r", phase="p", item=2, attempt=attempt).effect_key for attempt in range(1, 9)}
    assert keys == {"r/p:2"}
    assert Context(run="r", phase="p").effect_key == "r/p"


def test_what_bounds_a_handler_is_kept_with_it() -> None:
    agent = Agent("pricing")
    agent.capability("price", silence_s=5.0, isolation="process", memory_mb=512)(price)
    declared = agent.capabilities["price"]
    assert (declared.silence_s, declared.isolation, declared.memory_mb) == (5.0, "process", 512)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 1.5}, "concurrency is 1.5, it must be a number from 1 on"),
        ({"silence_s": 0.0}, "silence_s"),
        ({"silence_s": float("nan")}, "silence_s"),
        ({"isolation": "thread"}, "isolation is 'process' or None, not 'thread'"),
        ({"isolation": "process", "memory_mb": 0}, "memory_mb"),
        ({"memory_mb": 100}, "memory_mb must be 1 or more, and needs isolation='process'"),
    ],
)
def test_bounds_that_can_not_be_kept_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Agent("pricing").capability("price", **options)


def test_what_happens_after_a_death_is_skip_pause_or_park() -> None:
    agent = Agent("a")
    agent.capability("x", on_dead="pause")(lambda value: value)
    assert agent.capabilities["x"].on_dead == "pause"
    with pytest.raises(SettingsError, match="on_dead is 'skip', 'pause' or 'park', not 'stop'"):
        agent.capability("y", on_dead="stop")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="ordered=True"):
        agent.capability("y", on_dead="park")


def test_a_capability_without_its_parentheses_is_told_how_to_write_it() -> None:
    with pytest.raises(SettingsError, match=r"@agent.capability\('name'\)"):
        Agent("a").capability(lambda value: value)  # type: ignore[arg-type]
