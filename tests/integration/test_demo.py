"""The demo as a user sees it: a command, its output, its exit code, and nothing left behind however it ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
PHASEBUS = [sys.executable, "-m", "bus"]
MARKER = "DEMO_TEST"
BOUND_S = 60.0
MODULES = {
    "__init__": "",
    "share": "def share(total: int, parts: int) -> float:\n    return total / parts\n",
    "double": "def double(number: int) -> int:\n    return 2 * number\n",
}


class Started:
    """A demo under way. `marker` is in the environment of every process it starts with an environment of ours."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.marker = uuid4().hex
        self.store = folder / "store"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PHASEBUS", "NATS"))}
        self.output = folder / "output.txt"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [*PHASEBUS, "demo", "--keep", str(self.store), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment | {MARKER: self.marker},
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(BOUND_S)

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + BOUND_S
        while words not in self.text:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def left(self, within_s: float = 0.0) -> list[tuple[int, str]]:
        """What still lives when nothing does any more or that much time has passed."""
        deadline = time.monotonic() + within_s
        while (found := list(self.living())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def living(self) -> Iterator[tuple[int, str]]:
        """Pid and command line of every process that this demo started."""
        signs = (f"{MARKER}={self.marker}".encode(), str(self.store).encode())
        for process in Path("/proc").glob("[0-9]*"):
            try:
                # Tested code runs without our environment, but the command that runs it names the store.
                command = (process / "cmdline").read_bytes()
                known = (process / "environ").read_bytes() + command
                if any(sign in known for sign in signs) and int(process.name) != self.process.pid:
                    yield int(process.name), command.replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    folder.mkdir()
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source)
    return folder


@LINUX
def test_a_demo_survives_a_kill_reports_and_can_be_replayed(package: Path, tmp_path: Path) -> None:
    demo = Started(tmp_path, "--path", str(package))

    assert demo.wait() == 0, demo.text

    assert demo.left() == []
    said = demo.text
    assert re.search(r"first phase done after [\d.]+ m?s", said)
    assert re.search(r"kill -9 \d+: (author|runner)-\w+, in the middle of (write|test):\d+ \(sample", said)
    assert re.search(r"(write|test):\d+ recovered in \d+ ms, attempt 2 by (author|runner)-\w+ \(in the log:", said)
    assert re.search(r"publish +completed", said)
    assert "the report: 3 modules" in said
    assert "ZeroDivisionError" in said
    assert (tmp_path / "testwriter-report" / "report.md").is_file()
    [command] = re.findall(r"^  phasebus (replay .*)$", said, re.MULTILINE)
    replayed = subprocess.run(
        [*PHASEBUS, *shlex.split(command)], capture_output=True, text=True, timeout=BOUND_S, check=True
    )
    events = re.search(r"^(\d+) events in \d+ commits", said, re.MULTILINE)
    assert events is not None
    assert len(re.findall(r"^ *\d+\.\d+ ", replayed.stdout, re.MULTILINE)) == int(events[1])


@LINUX
def test_a_folder_without_modules_ends_the_demo_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    demo = Started(tmp_path, "--path", str(tmp_path / "empty"))

    assert demo.wait() == 1

    assert demo.left() == []
    assert "holds no Python modules" in demo.text.splitlines()[-1]


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_demo_that_is_ended(package: Path, tmp_path: Path, number: signal.Signals) -> None:
    demo = Started(tmp_path, str(package), "--no-kill")
    demo.wait_for("write started")
    assert demo.left() != []

    demo.process.send_signal(number)

    assert demo.wait() == (-number if number == signal.SIGKILL else 130), demo.text
    assert demo.left(within_s=10.0 if number == signal.SIGKILL else 0.0) == []


@LINUX
def test_an_agent_that_dies_by_itself_ends_the_demo_with_its_last_words(package: Path, tmp_path: Path) -> None:
    demo = Started(tmp_path, str(package))
    demo.wait_for("first phase done")
    [scanner] = [pid for pid, command in demo.living() if "scanner.py" in command]

    os.kill(scanner, signal.SIGKILL)

    assert demo.wait() == 1
    assert demo.left() == []
    assert re.search(r"error: scanner-1 ended by itself; \S+scanner-1.log ends with:", demo.text)
    assert '"event":"serving"' in demo.text


def test_a_package_named_twice_is_a_usage_error(tmp_path: Path) -> None:
    demo = Started(tmp_path, "email", "--path", str(tmp_path))

    assert demo.wait() == 2
    assert not demo.store.exists()
