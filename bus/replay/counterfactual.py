"""A counterfactual: a run as the log has it, with some work answered otherwise, and what that means for the rest.

What is answered otherwise is known (`gave`). What others would answer to another input is not: where the change reaches
them it is listed, and what they feed in turn is listed, too, and nobody claims to know it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from bus.history.diff import Difference, first_difference
from bus.replay.recorded import Result
from bus.rules.conditions import parse
from bus.rules.inputs import input_of, is_wanted, items_of
from bus.rules.plan import Node
from bus.rules.references import Unresolved, references
from bus.rules.run import TERMINAL, Item, Output, PhaseState, RunState

Reach = Literal["other_input", "unknown_input", "not_reached", "reached", "skipped"]
_NULL = b"null"


class Downstream(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A phase that the change reaches, and that is not done again.

    `other_input`: it would get another input, so what it answered then says nothing; `input` is where the two part.
    `unknown_input`: what feeds it is one of these. `not_reached`: what it needs gives nothing any more. `reached` and
    `skipped`: it would be done though it was not, or the other way round. `because` are the phases before it from which
    that comes.
    """

    phase: str
    reach: Reach
    capability: str | None = None
    because: tuple[str, ...] = ()
    input: Difference | None = None


class Counterfactual:
    """One run. `was` is its state as recorded, at the moment that is asked about; `downstream` grows on the way."""

    def __init__(self) -> None:
        self.downstream: list[Downstream] = []
        self._given: dict[str, dict[int | None, bytes | None]] = {}
        self._outputs: dict[str, Output | None] = {}
        # Phases whose answer is not known any more; those that give none, so that nothing goes on; and those that are
        # left out, so that the rest goes on without.
        self._unknown: set[str] = set()
        self._without: set[str] = set()
        self._absent: set[str] = set()
        self._opened: dict[tuple[str, int], bool] = {}

    def gave(self, was: RunState, key: str, index: int | None, recorded: Result | None, now: Result) -> None:
        """A unit's work was answered, now and perhaps then."""
        there = self._given.setdefault(key, {})
        if now.problem is None:
            there[index] = _NULL if now.output is msgspec.UNSET else bytes(now.output)
        elif recorded is None or recorded.problem is None:
            there[index] = None
        else:
            there.pop(index, None)
        # Of what is read through it, too, nothing that was put together before holds.
        self._outputs.clear()
        self._without.discard(key)
        if None in there.values() and not was.plan.graph[key].phase.optional:
            self._without.add(key)

    def is_settled(self, was: RunState, key: str, index: int | None) -> bool:
        """Whether the unit has an answer now where it had none in this pass: later attempts would not have been."""
        item = was.phases[key].item(index)
        tries = item.attempts[item.earlier :] if item is not None else ()
        return len(tries) > 1 and self._given.get(key, {}).get(index) is not None

    def forget(self, was: RunState) -> None:
        """A new pass has begun: what is done again in it is answered anew."""
        for key, there in self._given.items():
            phase = was.phases[key]
            kept = {index: raw for index, raw in there.items() if _has_ended(phase.item(index))}
            self._given[key] = kept if phase.status in TERMINAL or phase.items else {}
        self._outputs.clear()
        redone = {key for key, phase in was.phases.items() if phase.status not in TERMINAL}
        for marked in (self._unknown, self._without, self._absent):
            marked.difference_update(redone)

    def opens(self, was: RunState, key: str, *, is_own: bool) -> bool:
        """Whether the work of a phase can be done again here, at its opening or later. What keeps it from that, or
        reaches work of others, is noted."""
        known = self._opened.get((key, was.passes))
        if known is None:
            known = self._opened[key, was.passes] = self._opens(was, key, is_own)
        return known

    def _opens(self, was: RunState, key: str, is_own: bool) -> bool:
        node = was.plan.graph[key]
        lost = [need for need in node.needs if need in self._without]
        if lost:
            self._without.add(key)
            return self._note(node, "not_reached", lost)
        roots = list(_roots(node))
        if unknown := [root for root in roots if root in self._unknown]:
            self._unknown.add(key)
            return self._note(node, "unknown_input", unknown)
        changed = [root for root in roots if root in self._changed(was)]
        if not changed:
            return is_own
        now = self.state(was)
        wanted_then, wanted_now = _is_wanted(was, key), _is_wanted(now, key)
        if wanted_then and not wanted_now:
            self._absent.add(key)
            return self._note(node, "skipped", changed)
        if is_own or not wanted_now:
            return is_own and wanted_now
        if not wanted_then:
            self._unknown.add(key)
            return self._note(node, "reached", changed)
        if difference := first_difference(_given_to(was, key), _given_to(now, key)):
            self._unknown.add(key)
            self._note(node, "other_input", changed, difference)
        return False

    def is_known(self, key: str) -> bool:
        """Whether what a phase gives now is known."""
        return key not in self._unknown and key not in self._without

    def unopened(self, was: RunState, own: Collection[str]) -> Iterator[str]:
        """At the end of the log: the agent's phases that never opened and would now, in an order in which they can be
        answered one after the other. Those of others are noted."""
        revived: set[str] = set()
        for key in TopologicalSorter({key: node.needs for key, node in was.plan.graph.items()}).static_order():
            phase = was.phases[key]
            if phase.status == "failed" and not phase.lets_pass and self._answers(was, key):
                revived.add(key)
            node = was.plan.graph[key]
            because = [need for need in node.needs if need in revived]
            # What needs one of them did not open then. That it opens now takes all that it needs.
            if not because or not all(was.phases[need].lets_pass or need in revived for need in node.needs):
                continue
            revived.add(key)
            if unknown := [root for root in _roots(node) if root in self._unknown]:
                self._unknown.add(key)
                self._note(node, "unknown_input", unknown)
            elif not _is_wanted(self.state(was), key):
                self._absent.add(key)
            elif node.phase.capability not in own:
                self._unknown.add(key)
                self._note(node, "reached", because)
            else:
                yield key
                if not self._answers(was, key):
                    revived.discard(key)

    def state(self, was: RunState) -> RunState:
        """The run with the answers of now in place of the recorded ones."""
        phases: dict[str, PhaseState] = {}
        for key in self._changed(was):
            phase, output = was.phases[key], self._outputs[key]
            undoing = phase.undoing
            if undoing is not None and output is not None:
                undoing = replace(undoing, output=output)
            phases[key] = replace(phase, output=output, undoing=undoing, lets_pass=True)
        return replace(was, phases=was.phases | phases)

    def count(self, was: RunState, key: str) -> int:
        """How many items an `each` phase has now, 0 if its list is none."""
        each = was.plan.graph[key].each
        assert each is not None, f"phase {key} has items"
        if each.root not in (*self._given, *self._absent):
            return len(was.phases[key].items)
        root = replace(was.phases[each.root], output=self._output(was, each.root), lets_pass=True)
        try:
            return len(items_of(replace(was, phases=was.phases | {each.root: root}), key))
        except Unresolved:
            return 0

    def starts(self, was: RunState, key: str) -> bool:
        """Whether a phase that was skipped for its condition would be done now."""
        return not _is_wanted(was, key) and _is_wanted(self.state(was), key)

    def _changed(self, was: RunState) -> list[str]:
        """The phases that give another output than they did."""
        changed = []
        for key in (*self._given, *self._absent):
            if key not in self._outputs:
                self._outputs[key] = self._output(was, key)
            then, now = was.phases[key].output, self._outputs[key]
            if then is None or now is None:
                is_other = then is not now
            else:
                is_other = first_difference(then.value, now.value) is not None
            if is_other:
                changed.append(key)
        return changed

    def _output(self, was: RunState, key: str) -> Output | None:
        there, phase, node = self._given.get(key, {}), was.phases[key], was.plan.graph[key]
        if key in self._absent:
            return None
        if node.each is None:
            raw = there.get(None)
            if raw is not None:
                return Output(raw)
            return None if None in there and node.phase.optional else phase.output
        parts = []
        for index in range(self.count(was, key)):
            item = phase.item(index)
            then = bytes(item.output.raw) if item is not None and item.output is not None else _NULL
            parts.append(there.get(index, then) or _NULL)
        return Output(b"[" + b",".join(parts) + b"]")

    def _answers(self, was: RunState, key: str) -> bool:
        """Whether every unit of a phase has an answer now."""
        there = self._given.get(key, {})
        if was.plan.graph[key].each is None:
            return there.get(None) is not None
        phase, count = was.phases[key], self.count(was, key)
        return bool(there) and all(_answer(phase.item(index), there, index) for index in range(count))

    def _note(self, node: Node, reach: Reach, because: list[str], difference: Difference | None = None) -> bool:
        capability = node.phase.capability
        found = Downstream(phase=node.key, reach=reach, capability=capability, because=tuple(because), input=difference)
        self.downstream.append(found)
        return False


def _roots(node: Node) -> Iterator[str]:
    """The phases whose outputs a phase reads, each once."""
    asked = [comparison.ref for comparison in parse(node.phase.when)] if node.phase.when is not None else []
    all_of_them = [*([node.each] if node.each else []), *asked, *references(node.phase.input)]
    yield from dict.fromkeys(each.root for each in all_of_them if each.root in node.needs)


def _given_to(state: RunState, key: str) -> Any:
    """What a phase is given, or why it can't be: a value to compare with another."""
    try:
        if state.plan.graph[key].each is None:
            return input_of(state, key, None)
        return [input_of(state, key, index) for index in range(len(items_of(state, key)))]
    except Unresolved as error:
        return str(error)


def _is_wanted(state: RunState, key: str) -> bool:
    try:
        return is_wanted(state, key)
    except Unresolved:
        return True


def _has_ended(item: Item | None) -> bool:
    return item is not None and item.status in TERMINAL


def _answer(item: Item | None, there: dict[int | None, bytes | None], index: int) -> bool:
    if index in there:
        return there[index] is not None
    return item is not None and item.output is not None
