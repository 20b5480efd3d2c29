"""The wheel, installed where a user would: outside the checkout, and beside a package that is called `agents`, too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv")
RIVAL = "openai-agents"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [UV, "build", "--wheel", "-o"] if UV else [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w"]
    _run([*build, str(folder), str(ROOT)], ROOT)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_what_it_needs_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"bus/py.typed", "agents/supervisor.py", "console/examples/testwriter/plan.toml"} <= names
    assert "agents/__init__.py" not in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "bus",
        "agents",
        "projections",
        "console",
    }


@pytest.mark.parametrize("order", ["ours first", "ours last"])
def test_the_demo_runs_beside_the_other_agents_package(wheel: Path, tmp_path: Path, order: str) -> None:
    python = _environment(tmp_path / "venv")
    for each in [str(wheel), RIVAL] if order == "ours first" else [RIVAL, str(wheel)]:
        _install(python, each)
    _run([python, "-c", "import agents; assert agents.Agent and agents.Runner; import agents.supervisor"], tmp_path)
    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").write_text("def area(side: int) -> int:\n    return side * side\n")
    said = _run([str(Path(python).with_name("phasebus")), "demo", str(package)], tmp_path)
    assert "completed" in said
    assert (tmp_path / "testwriter-report" / "report.md").is_file()


def _environment(folder: Path) -> str:
    make = (
        [UV, "venv", "-q", "--python", sys.executable, str(folder)]
        if UV
        else [sys.executable, "-m", "venv", str(folder)]
    )
    _run(make, folder.parent)
    return str(folder / "bin" / "python")


def _install(python: str, what: str) -> None:
    pip = [UV, "pip", "install", "-q", "--python", python] if UV else [python, "-m", "pip", "install", "-q"]
    _run([*pip, what], ROOT)


def _run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"NATS_URL", "VIRTUAL_ENV"}}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
