"""The command: prints the schedule of faults, what came of them, and of every violation its run's story."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import asdict

from benchmarks.chaos.figures import Recovery, percentile
from benchmarks.chaos.trial import Options, Report, trial
from bus import logs
from console.story import named, said


def options(arguments: Sequence[str]) -> Options:
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    for field, type_ in Options.__annotations__.items():
        kind = int if type_ == "int" else float
        parser.add_argument(f"--{field.replace('_', '-')}", type=kind, default=getattr(defaults, field))
    return Options(**vars(parser.parse_args(arguments)))


def main() -> int:
    chosen = options(sys.argv[1:])
    logs.configure("error")
    arguments = (f"--{field.replace('_', '-')} {value}" for field, value in asdict(chosen).items())
    print("python -m benchmarks.chaos", *arguments)
    print(f"{len(chosen.faults)} faults:")
    for fault in chosen.faults:
        print(f"  {fault}")
    folder = Path(tempfile.mkdtemp(prefix="phasebus-chaos-"))
    report = asyncio.run(trial(chosen, folder))
    show(report)
    if report.violations:
        print(f"the log, and those of the processes, are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def show(report: Report) -> None:
    """A table of it, and the stories of the runs that went wrong."""
    print(f"runs: {sum(report.runs.values())} ({_listed(report.runs)}), {report.events} events")
    print(f"plans: {_listed(report.plans)}")
    print(f"faults done: {sum(report.faults.values())} ({_listed(report.faults)})")
    print(f"attempts without a result: {_listed(report.attempts)}")
    print(f"everything had ended {report.settled_s:.1f} s after the last fault")
    print(f"\n{'fault, cause in the log':36} {'n':>4} {'noticed p50':>12} {'p99':>8} {'started p50':>12} {'p99':>8}")
    grouped: defaultdict[str, list[Recovery]] = defaultdict(list)
    for each in report.recoveries:
        grouped[f"{each.kind}, {each.cause}"].append(each)
    for what, found in sorted(grouped.items()):
        noticed = [each.noticed_s for each in found]
        started = [each.started_s for each in found if each.started_s is not None] or [float("nan")]
        first, late, next_, latest = (percentile(values, p) for values in (noticed, started) for p in (0.5, 0.99))
        print(f"{what:36} {len(found):4} {first:10.3f} s {late:6.2f} s {next_:10.3f} s {latest:6.2f} s")
    print(f"\n{len(report.violations) or 'no'} violations")
    for violation in report.violations:
        print(f"  {violation.run or 'all'}: {violation.says}")
    for run, story in report.stories.items():
        print(f"\n{run}")
        for when, event in story:
            print(f"  {when} {named(event)} {said(event)}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common()) or "none"


if __name__ == "__main__":
    sys.exit(main())
