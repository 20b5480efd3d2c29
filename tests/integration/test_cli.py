"""The real commands, as child processes, against a real `phasebus up`."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest

from bus import connect
from bus.broker.connection import Connection
from bus.format.envelope import envelope
from bus.rules.events import COMMIT

PHASEBUS = Path(sys.executable).with_name("phasebus")
# No bus of somebody else's; and what thirty commands import is compiled once, whatever this process was told.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("NATS_", "PHASEBUS_")) and name != "PYTHONDONTWRITEBYTECODE"
}

AGENT = """
from pathlib import Path
from msgspec import Struct
from bus import Agent, Reject

class Price(Struct, frozen=True):
    sku: str

agent = Agent("pricing", version="1.2.0")

@agent.capability("price", concurrency=4)
async def price(query: Price) -> dict[str, str]:
    if query.sku == "dear" and not Path("budget").exists():
        try:
            {}["budget"]
        except KeyError as error:
            raise Reject("no \\x1b[31mbudget") from error
    return {"sku": query.sku, "remark": "\\x1b[2Jcleared?"}
"""

SLOW = """
import asyncio
from bus import Agent

agent = Agent("slow")

@agent.capability("slow")
async def slow(query: dict[str, str]) -> None:
    await asyncio.sleep(60)
"""

PLAN = """
name = "order"

[[phases]]
key = "price"
capability = "price"
each = "input.items"
input = { ref = "item" }

[[phases]]
key = "review"
after = ["price"]
approval = { prompt = "looks right?" }
"""

UNCHECKED = PLAN.partition('[[phases]]\nkey = "review"')[0].replace("order", "unchecked")
UNSERVED = 'name = "unserved"\n[[phases]]\nkey = "paint"\ncapability = "paint"\n'
BAD = """name = "bad"

[[phases]]
key = "one"
capability = "price"

[[phases]]
key = "two"
capability = "price"
after = ["missing"]
"""


class Terminal:
    """A folder to type commands in."""

    def __init__(self, folder: Path, compiled: Path) -> None:
        self.folder = folder
        self.environment = CLEAN | {"PYTHONPYCACHEPREFIX": str(compiled)}

    def type(self, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PHASEBUS, *words],
            check=False,
            cwd=self.folder,
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def results(self, *words: str) -> list[dict[str, Any]]:
        """What the command says with --json; it must succeed."""
        ended = self.type(*words, "--json")
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    @contextmanager
    def background(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [PHASEBUS, *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.terminate()
                process.communicate(timeout=20)


def until_said(process: subprocess.Popen[str], word: str) -> str:
    """Read what it says up to a line with the word."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(f"it ended without saying {word!r}:\n{said}")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def server_pid(folder: Path) -> int:
    [ports] = (folder / ".phasebus/log").glob("*.ports")
    return int(ports.stem.rpartition("_")[2])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory, compiled: Path) -> Iterator[Terminal]:
    """A terminal in a folder where a bus and an agent run."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "pricing.py").write_text(AGENT)
    for name, text in {"order": PLAN, "unchecked": UNCHECKED, "unserved": UNSERVED, "bad": BAD}.items():
        (folder / f"{name}.toml").write_text(text)
    typing = Terminal(folder, compiled)
    with typing.background("up") as up:
        until_said(up, "Ctrl-C ends it")
        with typing.background("agent", "run", "pricing.py:agent") as agent:
            assert json.loads(until_said(agent, "serving").splitlines()[-1])["capabilities"] == ["price"]
            yield typing


def test_the_whole_tour(terminal: Terminal) -> None:
    start = ("run", "start", "order.toml", "--input", '{"items": [{"sku": "a"}, {"sku": "b"}]}', "--id", "order-tour")
    with terminal.background(*start, "--follow") as follower:
        assert until_said(follower, "waits for an answer").startswith("order-tour\n")
        with ThreadPoolExecutor() as at_once:
            agents = at_once.submit(terminal.results, "agent", "ls")
            attention = at_once.submit(terminal.type, "attention")
            assert [beat["agent"] for beat in agents.result()] == ["pricing"]
            assert "phasebus run approve order-tour review" in attention.result().stdout
        approved = terminal.type("run", "approve", "order-t", "review", "--comment", "fine")
        assert approved.stdout == "approved review: run order-tour is completed\n"
        rest, _ = follower.communicate(timeout=20)
        assert "\x1b" not in rest
        assert follower.returncode == 0
    with ThreadPoolExecutor() as at_once:
        listed = at_once.submit(terminal.results, "run", "ls", "--plan", "order", "--status", "completed")
        shown = at_once.submit(terminal.type, "run", "show", "order-tour")
        told = at_once.submit(terminal.type, "replay", "order-tour")
        replayed = at_once.submit(terminal.results, "replay", "order-tour")
        assert "order-tour" in [row["run"] for row in listed.result()]
        assert "looks" not in shown.result().stderr
        assert "price   completed  2/2" in shown.result().stdout
        assert "\\u001b[2Jcleared?" in told.result().stdout
        assert "\x1b" not in told.result().stdout
        events = replayed.result()
    assert [events[0]["type"], events[-1]["type"]] == ["run.started.v1", "run.completed.v1"]
    assert events[0]["state"]["phases_done"] == 0
    assert events[-1]["state"]["status"] == "completed"
    before = next(each for each in events if each["type"] == "phase.started.v1")["position"]
    part = ("--from", str(before), "--to", str(before))
    assert {event["position"] for event in terminal.results("replay", "order-tour", *part)} == {before}
    [then] = terminal.results("run", "show", "order-tour", "--at", str(before))
    assert then["phases"]["price"]["status"] == "in_progress"
    assert then["phases"]["review"]["status"] == "pending"


def test_dead_work_is_shown_whole_and_goes_on_when_it_is_redriven(terminal: Terminal) -> None:
    items = '{"items": [{"sku": "a"}, {"sku": "dear"}]}'
    failed = terminal.type("run", "start", "unchecked.toml", "--input", "-", "--id", "dear", "--follow", stdin=items)
    assert failed.returncode == 1, failed.stderr
    [letter] = terminal.results("dead", "ls")
    assert (letter["run"], letter["payload"], letter["status"]) == ("dear", {"sku": "dear"}, "open")
    number = str(letter["number"])
    shown = terminal.type("dead", "show", number).stdout
    assert '"sku": "dear"' in shown
    assert "no \\x1b[31mbudget (rejected, permanent)" in shown
    assert terminal.type("dead", "redrive", number).returncode == 0
    assert terminal.type("run", "follow", "dear").returncode == 1
    stale = terminal.type("dead", "redrive", number)
    assert stale.returncode == 6
    assert stale.stderr == (
        f"error: dead letter {number} was redriven before, and died again: a newer one stands for it\n"
        "  next: phasebus run show dear\n"
    )
    [letter] = terminal.results("dead", "ls")
    number = str(letter["number"])
    (terminal.folder / "budget").touch()
    assert terminal.type("dead", "redrive", number).stdout == f"redriven {number}\n"
    assert terminal.type("run", "follow", "dear").returncode == 0
    with ThreadPoolExecutor() as at_once:
        now_open = at_once.submit(terminal.results, "dead", "ls")
        ever = at_once.submit(terminal.results, "dead", "ls", "--all", "--capability", "price")
        again = at_once.submit(terminal.type, "dead", "redrive", number)
        nothing = at_once.submit(terminal.type, "dead", "redrive")
        assert now_open.result() == []
        assert [each["status"] for each in ever.result()] == ["resolved", "resolved"]
        assert again.result().returncode == 6
        assert f"dead letter {number} is resolved" in again.result().stderr
        assert "next: phasebus run show dear" in again.result().stderr
        assert nothing.result().returncode == 2


async def test_a_message_nobody_could_read_is_shown_as_text_and_bytes(terminal: Terminal) -> None:
    url = json.loads((terminal.folder / ".phasebus/address.json").read_bytes())["url"]
    async with Connection.open(url, name="vandal") as connection:
        connection.publish("bus.work.price.vandal.price.1", b"\x1b[31m\xff not ours")
        await connection.flush(5)
    deadline = time.monotonic() + 10
    while not (found := terminal.results("dead", "ls")) and time.monotonic() < deadline:
        pass
    [letter] = found
    shown = terminal.type("dead", "show", str(letter["number"])).stdout
    assert "\\x1b[31m\\xff not ours" in shown
    assert "1b 5b 33 31 6d ff" in shown


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("run start bad.toml", 2, "bad.toml:8: "),
        ("run start unserved.toml --input {", 2, "the input is not JSON"),
        ("run show nothing", 3, "there is no run 'nothing'"),
        ("dead show 99999", 3, "there is no dead letter 99999"),
        ("run start unserved.toml --fail-fast", 6, "no live agent for 'paint'"),
        ("run ls --store pricing", 3, "there is no log of a bus"),
        ("run ls --store .phasebus/log", 6, "next: leave out --store"),
        ("run start unserved.toml --store .phasebus/log", 2, "nobody could serve the work"),
        ("dead show 99999", 3, "next: phasebus dead ls --all"),
        ("up", 6, "a bus runs here already"),
    ],
)
def test_what_goes_wrong_has_an_exit_code_and_two_lines(terminal: Terminal, words: str, code: int, says: str) -> None:
    ended = terminal.type(*words.split(), "--json")
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads(ended.stdout)["code"] in ("usage", "not_found", "unreachable", "refused")


def test_a_bus_that_does_not_answer_and_a_wrong_setting_are_told_apart(terminal: Terminal) -> None:
    away = terminal.type("run", "ls", NATS_URL="nats://127.0.0.1:1", PHASEBUS_REQUEST_TIMEOUT_S="0.5")
    assert away.returncode == 4
    assert "start a bus with `phasebus up`, or set NATS_URL" in away.stderr
    wrong = terminal.type("run", "ls", PHASEBUS_REQUEST_TIMEOUT_S="never")
    assert wrong.returncode == 2
    assert "PHASEBUS_REQUEST_TIMEOUT_S" in wrong.stderr
    nowhere = subprocess.run(
        [PHASEBUS, "run", "ls"],
        check=False,
        cwd="/",
        env=terminal.environment | {"PHASEBUS_BEAT_S": "often"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (nowhere.returncode, "PHASEBUS_BEAT_S" in nowhere.stderr) == (2, True)


def test_a_refused_login_and_a_mistyped_namespace_are_said_and_create_nothing(terminal: Terminal) -> None:
    url = json.loads((terminal.folder / ".phasebus/address.json").read_bytes())["url"]
    stranger = terminal.type("run", "ls", NATS_URL="nats://who:ever@" + url.rpartition("@")[2])
    assert stranger.returncode == 4
    assert "the server refused the login" in stranger.stderr
    assert "running" not in stranger.stderr
    for _ in range(2):
        typo = terminal.type("run", "ls", PHASEBUS_NAMESPACE="typo")
        assert typo.returncode == 3
        assert "there is no bus with namespace 'typo' on this server" in typo.stderr


def test_a_bus_that_can_not_start_says_why_in_a_line(terminal: Terminal) -> None:
    below = Terminal(terminal.folder / "below", terminal.folder)
    below.folder.mkdir()
    below.environment = terminal.environment
    url = json.loads((terminal.folder / ".phasebus/address.json").read_bytes())["url"]
    port = url.rpartition(":")[2]
    hides = f"warning: this bus hides the one of {terminal.folder} from this folder and those below it\n"
    taken = below.type("up", "--port", port)
    assert taken.stderr == f"{hides}error: port {port} is in use: choose another one\n"
    assert taken.returncode == 6
    nowhere = below.type("up", "--store", "/dev/null/log")
    assert nowhere.stderr == f"{hides}error: Not a directory: /dev/null/log\n"
    assert "a running bus holds" in below.type("up", "--store", "../.phasebus/log").stderr


def test_a_finished_run_is_told_with_its_own_times_and_percents(terminal: Terminal) -> None:
    start = ("run", "start", "order.toml", "--input", '{"items": [{"sku": "a"}]}', "--id", "told")
    assert terminal.type(*start).returncode == 0
    again = terminal.type(*start)
    assert again.returncode == 6
    assert "next: phasebus run show told" in again.stderr
    with terminal.background("run", "follow", "told") as follower:
        until_said(follower, "waits for an answer")
    assert terminal.type("run", "approve", "told", "review").returncode == 0
    told = terminal.type("run", "follow", "told").stdout.splitlines()
    assert told[0].startswith("    0 ms    0%  told started")
    percents = [int(line[:14].strip().rpartition(" ")[2].removesuffix("%")) for line in told]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert any(0 < percent < 100 for percent in percents)


def test_who_hands_out_work_again_is_told_that_nobody_is_there_for_it(terminal: Terminal) -> None:
    assert terminal.type("run", "start", "unserved.toml", "--id", "again").returncode == 0
    assert terminal.type("run", "cancel", "again").returncode == 0
    redriven = terminal.type("run", "redrive", "again")
    assert redriven.stderr == "no live agent for paint: the run waits for one\n"
    with terminal.background("run", "follow", "again") as follower:
        until_said(follower, "paint waits: no live agent offers 'paint': phasebus agent run FILE.py:agent")


def test_an_agent_on_a_terminal_logs_for_eyes_and_says_what_it_waits_for(terminal: Terminal) -> None:
    (terminal.folder / "slow.py").write_text(SLOW)
    (terminal.folder / "slow.toml").write_text(UNSERVED.replace("paint", "slow").replace("unserved", "slow"))
    ours, theirs = pty.openpty()
    command = [str(PHASEBUS), "agent", "run", "--no-supervisor", "slow.py:agent"]
    with (
        os.fdopen(ours) as screen,
        subprocess.Popen(command, cwd=terminal.folder, env=terminal.environment, stderr=theirs) as agent,
    ):
        os.close(theirs)
        assert "[info" in read_until(screen, "serving")
        assert terminal.type("run", "start", "slow.toml", "--id", "slow").returncode == 0
        read_until(screen, "started")
        agent.send_signal(signal.SIGINT)
        read_until(screen, "finishing 1 piece of work, 10 s at most; Ctrl-C again ends it at once")
        agent.send_signal(signal.SIGINT)
        assert agent.wait(20) == 130


def read_until(screen: TextIO, words: str) -> str:
    """The line with the words, of a terminal."""
    for line in screen:
        if words in line:
            return line
    raise AssertionError(f"it ended without {words!r}")


def test_an_answer_nobody_waits_for_is_refused_and_work_without_agents_is_said_to_wait(terminal: Terminal) -> None:
    started = terminal.type("run", "start", "unserved.toml", "--id", "waiting")
    assert (started.returncode, started.stdout) == (0, "waiting\n")
    assert started.stderr == "no live agent for paint: the run waits for one\n"
    refused = terminal.type("run", "approve", "waiting", "paint")
    assert refused.returncode == 6
    assert "next: phasebus run show waiting" in refused.stderr
    with terminal.background("run", "follow", "waiting") as follower:
        until_said(follower, "waiting started")
        follower.send_signal(signal.SIGINT)
        said, _ = follower.communicate(timeout=20)
        assert follower.returncode == 130
        assert said.split("\n", 1)[0] == "the run goes on: phasebus run follow waiting"
    assert terminal.type("run", "cancel", "waiting", "--reason", "enough").returncode == 0
    [state] = terminal.results("run", "show", "waiting")
    assert state["status"] == "cancelled"


async def test_events_that_this_version_does_not_know_are_shown_and_said_to_have_no_effect(terminal: Terminal) -> None:
    assert terminal.type("run", "start", "unserved.toml", "--id", "future").returncode == 0
    url = json.loads((terminal.folder / ".phasebus/address.json").read_bytes())["url"]
    newer = [{"type": "phase.ready.v2", "phase": "paint"}, {"type": "phase.\x1b[2J.v1"}]
    message = envelope(COMMIT, {"events": newer}, id="future", source="x", time=datetime.now(UTC), runid="future")
    async with connect(url) as client:
        await client.log.append(client.subjects.run("future"), message)
    shown = terminal.type("run", "show", "future")
    assert "unknown   2 events of types this version does not know: phasebus replay future" in shown.stdout
    assert "events of an unknown type are kept" in shown.stderr
    assert "\x1b[2J" not in shown.stdout + shown.stderr
    told = terminal.type("replay", "future").stdout.splitlines()
    assert "phase.ready.v2        of a newer version, without effect here: {" in told[-4]
    assert "phase.\\x1b[2J.v1      of a type this version does not know, without effect here: {" in told[-2]
    assert terminal.results("replay", "future")[-1]["event"]["raw"] == newer[1]


def test_a_reader_that_has_had_enough_is_not_told_so(terminal: Terminal) -> None:
    assert terminal.type("run", "start", "unserved.toml", "--id", "closed").returncode == 0
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [PHASEBUS, "replay", "closed"],
            check=False,
            cwd=terminal.folder,
            env=terminal.environment,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=20,
        )
    finally:
        os.close(write)
    assert ended.stderr == b""


def test_a_bus_outlives_its_server_and_leaves_nothing_but_its_log(tmp_path: Path, compiled: Path) -> None:
    typing = Terminal(tmp_path, compiled)
    (tmp_path / "unserved.toml").write_text(UNSERVED)
    assert typing.type("run", "ls").returncode == 4
    with typing.background("up") as up:
        until_said(up, "Ctrl-C ends it")
        assert typing.type("run", "start", "unserved.toml", "--id", "kept").returncode == 0
        os.kill(first := server_pid(tmp_path), signal.SIGKILL)
        until_said(up, "started again")
        assert [row["run"] for row in typing.results("run", "ls")] == ["kept"]
        second = server_pid(tmp_path)
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=20)
        assert up.returncode == 0
    assert not is_alive(first)
    assert not is_alive(second)
    assert not (tmp_path / ".phasebus/address.json").exists()
    assert [row["run"] for row in typing.results("run", "ls", "--store", ".phasebus/log")] == ["kept"]


def test_a_bus_says_where_who_only_reads_comes_in_also_by_websocket(tmp_path: Path, compiled: Path) -> None:
    typing = Terminal(tmp_path, compiled)
    (tmp_path / "unserved.toml").write_text(UNSERVED)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with typing.background("up", "--websocket", port) as up:
        until_said(up, "Ctrl-C ends it")
        said = json.loads((tmp_path / ".phasebus/address.json").read_bytes())
        assert said["websocket_url"] == f"ws://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
            pass
        refused = typing.type("run", "start", "unserved.toml", NATS_URL=said["auditor_url"])
        assert (refused.returncode, "may only read" in refused.stderr) == (6, True)
        assert typing.type("run", "start", "unserved.toml", "--id", "seen").returncode == 0
        seen = typing.type("run", "ls", "--json", NATS_URL=said["auditor_url"])
        assert json.loads(seen.stdout)["run"] == "seen"
