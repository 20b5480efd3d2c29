"""Every example runs as it stands, and prints what it says it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LADDER = sorted(EXAMPLES.glob("[0-9]*.py"))


@pytest.mark.parametrize("example", LADDER, ids=lambda path: path.stem)
def test_an_example_prints_what_it_promises(example: Path, tmp_path: Path) -> None:
    lines = example.read_text().splitlines()
    promised = [line.removeprefix("# prints: ") for line in lines if line.startswith("# prints: ")]
    environment = {name: value for name, value in os.environ.items() if name != "NATS_URL"}
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert promised, f"{example.name} promises nothing"
    assert done.stdout.splitlines() == promised


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text()
    assert all(example.name in index for example in LADDER)
