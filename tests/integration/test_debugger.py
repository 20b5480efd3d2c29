"""`phasebus debug`, `run why` and `causes` as people type them, piped, as a script, and on a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Iterator

import pytest

from tests.integration.test_cli import AGENT, PHASEBUS, PLAN, Terminal, until_said

_ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal where a run has failed, one waits for an answer, and a parent waited for its child."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "pricing.py").write_text(AGENT)
    (folder / "order.toml").write_text(PLAN)
    nested = '\n[[phases.plan.phases]]\nkey = "price"\ncapability = "price"\ninput = { sku = "b" }\n'
    (folder / "nested.toml").write_text(
        'name = "nested"\n[[phases]]\nkey = "inside"\n[phases.plan]\nname = "inner"' + nested
    )
    typing = Terminal(folder, tmp_path_factory.mktemp("compiled"))
    with typing.background("up") as up:
        until_said(up, "Ctrl-C ends it")
        with typing.background("agent", "run", "--no-supervisor", "pricing.py:agent") as agent:
            until_said(agent, "serving")
            for name, items in (("bad", '[{"sku": "a"}, {"sku": "dear"}]'), ("good", '[{"sku": "a"}]')):
                start = ("run", "start", "order.toml", "--input", f'{{"items": {items}}}', "--id", name)
                assert typing.type(*start).returncode == 0
            assert typing.type("run", "follow", "bad").returncode == 1
            assert typing.type("run", "start", "nested.toml", "--id", "parent", "--follow").returncode == 0
            with typing.background("run", "follow", "good") as follower:
                until_said(follower, "waits for an answer")
        yield typing


def test_a_script_steps_and_tells_the_same_to_people_and_programs(terminal: Terminal) -> None:
    script = "n n g end d s"
    told = terminal.type("debug", "bad", "--script", script)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("event 2 of ")
    assert "status: in_progress -> failed" in told.stdout
    records = [
        json.loads(line) for line in terminal.type("debug", "bad", "--script", script, "--json").stdout.splitlines()
    ]
    assert [each["command"] for each in records] == ["n", "n", "g end", "d", "s"]
    assert records[0]["place"] == 1
    assert {"path": "status", "before": "in_progress", "after": "failed"} in records[3]["changes"]
    assert records[4]["state"]["status"] == "failed"
    piped = terminal.type("debug", "bad", stdin="n\nn g end\nd s\n")
    assert piped.stdout == told.stdout


def test_the_state_at_an_event_is_that_of_run_show(terminal: Terminal) -> None:
    events = terminal.results("events", "cat", "--run", "bad", "--subject", "bus.run.>")
    for position in {each["position"] for each in events}:
        [shown] = terminal.results("run", "show", "bad", "--at", str(position))
        [_, stepped] = terminal.type("debug", "bad", "--script", f"g {position} s", "--json").stdout.splitlines()
        assert json.loads(stepped)["state"] == shown


def test_messages_and_causes_reach_beyond_the_run(terminal: Terminal) -> None:
    told = terminal.type("debug", "bad", "--script", "b phase.failed e m").stdout
    assert "dead.letter" in told
    assert "\x1b" not in told
    far = terminal.type("debug", "parent", "--script", "g end c").stdout
    assert "phase.waiting" in far
    assert re.search(r"run\.completed +run\.parent-inside-", far)


def test_logs_are_found_by_run(terminal: Terminal) -> None:
    line = {"timestamp": "2026-01-01T00:00:00Z", "level": "info", "event": "hello", "run": "bad", "note": "\x1b[2J"}
    (terminal.folder / "agent.log").write_text(json.dumps(line) + "\nnoise\n")
    told = terminal.type("debug", "bad", "--logs", "agent.log", "--script", "l").stdout
    assert "hello" in told
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("debug", "nobody"), 3, "there is no run"),
        (("debug", "bad", "--script", "x"), 2, "there is no command 'x'"),
        (("debug", "bad", "--script", "g soon"), 2, "is no place"),
        (("debug", "bad", "--logs", "missing.log"), 2, "does not exist"),
        (("run", "why", "bad", "nothing"), 3, "has no phase 'nothing'; it has price, review"),
        (("run", "why", "bad", "price:x"), 2, "is no item"),
        (("causes", "nobody"), 3, "there is no run and no record"),
        (("causes", "999999"), 3, "nothing stands at position 999999"),
        (("causes", "1.99"), 3, "numbered from 0"),
        (("causes", "0" * 32), 3, "there is no run and no record"),
        (("doctor", "--store", "."), 2, "a stopped bus"),
    ],
)
def test_what_can_not_be_has_an_exit_code_and_a_reason(
    terminal: Terminal, words: tuple[str, ...], code: int, says: str
) -> None:
    ended = terminal.type(*words)
    assert (ended.returncode, says in ended.stderr) == (code, True), ended.stderr


def test_why_is_a_paragraph_with_the_command_to_type(terminal: Terminal) -> None:
    failed = terminal.type("run", "why", "bad", "price").stdout
    flat = " ".join(failed.split())
    assert "price opened when the run began: it needs no other phase. Of its 2 items 1 completed, 1 failed." in flat
    assert "Attempt 1 (item 1), by agent pricing, instance pricing-" in flat
    assert "no \\x1b[31mbudget" in flat
    assert flat.endswith("next: phasebus run redrive bad")
    [waiting] = terminal.results("run", "why", "good", "review")
    assert waiting["next_step"] == "phasebus run approve good review"
    assert waiting["paragraph"].startswith("review opened ")
    [child] = terminal.results("run", "why", "parent", "inside")
    assert "for run parent-inside-" in child["waited"]


def test_causes_are_told_from_a_position_a_record_and_a_run(terminal: Terminal) -> None:
    told = terminal.type("causes", "parent")
    assert told.stdout.startswith("> ")
    assert "run.parent-inside-" in told.stdout
    assert told.stderr == "nothing in the log led to it\n"
    [letter] = terminal.results("events", "cat", "--type", "dead.letter")
    by_position = terminal.results("causes", str(letter["position"]))
    assert by_position == terminal.results("causes", letter["id"])
    assert [each["type"] for each in by_position][:1] == ["run.started.v1"]
    asked = next(each for each in by_position if each.get("asked"))
    assert (asked["type"], asked["run"]) == ("dead.letter.v1", "bad")
    failed = next(each for each in by_position if each["type"] == "phase.failed.v1")
    assert asked["cause"] == f"{failed['position']}.{failed['index']}"


class Screen:
    """A real terminal with the debugger in it."""

    def __init__(self, terminal: Terminal, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self._child = subprocess.Popen(
            [str(PHASEBUS), "debug", *words],
            cwd=terminal.folder,
            env=terminal.environment | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        self._seen = b""

    def press(self, keys: str, until: str) -> str:
        """Type, and wait until the screen says so; returns what was drawn since."""
        os.write(self._ours, keys.encode())
        return self.wait(until)

    def wait(self, until: str) -> str:
        self._seen = b""
        while until not in (text := _ANSI.sub(b"", self._seen).decode(errors="replace")):
            ready, _, _ = select.select([self._ours], [], [], 20)
            assert ready, f"{until!r} was not shown: {text}"
            self._seen += os.read(self._ours, 65536)
        return text

    def leave(self, keys: str) -> int:
        os.write(self._ours, keys.encode())
        code = self._child.wait(20)
        assert termios.tcgetattr(self._theirs) == self.before, "the terminal is as it was"
        os.close(self._theirs)
        os.close(self._ours)
        return code


@pytest.mark.parametrize("leaving", ["q", "\x03", "\x04"])
def test_on_a_terminal_keys_step_search_and_ask(terminal: Terminal, leaving: str) -> None:
    screen = Screen(terminal, "bad")
    screen.wait("d diff, l, q")
    screen.press("n", "event 2 of ")
    screen.press("\x1b[C", "event 3 of ")
    screen.press("\x1b[D", "event 2 of ")
    screen.press("g", "go to")
    screen.press("en", "en")
    screen.press("d\r", "run.failed")
    screen.press("d", "status: in_progress -> failed")
    screen.press("?", "search back")
    screen.press("run.started\r", "event 1 of ")
    screen.press("/", "search")
    screen.press("\x1b", "event 1 of ")
    screen.press("s", "in progress")
    screen.press("x", "there is no command 'x'")
    screen.press("m", "dead.letter")
    assert screen.leave(leaving) == 0
