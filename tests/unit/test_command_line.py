from __future__ import annotations

import fcntl
import importlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec
import pytest

from bus import Agent
from bus.address import FILE, Started, announced
from bus.errors import NotFound, PlanError, Unavailable
from bus.rules.events import PhaseCompleted, UnknownEvent
from console import failure, text
from console.address import find, find_started
from console.failure import Failure, failure_of
from console.lazy import LazyGroup
from console.main import cli, main
from console.printer import to_json
from console.store import explained
from console.story import named, said
from console.target import load

HEAVY = ("bus", "nats", "pydantic", "msgspec", "structlog", "asyncio")


def groups(group: LazyGroup) -> list[LazyGroup]:
    """A group and all those in it."""
    context = click.Context(group)
    inner = [group.get_command(context, name) for name in group.list_commands(context)]
    return [group, *(found for each in inner if isinstance(each, LazyGroup) for found in groups(each))]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("NATS_URL", "NATS_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = f"""
import sys
from console.main import cli, main
code = main(["--help"])
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
sys.exit(code)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, ended.stderr
    for name in ("up", "agent", "run", "events", "replay", "dead", "attention", "schema", "version", "completion"):
        assert f"\n  {name} " in ended.stdout


def test_what_a_list_of_commands_says_is_what_the_command_says_itself() -> None:
    assert isinstance(cli, LazyGroup)
    assert len(groups(cli)) > 10
    for group in groups(cli):
        context = click.Context(group)
        for name, (place, says) in group._commands_at.items():
            command = group.get_command(context, name)
            assert command is not None
            assert command.help is not None
            assert command.help.startswith(says.rstrip(".")), place


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_errors_of_a_group_are_told_one_by_one_and_bugs_keep_their_traceback() -> None:
    group = BaseExceptionGroup("tasks", [ExceptionGroup("inner", [NotFound("no run")])])
    found = failure_of(group)
    assert found is not None
    assert (found.code, str(found)) == (failure.NOT_FOUND, "no run")
    assert failure_of(ExceptionGroup("tasks", [NotFound("no run"), ValueError("a bug")])) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PlanError("x"), failure.USAGE),
        (Unavailable("x"), failure.UNREACHABLE),
        (Failure(6, "x"), failure.REFUSED),
        (FileNotFoundError(2, "No such file or directory", "/proc/x"), failure.FAILED),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int) -> None:
    found = failure_of(error)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("pricing", "write FILE.py:NAME"),
        ("pricing.py:", "write FILE.py:NAME"),
        ("missing.py:agent", "there is no file missing.py"),
        ("missing_module:agent", "there is no module 'missing_module'"),
        ("pricing.py:other", "pricing.py has no 'other'"),
        ("pricing.py:number", "pricing.py:number is of type int, not an Agent"),
        ("broken.py:agent", "broken.py could not be imported: ZeroDivisionError"),
        ("needy.py:agent", "needy.py could not be imported: ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_what_can_not_be_loaded_is_said_in_one_line(here: Path, target: str, says: str) -> None:
    (here / "pricing.py").write_text("from bus import Agent\nagent = Agent('pricing')\nnumber = 3\n")
    (here / "broken.py").write_text("def cause():\n    return 1 / 0\n\ncause()\n")
    (here / "needy.py").write_text("import not_installed\n")
    with pytest.raises(Failure) as raised:
        load(target, Agent)
    assert says in str(raised.value)
    assert raised.value.code == failure.USAGE


def test_the_traceback_of_a_broken_file_is_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "broken.py").write_text("def cause():\n    return 1 / 0\n\ncause()\n")
    with pytest.raises(Failure):
        load("broken.py:agent", Agent)
    said_on_stderr = capsys.readouterr().err
    assert "line 2, in cause" in said_on_stderr
    assert "target.py" not in said_on_stderr
    assert "importlib" not in said_on_stderr


def test_a_file_finds_its_neighbours_and_may_have_the_name_of_a_module(here: Path) -> None:
    folder = here / "deep"
    folder.mkdir()
    (folder / "neighbour_of_json.py").write_text("NAME = 'found'\n")
    (folder / "json.py").write_text("from bus import Agent\nfrom neighbour_of_json import NAME\nagent = Agent(NAME)\n")
    assert load("deep/json.py:agent", Agent).name == "found"
    assert importlib.import_module("json").__name__ == "json"


def test_a_module_is_found_in_the_current_folder(here: Path) -> None:
    (here / "shop_agents").mkdir()
    (here / "shop_agents" / "pricing.py").write_text("from bus import Agent\nagent = Agent('pricing')\n")
    assert load("shop_agents.pricing:agent", Agent).name == "pricing"


def test_the_address_file_is_for_the_owner_only_and_gone_afterwards(here: Path) -> None:
    started = Started("nats://there", "nats://system", 1)
    with announced(started):
        assert (here / FILE).stat().st_mode & 0o777 == 0o600
        below = here / "a" / "b"
        below.mkdir(parents=True)
        assert find_started(below) == started
    assert not (here / FILE).exists()


def test_an_address_of_an_ended_process_is_passed_over_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with announced(Started("nats://there", "nats://system", child.pid)):
        with pytest.raises(Failure, match="no bus found") as raised:
            find(environment={})
        assert raised.value.code == failure.UNREACHABLE
    assert f"process {child.pid}, which wrote it, has ended" in capsys.readouterr().err


def test_an_address_file_that_is_none_is_passed_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FILE.parent.mkdir()
    FILE.write_bytes(b"\xff{")
    assert find_started() is None
    assert "ignored" in capsys.readouterr().err


def test_what_is_told_comes_before_the_environment_and_the_environment_before_the_folder(here: Path) -> None:
    with announced(Started("nats://folder", "nats://system", 1)):
        assert find("nats://told", environment={"NATS_URL": "nats://environment"}).settings["url"] == "nats://told"
        assert find(environment={"NATS_URL": "nats://environment"}).settings == {}
        assert find(environment={}).settings["url"] == "nats://folder"
    with pytest.raises(Failure, match="give one"):
        find("nats://told", "context", environment={})


def test_an_error_of_the_system_names_what_it_is_about_and_one_without_words_is_named_by_its_class() -> None:
    assert str(failure_of(FileNotFoundError(2, "No such file", "/proc/x"))) == "No such file: /proc/x"
    assert str(failure_of(Unavailable())) == "Unavailable"
    assert failure_of(TimeoutError()) is None


def test_a_store_is_said_to_be_held_only_while_it_is(here: Path) -> None:
    lock = (here / "lock").open("w")
    with lock:
        with pytest.raises(Unavailable), explained(here, "wait"):
            raise Unavailable("no nats-server")
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Failure, match="a running bus holds") as raised, explained(here, "wait"):
            raise Unavailable("in use")
    assert raised.value.next_step == "wait"


def test_no_payload_reaches_a_terminal_as_it_is() -> None:
    assert text.escaped("a\x1b[2J\u202eb\n\x9bc") == "a\\x1b[2J\\u202eb\\n\\x9bc"
    assert text.shortened("x" * 100, 10) == "xxxxxxx..."
    hostile = "\x1b\x9b\u202e"
    assert to_json(hostile) == '"\\u001b\\u009b\\u202e"'
    assert msgspec.json.decode(to_json(hostile)) == hostile


def test_json_that_others_stored_over_several_lines_is_printed_on_one() -> None:
    assert to_json({"raw": msgspec.Raw(b'{\n "a":\n 1}')}) == '{"raw":{"a":1}}'


def test_an_event_is_told_in_a_line() -> None:
    done = PhaseCompleted(phase="write", item=3, attempt=2, output=msgspec.Raw(b'{"a": "\\u001b"}'))
    assert said(done) == 'write:3 #2: {"a":"\\u001b"}'


def test_an_event_of_an_unknown_type_is_told_as_such_and_can_not_move_the_cursor() -> None:
    newer = UnknownEvent("phase.ready.v9", msgspec.Raw(b"{}"))
    assert (named(newer), said(newer)) == ("phase.ready.v9", "of a newer version, without effect here: {}")
    other = UnknownEvent("\x1b[2J", msgspec.Raw(b"{}"))
    assert (named(other), said(other)[:40]) == ("\\x1b[2J", "of a type this version does not know, wi")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.012, "12 ms"),
        (3.42, "3.4 s"),
        (125, "2 min 5 s"),
        (11_400, "3 h 10 min"),
        (180_000, "2 d 2 h"),
        (59.99, "1 min"),
    ],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (5_000_000, "5.0 MB"), (10**13, "10000.0 GB")],
)
def test_sizes_are_short(count: int, words: str) -> None:
    assert text.size(count) == words


def test_times_are_relative() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert text.ago(now - timedelta(seconds=3.9), now) == "3 s ago"
    assert text.ago(now - timedelta(minutes=5), now) == "5 min ago"
    assert text.ago(now + timedelta(seconds=1), now) == "now"
