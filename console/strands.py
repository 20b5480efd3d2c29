"""Strands: the events that belong to one story, across runs and messages, and how their causes are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

from bus.client import Client
from bus.errors import InvalidName
from bus.history.happening import Happening
from bus.history.lineage import Lineage, Spot
from bus.history.selection import Selection
from bus.rules.run import RunState
from console.story import told
from console.text import escaped

_MOST = 100_000
_SHOWN = 200


async def story(client: Client, run: RunState) -> list[Happening]:
    """Every event of a run, of its parent and its children, and of what has the same correlation id, in order.

    The log is read from where the story begins; of very many with that id, the oldest 100,000. Raises Unavailable.
    """
    names = [run.run, *(phase.child for phase in run.phases.values() if phase.child)]
    names += [run.parent.run] if run.parent is not None else []
    first = await _beginning(client, [run.run, run.correlation])
    found: dict[Spot, Happening] = {}
    for selection in (Selection(runs=names), Selection(correlation=run.correlation, after=first, limit=_MOST)):
        async with aclosing(client.events(selection)) as happenings:
            async for each in happenings:
                found[each.position, each.index] = each
    return [found[spot] for spot in sorted(found)]


async def _beginning(client: Client, runs: Sequence[str]) -> int:
    """The position before the first record of any of these runs. A correlation id often is the id of one."""
    firsts = []
    for run in runs:
        try:
            subject = client.subjects.run(run)
        except InvalidName:
            continue
        async with aclosing(client.log.read(subject)) as records:
            async for record in records:
                firsts.append(record.position - 1)
                break
    return min(firsts, default=0)


def backwards(lineage: Lineage, spot: Spot) -> list[str]:
    """What an event came of, the first cause first."""
    return [line(lineage, each) for each in reversed(lineage.causes(spot))]


def forwards(lineage: Lineage, spot: Spot, depth: int = 64) -> list[str]:
    """What came of an event, as a tree."""
    lines: list[str] = []
    for level, each in descendants(lineage, spot, depth):
        if len(lines) == _SHOWN:
            lines.append("... and more")
            break
        lines.append(f"{'  ' * level}{line(lineage, each)}")
    return lines


def descendants(lineage: Lineage, spot: Spot, depth: int) -> Iterator[tuple[int, Spot]]:
    """Every effect with its level below the event, from 0, in the order of a tree. A long chain does not go deeper."""
    # Not by recursion: a run of thousands of phases is a chain of as many effects.
    waiting = [(0, each) for each in reversed(lineage.effects(spot))]
    while waiting:
        level, each = waiting.pop()
        yield min(level, depth), each
        effects = lineage.effects(each)
        # What alone came of something goes on at its level: only a fork goes deeper.
        deeper = level + 1 if len(effects) > 1 else level
        waiting += [(deeper, effect) for effect in reversed(effects)]


def line(lineage: Lineage, spot: Spot) -> str:
    """One event of a lineage, with the run it is of."""
    each = lineage.found[spot]
    what = each.type.rpartition(".v")[0] or each.type
    where = each.subject.partition(".")[2]
    return f"{spot[0]}.{spot[1]}  {escaped(what):<20}  {escaped(where)}  {told(each)}".rstrip()


def brief(lineage: Lineage, spot: Spot, run: str) -> str:
    """The same in a few words, for a reader who looks at a run."""
    each = lineage.found[spot]
    what = escaped(each.type.rpartition(".v")[0] or each.type)
    place = each.phase if each.item is None else f"{each.phase}:{each.item}"
    elsewhere = f" of {escaped(each.subject.partition('.')[2])}" if each.run != run or each.kind != "run" else ""
    return f"{spot[0]}.{spot[1]} {what}{f' {place}' if place and each.kind == 'run' else ''}{elsewhere}"


def node(lineage: Lineage, spot: Spot) -> dict[str, Any]:
    """The same for a program."""
    each = lineage.found[spot]
    cause = lineage.cause(spot)
    found: dict[str, Any] = {
        "position": each.position,
        "index": each.index,
        "type": each.type,
        "subject": each.subject,
        "run": each.run,
        "phase": each.phase,
        "item": each.item,
        "id": each.message.id if each.message is not None else None,
        "cause": f"{cause[0]}.{cause[1]}" if cause is not None else None,
        "effects": [f"{position}.{index}" for position, index in lineage.effects(spot)],
    }
    return {name: value for name, value in found.items() if value is not None}
