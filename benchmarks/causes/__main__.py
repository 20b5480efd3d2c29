"""Whether causes are told apart: a confusion matrix over faults that are really made.

python -m benchmarks.causes [--count 20] [--seed 1] [--only CLASS]

Real processes on a real nats-server. Of each class so many runs get into trouble, and then it is asked what is said of
each: by the doctor and by attention while no supervisor leads, so that nothing is repaired meanwhile; and, with the
same faults made anew on a bus where one does, by what the supervisor has written into the log. Exit code 1 if anything
is called what it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import msgspec

from agents.supervisor import Supervisor
from benchmarks.causes.classes import CLASSES
from benchmarks.causes.ward import LEASE_S, Ward
from bus import connect, logs
from bus.broker.server import embedded
from bus.clock import utc_now
from bus.rules.events import PhaseAttemptFailed
from bus.runs.recovery import AREA, STARVED
from console.address import Address
from console.examination import examine
from console.rollcall import living
from projections.attention import concerns
from projections.catchup import build
from projections.doctor.checks import diagnose
from projections.history import learn
from projections.runs import RUNS

NOTHING = "nothing"
# What is younger than five seconds nobody holds against anybody; three times the longest silence before comes to less.
_PATIENCE_S = 6.0
# Nobody leads for the doctor, and that is said of every run.
_OF_THE_WARD = ("no_supervisor",)

Said = Mapping[str, Counter[str]]
"""What was said of each class, how often."""


async def asked(count: int, seed: int, only: str = "") -> tuple[Said, Said]:
    """What the doctor and what attention say of each class."""
    async with AsyncExitStack() as exits:
        ward, place = await _ward(exits, seed)
        runs = {name: await CLASSES[name].make(ward, count) for name in _chosen(only)}
        await asyncio.sleep(_PATIENCE_S)
        attention = await _attention(ward)
        by_doctor = {name: Counter([await _doctor(place, run) for run in each]) for name, each in runs.items()}
        by_attention = {name: Counter(attention.get(run, NOTHING) for run in each) for name, each in runs.items()}
        return by_doctor, by_attention


async def recovered(count: int, seed: int, only: str = "") -> Said:
    """What a supervisor says in the log of each class, by the time it would have acted."""
    async with AsyncExitStack() as exits:
        ward, place = await _ward(exits, seed)
        leading = await exits.enter_async_context(connect(**place.settings, lease_s=LEASE_S, name="supervisor"))
        stop = asyncio.Event()
        supervisor = Supervisor(leading, "ward")
        task = asyncio.create_task(supervisor.run(stop))
        exits.callback(stop.set)
        await supervisor.leads.wait()
        runs = {name: await CLASSES[name].make(ward, count) for name in _chosen(only)}
        await asyncio.sleep(2 * LEASE_S + _PATIENCE_S)
        starved = await _starved(ward)
        said = {
            name: Counter([await _cause(ward, run) or ("starved" if run in starved else NOTHING) for run in each])
            for name, each in runs.items()
        }
        stop.set()
        await task
        return said


async def _ward(exits: AsyncExitStack, seed: int) -> tuple[Ward, Address]:
    folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="phasebus-causes-")))
    server = await exits.enter_async_context(embedded(folder / "store"))
    place = Address({"url": server.url, "system_url": server.system_url})
    client = await exits.enter_async_context(connect(**place.settings, name="ward"))
    return Ward(server, client, folder, Random(seed), exits), place


async def _doctor(place: Address, run: str) -> str:
    """The code of the first finding about a run."""
    findings = diagnose(await examine(place, run))
    return next((each.code for each in findings if each.run == run and each.code not in _OF_THE_WARD), NOTHING)


async def _attention(ward: Ward) -> dict[str, str]:
    """The reason of each run's first concern."""
    states = list((await build(ward.client, RUNS)).rows.values())
    there = await living(ward.client, states)
    found: dict[str, str] = {}
    for each in concerns(states, there, learn(states), utc_now()):
        found.setdefault(each.run, each.reason)
    return found


async def _cause(ward: Ward, run: str) -> str:
    """Why the first attempt of a run ended, if it has."""
    async for commit in ward.client.ledger.commits(run):
        for event in commit.events:
            if isinstance(event, PhaseAttemptFailed):
                return event.cause
    return ""


async def _starved(ward: Ward) -> set[str]:
    """The runs of which it was announced that nobody offers what they need."""
    records = [record async for record in ward.client.log.read(ward.client.subjects.ops(AREA))]
    said = [msgspec.json.decode(each.envelope().data) for each in records if each.envelope().type == STARVED]
    return {each["run"] for each in said}


def _chosen(only: str) -> list[str]:
    return [name for name in CLASSES if only in name]


def right(name: str, by: str) -> str:
    """What is to be said of a class."""
    return str(getattr(CLASSES[name], by))


def misses(said: Said, by: str) -> int:
    """How many were called what they are not."""
    return sum(count for name, words in said.items() for word, count in words.items() if word != right(name, by))


def show(said: Said, by: str) -> None:
    """The matrix: a row for what was done, a column for what was said; in brackets what should not be there."""
    words = [*sorted({word for each in said.values() for word in each} - {NOTHING}), NOTHING]
    widths = [max(len(word), 4) for word in words]
    print(f"{by:20}" + "".join(f"  {word:>{width}}" for word, width in zip(words, widths, strict=True)))
    for name, each in said.items():
        cells = (
            f"  {_cell(each[word], is_right=word == right(name, by)):>{width}}"
            for word, width in zip(words, widths, strict=True)
        )
        print(f"{name:20}" + "".join(cells))
    total = sum(sum(each.values()) for each in said.values())
    print(f"{total - misses(said, by)} of {total} as they are\n", flush=True)


def _cell(count: int, *, is_right: bool) -> str:
    return "." if not count else str(count) if is_right else f"({count})"


async def main(chosen: argparse.Namespace) -> int:
    logs.configure("error")
    print(f"{chosen.count} of each class, seed {chosen.seed}\n", flush=True)
    by_doctor, by_attention = await asked(chosen.count, chosen.seed, chosen.only)
    show(by_doctor, "doctor")
    show(by_attention, "attention")
    by_supervisor = await recovered(chosen.count, chosen.seed, chosen.only)
    show(by_supervisor, "supervisor")
    wrong = misses(by_doctor, "doctor") + misses(by_attention, "attention") + misses(by_supervisor, "supervisor")
    return 1 if wrong else 0


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="runs of each class")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="classes whose name has this in it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(options(sys.argv[1:]))))
