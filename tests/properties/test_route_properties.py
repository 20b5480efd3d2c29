"""Properties of the split: the weights hold, the same goes the same way, and a weight that grows only takes."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.registry.versions import closest
from bus.rules.events import Arm
from bus.rules.route import Route, Share

RANGES = ("1.*", "2.0.0", ">=3,<4", "*", "5.1.0")
weights = st.dictionaries(st.sampled_from(RANGES), st.floats(0.01, 1000), min_size=1)
keys = [f"customer-{number}" for number in range(4_000)]


def route(weights: dict[str, float]) -> Route:
    return Route("price", tuple(Share(*each) for each in weights.items()), 1)


@given(weights)
def test_each_arm_gets_its_part(weights: dict[str, float]) -> None:
    split = route(weights)
    got = Counter(split.chosen(key) for key in keys)
    for versions in weights:
        part = split.part(versions)
        # Six standard deviations: once in a thousand million times by chance.
        assert abs(got[versions] - part * len(keys)) <= 6 * math.sqrt(len(keys) * part * (1 - part)) + 1


@given(weights, st.text(), st.randoms())
def test_the_same_goes_the_same_way_whoever_asks_and_however_the_route_is_written(
    weights: dict[str, float], sticky: str, random: object
) -> None:
    again = list(weights.items())
    random.shuffle(again)  # type: ignore[attr-defined]
    assert route(weights).chosen(sticky) == route(dict(again)).chosen(sticky)
    tenfold = {versions: weight * 10 for versions, weight in weights.items()}
    assert route(weights).chosen(sticky) == route(tenfold).chosen(sticky)


@given(weights, st.sampled_from(RANGES), st.floats(1, 100))
def test_a_weight_that_grows_only_takes_from_the_others(weights: dict[str, float], grown: str, times: float) -> None:
    before = route(weights)
    after = route(weights | {grown: weights.get(grown, 1.0) * times})
    for key in keys[:300]:
        was, now = before.chosen(key), after.chosen(key)
        assert now in (was, grown)


@given(weights, st.text())
def test_who_has_left_leaves_all_others_where_they_were(weights: dict[str, float], sticky: str) -> None:
    split = route(weights)
    chosen = split.chosen(sticky)
    for gone in weights:
        found = split.chosen(sticky, without=[gone])
        assert found == chosen if gone != chosen else found != chosen
    assert split.chosen(sticky, without=list(weights)) is None


@pytest.mark.parametrize("shares", [(5, 20, 50, 100)])
def test_a_canary_keeps_whom_it_has_while_it_is_widened(shares: tuple[int, ...]) -> None:
    routes = [route({"1.*": 100 - share, "2.0.0": share}) if share < 100 else route({"2.0.0": 1}) for share in shares]
    had = [{key for key in keys if each.chosen(key) == "2.0.0"} for each in routes]
    assert all(less < more for less, more in pairwise(had))


@given(weights, st.sampled_from(RANGES), st.text())
def test_an_attempt_after_the_first_goes_where_that_went_as_long_as_that_gets_work(
    weights: dict[str, float], versions: str, sticky: str
) -> None:
    split, before = route(weights), Arm(versions, 7)
    found = split.arm(sticky, before)
    assert found == (before if versions in weights else Arm(split.chosen(sticky) or "", 1))


@given(st.lists(st.sampled_from(RANGES), unique=True), st.sampled_from(["1.0", "2.0.0", "3.5", "5.1.0", "dev"]))
def test_a_version_belongs_to_one_arm_at_most(ranges: list[str], version: str) -> None:
    found = closest(version, ranges)
    named = [each for each in ranges if each == version]
    assert found in ranges or found is None
    assert not named or found == version
    assert (found == "*") == ("*" in ranges and all(closest(version, [each]) is None for each in ranges if each != "*"))
