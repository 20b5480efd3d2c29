"""`phasebus events` and `replay --into` as people type them, against a real `phasebus up`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from bus.broker.server import Server
from tests.integration.test_cli import AGENT, PHASEBUS, UNCHECKED, Terminal, until_said

SEEN = """
from pathlib import Path

def seen(happening):
    with Path("seen").open("a") as file:
        file.write(f"{happening.position}.{happening.index} {happening.type}\\n")

async def seen_too(happening):
    seen(happening)

def broken(happening):
    raise ValueError("enough")
"""


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal in a folder where a bus runs, in whose log a run has failed and another has not been served."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "pricing.py").write_text(AGENT)
    (folder / "changed.py").write_text(AGENT.replace("cleared?", "other"))
    (folder / "seen.py").write_text(SEEN)
    (folder / "order.toml").write_text(UNCHECKED)
    typing = Terminal(folder, tmp_path_factory.mktemp("compiled"))
    with typing.background("up") as up:
        until_said(up, "Ctrl-C ends it")
        with typing.background("agent", "run", "--no-supervisor", "pricing.py:agent") as agent:
            until_said(agent, "serving")
            items = '{"items": [{"sku": "a"}, {"sku": "dear"}]}'
            start = ("run", "start", "order.toml", "--input", items, "--id", "order-1", "--follow")
            assert typing.type(*start).returncode == 1
        yield typing


def test_cat_tells_what_is_in_the_log_to_people_and_to_programs(terminal: Terminal) -> None:
    told = terminal.type("events", "cat").stdout
    assert "agent.pricing.pricing-" in told
    assert "\x1b" not in told
    [dead] = [line for line in told.splitlines() if "dead.letter" in line]
    assert "order-1/price:1 #1: no \\x1b[31mbudget" in dead
    everything = terminal.results("events", "cat")
    assert len(everything) == len(told.splitlines())
    assert {"position", "index", "subject", "type", "at", "stored_at", "id", "source"} <= everything[0].keys()
    some = terminal.results("events", "cat", "--run", "order", "--type", "phase.started", "--reverse", "--limit", "1")
    assert [(each["event"]["item"], each["type"]) for each in some] == [(1, "phase.started.v1")]
    [first, *_] = everything
    assert terminal.results("events", "cat", "--until", first["stored_at"]) == []
    [came, *_] = [each for each in everything if each["type"] == "agent.registered.v1"]
    upto = str(came["position"])
    assert terminal.results("events", "cat", "--since", "1h", "--agent", "pricing", "--upto", upto) == [came]


def test_a_run_is_shown_as_it_was_at_a_time(terminal: Terminal) -> None:
    first, *_, last = terminal.results("events", "cat", "--run", "order-1", "--type", "run.*")
    [then] = terminal.results("run", "show", "order-1", "--at", last["stored_at"])
    assert (first["position"] <= then["position"] < last["position"], then["status"]) == (True, "in_progress")
    before = terminal.type("run", "show", "order-1", "--at", first["stored_at"])
    assert before.returncode == 3
    assert "there was no run 'order-1' at position" in before.stderr


def test_tail_tells_the_newest_and_what_comes_until_it_is_stopped(terminal: Terminal) -> None:
    last = terminal.results("events", "tail", "-n", "2")
    assert last == terminal.results("events", "cat")[-2:]
    with terminal.background("events", "tail", "-n", "1", "-f", "--type", "run.*") as tail:
        until_said(tail, "run.failed")
        assert terminal.type("run", "start", "order.toml", "--input", '{"items": []}', "--id", "later").returncode == 0
        until_said(tail, "run.later")
        tail.send_signal(signal.SIGINT)
        rest, _ = tail.communicate(timeout=20)
        assert tail.returncode == 0
        assert "Traceback" not in rest


def test_a_reader_that_has_had_enough_ends_a_tail(terminal: Terminal) -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [PHASEBUS, "events", "tail", "-f", "-n", "1"],
        cwd=terminal.folder,
        env=terminal.environment,
        stdout=write,
        stderr=subprocess.PIPE,
    ) as tail:
        os.close(write)
        assert os.read(read, 1)
        os.close(read)
        assert terminal.type("run", "start", "order.toml", "--input", '{"items": []}').returncode == 0
        _, said = tail.communicate(timeout=20)
        assert said == b""


async def test_a_log_moves_to_another_server_and_says_the_same_there(terminal: Terminal, server: Server) -> None:
    exported = terminal.type("events", "export", "-o", "log.jsonl", "--run", "order-1")
    assert exported.stderr.startswith("exported ")
    assert not list(terminal.folder.glob("*.part"))
    text = (terminal.folder / "log.jsonl").read_text()
    assert terminal.type("events", "export", "--run", "order-1").stdout == text
    there = {"NATS_URL": server.url}
    count = len(text.splitlines())
    assert terminal.type("events", "import", "-", stdin=text, **there).stderr == f"imported {count} records\n"
    again = terminal.type("events", "import", "log.jsonl", "--json", **there)
    assert json.loads(again.stdout) == {"stored": 0, "there": count, "left_out": []}
    for words in (("run", "ls"), ("dead", "ls"), ("run", "show", "order-1")):
        ours = terminal.type(*words, "--json").stdout.splitlines()
        theirs = terminal.type(*words, "--json", **there).stdout.splitlines()
        wanted = [unplaced(line) for line in ours if "order-1" in line]
        assert [unplaced(line) for line in theirs] == wanted


def unplaced(line: str) -> object:
    """Without where it stands in the log."""
    return without_positions(json.loads(line))


def without_positions(value: object) -> object:
    if isinstance(value, list):
        return [without_positions(each) for each in value]
    if isinstance(value, dict):
        places = ("position", "number", "origin", "began")
        # An attempt's number is no place: it is kept where there is an agent beside it.
        kept = {name for name in value if name not in places or (name == "number" and "agent" in value)}
        return {name: without_positions(value[name]) for name in value if name in kept}
    return value


def test_an_import_beside_a_supervisor_goes_into_a_namespace_of_its_own(terminal: Terminal) -> None:
    assert terminal.type("events", "export", "-o", "all.jsonl").returncode == 0
    refused = terminal.type("events", "import", "all.jsonl")
    assert refused.returncode == 6
    assert "a supervisor is at work in namespace 'bus'" in refused.stderr
    assert "next: phasebus events import FILE --into NAMESPACE" in refused.stderr
    assert terminal.type("events", "import", "all.jsonl", "--into", "copy").returncode == 0
    assert "order-1" in terminal.type("run", "ls", PHASEBUS_NAMESPACE="copy").stdout
    (terminal.folder / "broken.jsonl").write_text("{}\n")
    broken = terminal.type("events", "import", "broken.jsonl", "--into", "copy")
    assert (broken.returncode, "line 1 is not a record of a log" in broken.stderr) == (1, True)


def test_work_is_done_again_by_the_code_of_today_and_compared(terminal: Terminal) -> None:
    before = terminal.results("events", "tail", "-n", "1")
    same = terminal.type("replay", "order-1", "--into", "pricing.py:agent")
    assert (same.returncode, same.stderr) == (0, "2 attempts: 2 same\n")
    other = terminal.type("replay", "--into", "changed.py:agent", "--speed", "100", "--capability", "price", "--json")
    assert other.returncode == 1
    [differs, alike] = [json.loads(line) for line in other.stdout.splitlines()]
    assert (differs["verdict"], alike["verdict"]) == ("differs", "same")
    assert differs["recorded"]["output"]["remark"] == "\x1b[2Jcleared?"
    assert differs["now"]["output"]["remark"] == "\x1b[2Jother"
    assert terminal.results("events", "tail", "-n", "1") == before


def test_a_function_gets_every_event_in_order(terminal: Terminal) -> None:
    chosen = ("--run", "order-1", "--type", "phase.*")
    wanted = [
        f"{each['position']}.{each['index']} {each['type']}" for each in terminal.results("events", "cat", *chosen)
    ]
    for function in ("seen", "seen_too"):
        fed = terminal.type("replay", "--into", f"seen.py:{function}", *chosen)
        assert (fed.returncode, fed.stderr) == (0, f"fed {len(wanted)} events\n")
        assert (terminal.folder / "seen").read_text().splitlines() == wanted
        (terminal.folder / "seen").unlink()
    broken = terminal.type("replay", "--into", "seen.py:broken", *chosen)
    assert broken.returncode == 1
    assert 'raise ValueError("enough")' in broken.stderr
    assert f"raised ValueError on the event at {wanted[0].split()[0]}" in broken.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("events cat --since yesterday", 2, "is not a time"),
        ("events cat --run nothing", 3, "there is no run"),
        ("events tail -f --upto 3", 2, "to follow has no end"),
        ("events cat --after 10 --upto 5", 2, "nothing is in a range from --after 10 to --upto 5"),
        ("events export --since 1h --until 2h", 2, "nothing is in a range from --since"),
        ("events cat --type nonsense", 0, "no such events"),
        ("events tail --subject bus.nobody.>", 0, "no such events"),
        ("replay order-1 --from 28 --to 25", 2, "--to 25 is before --from 28"),
        ("events import pricing.py --into copy", 1, "pricing.py: line 2 is not a record of a log"),
        ("events import pricing.py --into No!", 2, "(PHASEBUS_NAMESPACE): it is not a name"),
        ("events import nothing.jsonl", 2, "does not exist"),
        ("replay", 2, "--into FILE.py:NAME"),
        ("replay order-1 --type run.started", 2, "--into FILE.py:NAME"),
        ("replay --into seen.py:nothing", 2, "seen.py has no 'nothing'"),
        ("replay --into seen.py:Path --capability price", 2, "--capability is for an agent"),
        ("replay --into pricing.py:agent --capability paint", 2, "has no capability 'paint', but price"),
        ("replay --into pricing.py:agent --type run.started", 2, "--type is for a function"),
        ("replay --into pricing.py:agent --until 7d", 3, "no attempts were recorded for price"),
        ("replay --into pricing.py:agent --speed 0", 2, "is not a speed"),
    ],
)
def test_what_can_not_be_has_an_exit_code_and_a_reason(terminal: Terminal, words: str, code: int, says: str) -> None:
    ended = terminal.type(*words.split())
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
