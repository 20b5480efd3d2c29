from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.errors import PlanError
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import Ref, ref
from bus.rules.retry import Retry, RetryPolicy
from bus.runs.planfile import read_plan


def plan(*phases: Phase, **changes: Any) -> Plan:
    return Plan(**{"name": "release", "phases": list(phases), **changes})


def work(key: str | int = "a", capability: str | None = "do", **changes: Any) -> Phase:
    return Phase(key, capability, **changes)


REFUSALS: list[tuple[Callable[[], Plan], str]] = [
    (plan, "plan 'release' has no phases"),
    (lambda: plan(work(), name="Release 1"), "plan 'Release 1' is not a name"),
    (lambda: plan(work(), version=""), "plan 'release' has an empty version"),
    (lambda: plan(work(), timeout_s=0), "plan 'release': timeout_s is 0, it must be over 0"),
    (lambda: plan(work(), timeout_s=-1.0), "plan 'release': timeout_s is -1.0, it must be over 0"),
    (lambda: plan(work(), timeout_s=float("nan")), "plan 'release': timeout_s is nan, it must be over 0"),
    (lambda: plan(work("a.b")), "plan 'release': phase key 'a.b' is not a name or a number"),
    (lambda: plan(work("")), "plan 'release': phase key '' is not a name or a number"),
    (lambda: plan(work("input")), "plan 'release': a phase can't be called 'input', references use that word"),
    (lambda: plan(work("item")), "plan 'release': a phase can't be called 'item', references use that word"),
    (lambda: plan(work("a"), work("a")), "plan 'release' has two phases 'a'"),
    (lambda: plan(work(-8), work("-8")), "plan 'release' has two phases '-8'"),
    (lambda: plan(work(capability=None)), "phase 'a': give it one of a capability, an approval, a wait_for and a plan"),
    (
        lambda: plan(work(approval=Approval())),
        "phase 'a': give it one of a capability, an approval, a wait_for and a plan",
    ),
    (lambda: plan(work(capability="Do it")), "phase 'a': capability 'Do it' is not a dotted name"),
    (lambda: plan(Phase("a", approval=Approval(), input={})), "phase 'a': a gate has no input and no each"),
    (lambda: plan(Phase("a", approval=Approval(), each="input")), "phase 'a': a gate has no input and no each"),
    (lambda: plan(work(width=2)), "phase 'a': width is 2, it must be 1 or more and goes with each"),
    (lambda: plan(work(each="input", width=0)), "phase 'a': width is 0, it must be 1 or more"),
    (lambda: plan(work(timeout_s=0.0)), "phase 'a': timeout_s is 0.0, it must be over 0"),
    (lambda: plan(work(timeout_s=-5.0)), "phase 'a': timeout_s is -5.0, it must be over 0"),
    (lambda: plan(work(timeout_s=float("nan"))), "phase 'a': timeout_s is nan, it must be over 0"),
    (lambda: plan(work(timeout_s=float("inf"))), "phase 'a': timeout_s is inf, it must be over 0"),
    (lambda: plan(work(queue_timeout_s=0.0)), "phase 'a': queue_timeout_s is 0.0, it must be over 0"),
    (
        lambda: plan(Phase("a", approval=Approval(expires_s=0.0))),
        "phase 'a': approval.expires_s is 0.0, it must be over 0",
    ),
    (lambda: plan(work(after=["b"])), "phase 'a': after names 'b', but there is no such phase"),
    (lambda: plan(work(after=[-8])), "phase 'a': after names '-8', but there is no such phase"),
    (lambda: plan(work(input={"x": ref("b.lines")})), "phase 'a': reference 'b.lines' leads to no phase"),
    (lambda: plan(work(each=ref("b.lines"))), "phase 'a': reference 'b.lines' leads to no phase"),
    (lambda: plan(work(input=[{"x": [ref("")]}])), "phase 'a': reference '' leads to no phase"),
    (lambda: plan(work(input=ref("item.name"))), "phase 'a': reference 'item.name' needs an each"),
    (lambda: plan(work(each="item.parts")), "phase 'a': reference 'item.parts' needs an each"),
    (lambda: plan(work(after=["a"])), "plan 'release' has a cycle: a -> a"),
    (lambda: plan(work(input=ref("a.x"))), "plan 'release' has a cycle: a -> a"),
]


@pytest.mark.parametrize(("make", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
def test_a_plan_that_can_not_work_is_refused_by_name(make: Callable[[], Plan], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        make()
    assert said in str(caught.value)
    if said.startswith("phase"):
        assert str(caught.value).startswith("plan 'release', phase 'a': ")


def test_a_cycle_is_refused_and_spelled_out() -> None:
    with pytest.raises(PlanError, match=r"a cycle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)"):
        plan(work("a", after=["b"]), work("b", input=ref("c.x")), work("c", each="a.list"))


def test_a_reference_to_an_approval_is_refused() -> None:
    """A gate has no output, so the reference would lead nowhere on the day somebody approves."""
    with pytest.raises(PlanError, match=r"phase 'a'.*'gate'"):
        plan(Phase("gate", approval=Approval()), work(input={"by": ref("gate.by")}))


@pytest.mark.parametrize("bound_s", [float("inf"), 1e300])
def test_a_bound_that_no_clock_can_reach_is_refused(bound_s: float) -> None:
    makers: list[Callable[[], Plan]] = [
        lambda: plan(work(), timeout_s=bound_s),
        lambda: plan(work(timeout_s=bound_s)),
        lambda: plan(work(queue_timeout_s=bound_s)),
        lambda: plan(Phase("a", approval=Approval(expires_s=bound_s))),
    ]
    for make in makers:
        with pytest.raises(PlanError, match=r"timeout_s|expires_s"):
            make()


WRONG_TYPES: dict[str, Callable[[], Plan]] = {
    "a version that is a number": lambda: plan(work(), version=1),
    "a run's bound that is text": lambda: plan(work(), timeout_s="60"),
    "no list of phases": lambda: plan(work(), phases=None),
    "a key with a fraction": lambda: plan(work(1.5)),  # type: ignore[arg-type]
    "a capability that is a number": lambda: plan(work(capability=5)),  # type: ignore[arg-type]
    "a bound that is text": lambda: plan(work(timeout_s="60")),
    "a bound that is a truth value": lambda: plan(work(timeout_s=True)),
    "no queue bound": lambda: plan(work(queue_timeout_s=None)),
    "a width with a fraction": lambda: plan(work(each="input", width=2.5)),
    "an each that is a list": lambda: plan(work(each=["input"])),
    "an after that is nothing": lambda: plan(work(after=None)),
    "a delay for a retry policy": lambda: plan(work(retry=Retry(2.5))),
    "a table for a retry policy": lambda: plan(work(retry={"transient": 5})),
    "an input that is not JSON": lambda: plan(work(input=object())),
    "an input with a lone surrogate": lambda: plan(work(input="\ud800")),
    "an approval that is a truth value": lambda: plan(Phase("a", approval=True)),  # type: ignore[arg-type]
    "an answer with a slip of the pen": lambda: plan(
        Phase("a", approval=Approval(on_expiry="aprove"))  # type: ignore[arg-type]
    ),
    "a prompt that is nothing": lambda: plan(Phase("a", approval=Approval(prompt=None))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", WRONG_TYPES)
def test_a_value_of_a_wrong_type_is_refused_before_it_is_stored(what: str) -> None:
    """Otherwise it reaches the log, where nobody can read it back: the whole run would be lost."""
    with pytest.raises(PlanError):
        WRONG_TYPES[what]()


def test_a_plan_is_checked_also_if_one_that_only_differs_in_what_follows_a_failure_was() -> None:
    """What was checked before is known by what it says, all of it."""
    plan(work())
    with pytest.raises(PlanError, match="on_failure"):
        plan(work(), on_failure="undo")
    with pytest.raises(PlanError, match="no phase has a compensate"):
        plan(work(), on_failure="rollback")


def test_a_phase_is_a_phase_also_if_the_same_as_a_table_was_checked_before() -> None:
    plan(work())
    with pytest.raises(PlanError, match=r"a phase is a Phase, not \{'key': 'a'"):
        plan({"key": "a", "capability": "do"})  # type: ignore[arg-type]


WHERE: list[tuple[Callable[[], Plan], str]] = [
    (lambda: plan(work(timeout_s="60")), "plan 'release', phase 'a': timeout_s: Expected `float | null`, got `str`"),
    (lambda: plan(work("b"), work(each=["b"])), "plan 'release', phase 'a': each: Expected"),
    (lambda: plan(Phase("a", approval=True)), "plan 'release', phase 'a': approval: Expected"),  # type: ignore[arg-type]
    (lambda: plan(work("b"), work(after=[work("b")])), "plan 'release', phase 'a': after holds keys of phases, not"),
    (lambda: plan(work(retry=Retry(2.5))), "phase 'a': Retry(seconds) is what a handler raises"),
]


@pytest.mark.parametrize(("make", "said"), WHERE, ids=[said for _, said in WHERE])
def test_a_value_of_a_wrong_type_is_told_with_its_phase_and_its_field(make: Callable[[], Plan], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_an_input_nested_too_deep_is_refused(depth: int) -> None:
    nested: object = "x"
    for _ in range(depth):
        nested = [nested]
    with pytest.raises(PlanError):
        plan(work(input=nested))


def test_a_word_in_after_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(PlanError, match="after"):
        plan(work("b"), work("c"), work("a", after="bc"))


def test_a_reference_to_a_phase_with_a_number_is_written_as_the_number() -> None:
    """It was taken for a table with a member called `ref`, and handed to the handler as that."""
    made = plan(Phase(-1, "list"), work("a", input=ref(-1)))
    assert made.graph["a"].needs == ("-1",)


def test_references_are_dependencies() -> None:
    graph = plan(
        work("list"),
        work("other"),
        work("a", each=ref("list.files"), input={"x": [ref("item.name"), {"y": ref("other.z")}], "p": ref("input.p")}),
        work("last", after=["a", "list", "a"]),
    ).graph
    assert graph["a"].needs == ("list", "other")
    assert graph["list"].feeds == ("a", "last")
    assert graph["last"].needs == ("a", "list")


def test_the_graph_keeps_the_author_s_order() -> None:
    assert list(plan(work("z", after=["a"]), work("a"), work(-8), work(0)).graph) == ["z", "a", "-8", "0"]


def test_negative_keys_can_be_waited_for_and_referred_to() -> None:
    graph = plan(work(-8), work(0, after=[-8]), work("end", input=ref("-8.lines"), after=["0"])).graph
    assert graph["-8"].feeds == ("0", "end")
    assert graph["end"].needs == ("0", "-8")


def test_every_needed_capability_is_named_once() -> None:
    made = plan(work("a", "x"), work("b", "y"), work("c", "x"), Phase("g", approval=Approval()))
    assert made.capabilities == ["x", "y"]


FULL = plan(
    work(-8, "git.collect", input={"path": ref("input.path"), "deep": [1, 2.5, None, True, {"x": "\u00e9"}]}),
    work("a", "code.analyse", each=ref("-8.files"), width=8, timeout_s=120.0, queue_timeout_s=60.0),
    work("b", "text.write", after=["a"], retry=RetryPolicy(transient=5, max_s=10.0)),
    Phase("review", approval=Approval(expires_s=60.0, on_expiry="approve", prompt="good?"), after=["b", -8]),
    version="2",
    timeout_s=3600.0,
)


def test_a_plan_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(FULL), type=Plan) == FULL


def test_a_plan_survives_toml_like_builtins() -> None:
    assert msgspec.convert(msgspec.to_builtins(FULL), Plan) == FULL


def test_a_plan_given_as_tuples_equals_itself_after_json() -> None:
    made = Plan("release", phases=(work("a"), work("b", after=("a",))))
    assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made


@pytest.mark.parametrize("value", [{1: "one"}, {"nan": float("nan")}, (1, 2), {"s": {3}}, {"d": b"bytes"}])
def test_an_input_is_kept_in_the_form_it_has_in_the_log(value: object) -> None:
    made = plan(work(input=value))
    assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made


@pytest.mark.parametrize(
    "document",
    [
        {"name": "p", "phases": [{"key": "a", "capability": "x", "colour": "red"}]},
        {"name": "p", "phases": [{"key": "a", "capability": "x", "retry": {"transinet": 5}}]},
        {"name": "p", "phases": [{"key": "a", "approval": {"on_expiry": "maybe"}}]},
        {"name": "p", "phases": [{"key": "a", "capability": "x", "retry": {"transient": -1}}]},
        {"name": "p", "phases": [{"key": "a", "capability": "x", "after": ["b"]}]},
    ],
)
def test_a_document_with_a_mistake_is_no_plan(document: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, Plan)


def test_each_may_be_written_as_text() -> None:
    assert plan(work("a"), work("b", each="a.files")).graph["b"].each == Ref("a.files")


def test_the_defaults_are_what_stored_plans_rely_on() -> None:
    # A default is not written into a plan: changing one changes runs that are under way, so it is an interop decision.
    phase = msgspec.structs.asdict(Phase("a", "x"))
    assert {name: phase[name] for name in ("queue_timeout_s", "timeout_s", "width", "after")} == {
        "queue_timeout_s": 86_400.0,
        "timeout_s": None,
        "width": None,
        "after": (),
    }
    assert msgspec.structs.asdict(phase["retry"]) == {
        "transient": 4,
        "dependency": 3,
        "unknown": 1,
        "lost": 3,
        "transient_s": 0.5,
        "dependency_s": 5.0,
        "unknown_s": 1.0,
        "lost_s": 0.5,
        "max_s": 300.0,
    }
    assert (Plan("p", phases=[Phase("a", "x")]).timeout_s, Approval().expires_s) == (2_592_000.0, 604_800.0)
    assert Plan("p", phases=[Phase("a", "x")]).on_failure == "keep"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "timeout = 5",
            "plan.toml:2: Object contains unknown field `timeout` - at `$.phases[0]`; did you mean timeout_s?",
        ),
        ("zzz = 5", "; there are key, capability, input"),
    ],
)
def test_a_mistyped_field_of_a_file_is_told_with_the_one_that_was_meant(
    tmp_path: Path, written: str, said: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(f'name = "p"\n[[phases]]\nkey = "a"\ncapability = "do"\n{written}\n')
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    assert said in str(caught.value)
