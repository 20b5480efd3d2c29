from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bus.rules.references import Ref, Unresolved, as_ref, follow, ref, references, resolve

DATA: dict[str, Any] = {
    "input": {"path": "src", "nothing": None, "0": "zero"},
    "scan": {"modules": [{"name": "a"}, {"name": "b"}], "count": 2},
    "-8": [1, 2],
}


def root(name: str) -> Any:
    return DATA[name]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("input", DATA["input"]),
        ("input.path", "src"),
        ("input.nothing", None),
        ("input.0", "zero"),
        ("scan.modules.1.name", "b"),
        ("scan.count", 2),
        ("-8.0", 1),
    ],
)
def test_a_reference_leads_to_a_value(path: str, value: object) -> None:
    assert follow(ref(path), root) == value


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("input.missing", "an object with 0, nothing, path has no 'missing'"),
        ("input.nothing.x", "None has no 'x'"),
        ("input.path.x", "'src' has no 'x'"),
        ("input.path.0", "'src' has no '0'"),
        ("scan.count.x", "2 has no 'x'"),
        ("scan.modules.2", "a list of 2 has no '2'"),
        ("scan.modules.name", "a list of 2 has no 'name'"),
        ("scan.", "an object with count, modules has no ''"),
        ("scan.modules.-1", "a list of 2 has no '-1'"),
        ("scan.modules.\uff11", "a list of 2 has no '\uff11'"),
        ("scan.modules.0_1", "a list of 2 has no '0_1'"),
    ],
)
def test_a_reference_that_leads_nowhere_says_where_it_broke(path: str, shape: str) -> None:
    with pytest.raises(Unresolved) as caught:
        follow(ref(path), root)
    assert str(caught.value) == f"{path!r} leads nowhere: {shape}"


def test_references_are_replaced_wherever_they_stand() -> None:
    template = {"a": {"ref": "input.path"}, "b": [1, {"ref": "scan.count"}, {"c": {"ref": "-8.1"}}], "d": "ref"}
    assert resolve(template, root) == {"a": "src", "b": [1, 2, {"c": 2}], "d": "ref"}


def test_a_whole_input_may_be_one_reference() -> None:
    assert resolve({"ref": "scan.modules"}, root) == DATA["scan"]["modules"]


def test_what_a_reference_points_to_is_not_searched_for_references() -> None:
    """Data is data: a handler's output can't reach into the run."""
    assert resolve({"ref": "x"}, lambda _: {"ref": "input.path"}) == {"ref": "input.path"}


def test_the_template_is_left_as_it_is() -> None:
    template = {"a": [{"ref": "input.path"}]}
    resolve(template, root)
    assert template == {"a": [{"ref": "input.path"}]}


@pytest.mark.parametrize("value", [{"ref": 1}, {"ref": None}, {"ref": "a", "x": 1}, {"Ref": "a"}, ["ref"], "ref", None])
def test_anything_else_is_not_a_reference(value: object) -> None:
    assert as_ref(value) is None
    assert list(references(value)) == []


def test_every_reference_is_found_in_order() -> None:
    template = {"a": {"ref": "x"}, "b": [{"ref": "y.z"}, {"c": {"ref": "x"}}]}
    assert list(references(template)) == [Ref("x"), Ref("y.z"), Ref("x")]


def test_a_reference_has_a_root_and_steps() -> None:
    assert (ref("scan.modules.0").root, ref("scan.modules.0").steps) == ("scan", ["modules", "0"])
    assert (ref("scan").root, ref("scan").steps) == ("scan", [])


def test_a_reference_is_written_as_an_object_with_one_member() -> None:
    assert msgspec.json.encode(ref("a.b")) == b'{"ref":"a.b"}'
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"ref":"a.b","x":1}', type=Ref)
