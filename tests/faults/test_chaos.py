"""Chaos, the short version: `python -m benchmarks.chaos` is the long one, and repeats a seed that fails here."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.chaos.trial import Options, trial

OPTIONS = Options(seed=7, seconds=20.0, runs=24, phases=10, workers=3, lease_s=1.5, settle_s=60.0)


async def test_every_run_ends_and_no_result_counts_twice_whatever_is_killed(tmp_path: Path) -> None:
    report = await trial(OPTIONS, tmp_path)
    assert not report.violations, f"{OPTIONS}: {report.stories}"
    assert sum(report.runs.values()) == OPTIONS.runs
    assert report.runs["in_progress"] == 0
    # It is of no use if nothing was hit: these ended attempts that were under way.
    assert report.recoveries
    shutil.rmtree(tmp_path / "store")
