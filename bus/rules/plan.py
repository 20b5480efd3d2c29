"""Plans: a versioned graph of phases, refused when it is made if it can't work.

`Plan` is what an author writes and what a run's first event stores. `Graph` is what the rules read: the same
phases with every reference turned into a dependency and every dependency turned round.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

import msgspec

from bus.errors import InvalidName, PlanError
from bus.format import subjects
from bus.rules.conditions import parse
from bus.rules.priority import NORMAL, Priority, checked
from bus.rules.references import ITEM, RUN_INPUT, Ref, references
from bus.rules.retry import RetryLater, RetryPolicy, named

Key = str | int
DAY_S = 86_400.0
_LONGEST_S = 10 * 365 * DAY_S
TASK = "task"
"""The name of the plan behind work outside a run."""


class Approval(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """A gate that a person or an agent answers: one of `who`, or anybody if that is empty.

    Past `expires_s` (1 week by default) `on_expiry` answers it, or leaves it to wait until the run's own deadline, or
    asks `escalate_to` as well, who have the same time again before it is rejected.
    """

    expires_s: float = 7 * DAY_S
    on_expiry: Literal["reject", "approve", "wait", "escalate"] = "reject"
    prompt: str = ""
    who: Sequence[str] = ()
    escalate_to: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in ("who", "escalate_to"):
            given = getattr(self, field)
            # Text is a sequence too, of letters; it is left as it is, and refused for its type.
            msgspec.structs.force_setattr(self, field, given if isinstance(given, str) else tuple(given))


class WaitFor(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A gate that a signal opens: what came with it is the phase's output. Past `expires_s` (1 week) it has failed.

    A signal that came before the phase opened counts: nothing is lost by being early.
    """

    signal: str
    expires_s: float = 7 * DAY_S


class Phase(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One unit of a plan: work for a `capability`, a gate (`approval`, `wait_for`), or a run of a `plan` of its own.

    `key` is a name or a number, negative allowed. `each` makes one item of work per element of the list it refers to,
    at most `width` of them (1,000 unless told) at a time; with `fail_fast` the first that fails ends the others.
    Without `input` a handler gets `{}`, or the item itself. `when` is a condition (`bus.rules.conditions`): where it
    does not hold the phase is skipped, and what needs it goes on. `optional`: what needs it goes on even if it failed.
    `compensate` is the capability that undoes it when a run is rolled back: it gets `{"input": ..., "output": ...}`. A
    child run gets the phase's input, ends with its parent, and its output holds those of its phases, by key.
    `cache=False`: done anew each time, and not kept, even if its agent says that its answers can be used again.
    `priority`: high, normal or low, where its work waits; that of its run unless told.

    Four clocks: `queue_timeout_s` bounds the wait for somebody to take the work, `timeout_s` one attempt (otherwise
    the capability's own bound does), `silence_timeout_s` how long a handler may say nothing of itself (unbounded
    unless told), `total_timeout_s` the phase from its opening on, with all its attempts.
    """

    key: Key
    capability: str | None = None
    input: Any = None
    each: Ref | str | None = None
    width: int | None = None
    after: Sequence[Key] = ()
    timeout_s: float | None = None
    queue_timeout_s: float = DAY_S
    retry: RetryPolicy | str = RetryPolicy()
    approval: Approval | None = None
    wait_for: WaitFor | str | None = None
    when: str | None = None
    optional: bool = False
    fail_fast: bool = False
    silence_timeout_s: float | None = None
    total_timeout_s: float | None = None
    compensate: str | None = None
    plan: Plan | None = None
    cache: bool = True
    priority: Priority | None = None

    def __post_init__(self) -> None:
        # In builtins from here on: what is compared, stored and resolved is the JSON form.
        try:
            if self.input is not None:
                msgspec.structs.force_setattr(self, "input", msgspec.json.decode(msgspec.json.encode(self.input)))
            # Text is a sequence too, of letters; it is left as it is, and refused for its type.
            if not isinstance(self.after, (str, tuple)):
                msgspec.structs.force_setattr(self, "after", tuple(self.after))
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise PlanError(f"phase {self.key!r}: input or after can't be written as JSON: {error}") from None
        if isinstance(self.retry, RetryLater):
            said = "Retry(seconds) is what a handler raises; a plan says how often: Retry(transient=5)"
            raise PlanError(f"phase {self.key!r}: {said}")
        if isinstance(self.wait_for, str):
            msgspec.structs.force_setattr(self, "wait_for", WaitFor(self.wait_for))
        if isinstance(self.retry, str):
            try:
                # What a name means may change; a plan that is stored means what it meant.
                msgspec.structs.force_setattr(self, "retry", named(self.retry))
            except ValueError as error:
                raise PlanError(f"phase {self.key!r}: {error}") from None

    @property
    def name(self) -> str:
        return str(self.key)

    @property
    def policy(self) -> RetryPolicy:
        """When attempts are made again."""
        assert isinstance(self.retry, RetryPolicy), "a name was replaced by its policy"
        return self.retry

    @property
    def signal(self) -> WaitFor | None:
        """What the phase waits for, if it is a gate that a signal opens."""
        return self.wait_for if isinstance(self.wait_for, WaitFor) else None


class Plan(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """A named, versioned graph of phases; `timeout_s` bounds a whole run (30 days by default).

    `on_failure`: of a run that has failed, keep what it did, or roll it back: what `compensate` can undo is undone, the
    last first, before the run ends as failed. `priority`: high, normal or low, where the work of its runs waits for
    somebody to take it, unless a run or a phase has its own (`bus.rules.priority`).

    Raises PlanError when it is made: unknown dependency, cycle, duplicate key, unknown reference, wrong name.
    """

    name: str
    version: str = "1"
    phases: Sequence[Phase] = ()
    timeout_s: float = 30 * DAY_S
    on_failure: Literal["keep", "rollback"] = "keep"
    priority: Priority | None = None

    def __post_init__(self) -> None:
        try:
            msgspec.structs.force_setattr(self, "phases", tuple(self.phases))
            for each in self.phases:
                if not isinstance(each, Phase):
                    raise PlanError(f"plan {self.name!r}: a phase is a Phase, not {each!r:.60}")
            _check_priority(self.priority, f"plan {self.name!r}")
            self.__dict__["graph"] = _checked(self)
        except (TypeError, AttributeError) as error:
            # It may have stumbled where the type was used; this says which field it is.
            _check_types(self)
            raise PlanError(f"plan {self.name!r}: a value has the wrong type: {error}") from None
        except RecursionError as error:
            raise PlanError(f"plan {self.name!r}: an input is nested too deep") from error

    @cached_property
    def graph(self) -> Graph:
        """Every phase by key, with what it needs and feeds. It was made when the plan was checked."""
        return _checked(self)

    @property
    def capabilities(self) -> list[str]:
        """Every capability the plan needs, once, in the order of its phases."""
        needed = [each for phase in self.phases for each in (phase.capability, phase.compensate)]
        needed += [each for phase in self.phases if phase.plan is not None for each in phase.plan.capabilities]
        return list(dict.fromkeys(each for each in needed if each is not None))


class Node(msgspec.Struct, frozen=True):
    """A phase in the graph: what it waits for, who waits for it, and its template as JSON."""

    key: str
    phase: Phase
    each: Ref | None
    needs: tuple[str, ...]
    feeds: tuple[str, ...]


Graph = dict[str, Node]
"""Every phase by key, in the author's order."""


_IN_PHASE = re.compile(r"(.*) - at `\$\[(\d+)\]\.(.+)`")
_GRAPHS: dict[bytes, Graph] = {}
_KNOWN_GRAPHS = 256


def _checked(plan: Plan) -> Graph:
    """The plan's graph. Each run's first event holds its plan, and most are of a few: the same is checked once."""
    try:
        known = msgspec.json.encode([plan.name, plan.version, plan.timeout_s, plan.on_failure, plan.phases])
    except (TypeError, ValueError, RecursionError, OverflowError):
        known = b""  # it can't be written: the checks say why
    graph = _GRAPHS.get(known)
    if graph is None:
        graph = _graph(plan)
        _check_types(plan)
        if len(_GRAPHS) >= _KNOWN_GRAPHS:
            _GRAPHS.clear()
        _GRAPHS[known] = graph
    return graph


def _graph(plan: Plan) -> Graph:
    _check_name(plan)
    phases = _by_key(plan)
    if not phases:
        raise PlanError(f"plan {plan.name!r} has no phases")
    needs = {key: _needs(plan, phase, phases) for key, phase in phases.items()}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        raise PlanError(f"plan {plan.name!r} has a cycle: {' -> '.join(reversed(error.args[1]))}") from None
    feeds: dict[str, list[str]] = {key: [] for key in phases}
    for key, earlier in needs.items():
        for other in earlier:
            feeds[other].append(key)
    return {key: Node(key, phase, _each(phase), tuple(needs[key]), tuple(feeds[key])) for key, phase in phases.items()}


def _check_types(plan: Plan) -> None:
    """A value of a wrong type would be stored, and could not be read back: the whole run would be lost."""
    try:
        msgspec.convert({each: getattr(plan, each) for each in _Header.__struct_fields__}, _Header)
        read = msgspec.json.decode(msgspec.json.encode(plan.phases), type=tuple[Phase, ...])
    except (TypeError, ValueError) as error:
        raise PlanError(f"plan {plan.name!r}{_placed(plan, str(error))}") from None
    for phase, again in zip(plan.phases, read, strict=True):
        if phase != again:
            raise PlanError(f"plan {plan.name!r}, phase {phase.name!r}: {phase} would be read back as {again}")


def _placed(plan: Plan, problem: str) -> str:
    """What a decoder says, with the phase's key in place of its number."""
    found = _IN_PHASE.fullmatch(problem)
    if found is None:
        return f": {problem}"
    said, place, field = found.groups()
    return f", phase {plan.phases[int(place)].name!r}: {field}: {said}"


class _Header(msgspec.Struct):
    name: str
    version: str
    timeout_s: float
    on_failure: Literal["keep", "rollback"]


def _check_name(plan: Plan) -> None:
    try:
        subjects.name(plan.name, "plan")
    except InvalidName as error:
        raise PlanError(str(error)) from None
    if not plan.version:
        raise PlanError(f"plan {plan.name!r} has an empty version")
    if not 0 < plan.timeout_s <= _LONGEST_S:
        raise PlanError(f"plan {plan.name!r}: timeout_s is {plan.timeout_s}, it must be over 0 and at most 10 years")


def _by_key(plan: Plan) -> dict[str, Phase]:
    phases: dict[str, Phase] = {}
    for phase in plan.phases:
        try:
            key = subjects.phase_key(phase.key)
        except InvalidName as error:
            raise PlanError(f"plan {plan.name!r}: {error}") from None
        if key in (RUN_INPUT, ITEM):
            raise PlanError(f"plan {plan.name!r}: a phase can't be called {key!r}, references use that word")
        if key in phases:
            raise PlanError(f"plan {plan.name!r} has two phases {key!r}")
        _check_phase(plan, key, phase)
        phases[key] = phase
    if plan.on_failure == "rollback" and not any(phase.compensate for phase in plan.phases):
        raise PlanError(f"plan {plan.name!r}: on_failure is 'rollback', and no phase has a compensate")
    return phases


def _check_phase(plan: Plan, key: str, phase: Phase) -> None:
    where = f"plan {plan.name!r}, phase {key!r}"
    if sum(each is not None for each in (phase.capability, phase.approval, phase.wait_for, phase.plan)) != 1:
        raise PlanError(f"{where}: give it one of a capability, an approval, a wait_for and a plan")
    if phase.plan is not None and phase.each is not None:
        raise PlanError(f"{where}: a plan of its own has no each")
    if phase.compensate is not None and phase.capability is None:
        raise PlanError(f"{where}: a gate does nothing that compensate could undo")
    if not phase.cache and phase.capability is None:
        raise PlanError(f"{where}: cache goes with a capability")
    if phase.priority is not None and phase.capability is None and phase.plan is None:
        raise PlanError(f"{where}: a gate is not taken by anybody, so it has no priority")
    _check_priority(phase.priority, where)
    for capability in (phase.capability, phase.compensate):
        try:
            subjects.capability(capability or "none")
        except InvalidName as error:
            raise PlanError(f"{where}: {error}") from None
    is_gate = phase.approval is not None or phase.wait_for is not None
    if is_gate and (phase.each is not None or phase.input is not None):
        raise PlanError(f"{where}: a gate has no input and no each")
    if phase.fail_fast and phase.each is None:
        raise PlanError(f"{where}: fail_fast goes with each")
    if phase.signal is not None:
        try:
            subjects.name(phase.signal.signal, "signal")
        except InvalidName as error:
            raise PlanError(f"{where}: {error}") from None
    if phase.width is not None and (phase.each is None or phase.width < 1):
        raise PlanError(f"{where}: width is {phase.width}, it must be 1 or more and goes with each")
    bounds = {
        "timeout_s": phase.timeout_s,
        "queue_timeout_s": phase.queue_timeout_s,
        "silence_timeout_s": phase.silence_timeout_s,
        "total_timeout_s": phase.total_timeout_s,
    }
    if phase.signal is not None:
        bounds["wait_for.expires_s"] = phase.signal.expires_s
    if phase.approval is not None and (phase.approval.on_expiry == "escalate") != bool(phase.approval.escalate_to):
        raise PlanError(f"{where}: on_expiry = 'escalate' and escalate_to go together")
    if phase.approval is not None:
        bounds["approval.expires_s"] = phase.approval.expires_s
    for field, bound in bounds.items():
        if bound is not None and not 0 < bound <= _LONGEST_S:
            raise PlanError(f"{where}: {field} is {bound}, it must be over 0 and at most 10 years")


def _check_priority(priority: object, where: str) -> None:
    try:
        checked(priority if priority is not None else NORMAL)
    except ValueError as error:
        raise PlanError(f"{where}: {error}") from None


def _needs(plan: Plan, phase: Phase, phases: dict[str, Phase]) -> dict[str, None]:
    """The phases this one waits for: those named in `after` and those its references lead to, each once."""
    where = f"plan {plan.name!r}, phase {phase.name!r}"
    needs: dict[str, None] = {}
    for each_key in phase.after:
        if not isinstance(each_key, Key):
            raise PlanError(f"{where}: after holds keys of phases, not {each_key!r:.60}")
        key = str(each_key)
        if key not in phases:
            raise PlanError(f"{where}: after names {key!r}, but there is no such phase")
        needs[key] = None
    each = _each(phase)
    try:
        asked = [comparison.ref for comparison in parse(phase.when)] if phase.when is not None else []
    except ValueError as error:
        raise PlanError(f"{where}: when: {error}") from None
    for reference in [*([each] if each else []), *asked, *references(phase.input)]:
        if reference.root in phases and phases[reference.root].approval is not None:
            raise PlanError(f"{where}: reference {reference.ref!r} leads to {reference.root!r}, a gate without output")
        if reference.root in phases:
            needs[reference.root] = None
        elif reference.root == ITEM and (phase.each is None or reference is each or reference in asked):
            raise PlanError(f"{where}: reference {reference.ref!r} needs an each")
        elif reference.root not in (RUN_INPUT, ITEM):
            raise PlanError(
                f"{where}: reference {reference.ref!r} leads to no phase; it starts with input, item or a phase's key"
            )
    return needs


def _each(phase: Phase) -> Ref | None:
    return Ref(phase.each) if isinstance(phase.each, str) else phase.each
