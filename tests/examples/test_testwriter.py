"""The worked example on a small package that does everything tested code should not do."""

import asyncio
import http.server
import importlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bus import Plan, Reject
from bus.rules.references import references

FOLDER = Path(__file__).parents[2] / "examples" / "testwriter"
AGENTS = ("scanner", "analyst", "author", "runner", "reporter")
SAMPLE = {
    "__init__": "",
    "tidy": "def double(number: int) -> int:\n    'Twice.'\n    return 2 * number if number or not number else 0\n",
    "faulty": "def share(total: int, parts: int) -> float:\n    return total / parts\n",
    "untyped": "def first(items):\n    return items[0].upper()\n\ndef strict(x):\n    raise TypeError(x)\n",
    "picky": "class Even:\n    def __init__(self, number: int) -> None:\n        if number % 2:\n"
    "            raise ValueError(number)\n\ndef half(even: Even) -> None:\n    pass\n",
    "endless": "def spin(count: int) -> None:\n    while True:\n        pass\n",
    "hungry": "def eat(count: int) -> None:\n    kept = []\n    while True:\n        kept.append(bytes(1 << 24))\n",
    "broken": "def (:\n",
    "leaving": 'import os, sys\n\ndef leave(code: int) -> None:\n    print(\'{"name": "forged"}\')\n'
    "    os.write(1, b'no')\n    sys.exit(3)\n\ndef vanish(code: int) -> None:\n    os._exit(7)\n",
    "outside": "import pathlib\n\ndef wipe(count: int) -> None:\n    pathlib.Path(__file__).unlink()\n",
    "stuck": "while True:\n    pass\n",
    "fatal": "import os\nos._exit(5)\n",
    "empty": "ANSWER = 42\n",
}


@pytest.fixture(scope="module", autouse=True)
def folder_on_path() -> Iterator[None]:
    """As the loader does for an agent's file; the example's modules are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "sample"
    (folder / "tests").mkdir(parents=True)
    for name, source in SAMPLE.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "tests" / "test_tidy.py").write_text("from sample import faulty, tidy\n")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def run(folder_on_path: None, package: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One whole pass of the plan's phases over the package, without the bus."""
    import discovery
    import measures
    import trials
    import writing
    from contracts import Measure, Run, Scan, Write

    folder = tmp_path_factory.mktemp("run")
    query = Scan(str(package), limit=len(SAMPLE))
    scanned = discovery.scan(query, workdir=str(folder / "work"), destination=str(folder / "reports"))
    modules = {module.name.removeprefix("sample").lstrip("."): module for module in scanned.modules}
    measured = [measures.measure(Measure(module, scanned.root)) for module in scanned.modules]

    async def write_and_try() -> tuple[list[Any], list[Any]]:
        gate = asyncio.Semaphore(2)

        async def one(module: Any) -> tuple[Any, Any]:
            async with gate:
                limit_s = 2.0 if module.name == "sample.stuck" else 20.0
                written = await writing.write(Write(module, scanned.workdir), None, limit_s=limit_s)
                return written, await trials.try_tests(Run(written, test_s=0.7, memory_bytes=512 << 20))

        pairs = await asyncio.gather(*(one(module) for module in scanned.modules))
        return [written for written, _ in pairs], [ran for _, ran in pairs]

    written, results = asyncio.run(write_and_try())
    return SimpleNamespace(
        scanned=scanned,
        modules=modules,
        measured={each.module.removeprefix("sample").lstrip("."): each for each in measured},
        written=dict(zip(modules, written, strict=True)),
        results=dict(zip(modules, results, strict=True)),
    )


def test_a_scan_lists_public_names_and_leaves_out_tests_and_hidden_folders(run: SimpleNamespace) -> None:
    assert set(run.modules) == {"" if name == "__init__" else name for name in SAMPLE}
    assert run.modules["leaving"].functions == ["leave", "vanish"]
    assert run.modules["tidy"].root == run.scanned.root
    assert run.scanned.left_out == 0


def test_a_module_with_a_syntax_error_is_listed_with_it_and_skipped_by_every_phase(run: SimpleNamespace) -> None:
    assert "cannot be parsed" in run.modules["broken"].problem
    assert "cannot be parsed" in run.measured["broken"].problem
    assert "cannot be parsed" in run.written["broken"].skipped
    assert "cannot be parsed" in run.results["broken"].problem


def test_a_scan_keeps_the_biggest_modules_and_counts_the_rest(package: Path, tmp_path: Path) -> None:
    import discovery
    from contracts import Scan

    scanned = discovery.scan(Scan(str(package), limit=1), workdir=str(tmp_path))
    assert [module.name for module in scanned.modules] == ["sample.leaving"]
    assert scanned.left_out == len(SAMPLE) - 1


def test_a_scan_finds_a_package_or_a_single_module_by_name(tmp_path: Path) -> None:
    import discovery
    from contracts import Scan

    names = [module.name for module in discovery.scan(Scan("json"), workdir=str(tmp_path)).modules]
    assert names == ["json", "json.decoder", "json.encoder", "json.scanner", "json.tool"]
    assert [module.name for module in discovery.scan(Scan("textwrap"), workdir=str(tmp_path)).modules] == ["textwrap"]


@pytest.mark.parametrize("path", ["math", "sys", "no_such_package_anywhere", "no/such/folder", "json.decoder", ""])
def test_what_has_no_source_is_refused_by_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import discovery
    from contracts import Scan

    monkeypatch.chdir(tmp_path)
    with pytest.raises(discovery.NothingToScan, match=repr(path)):
        discovery.scan(Scan(path), workdir=str(tmp_path))


def test_a_module_is_measured_from_its_source(run: SimpleNamespace) -> None:
    tidy, untyped = run.measured["tidy"], run.measured["untyped"]
    assert (tidy.lines, tidy.branches, tidy.functions, tidy.undocumented, tidy.typed_share) == (3, 2, 1, 0, 1.0)
    assert (untyped.functions, untyped.undocumented, untyped.typed_share) == (2, 2, 0.0)
    assert not tidy.untested
    assert untyped.untested


def test_true_properties_pass_and_false_ones_come_with_an_example(run: SimpleNamespace) -> None:
    assert outcomes(run, "tidy") == {"test_fuzz_double": "pass"}
    (failed,) = run.results["faulty"].outcomes
    assert failed.outcome == "fail"
    assert "ZeroDivisionError" in failed.message
    assert "parts=0" in failed.message


def test_a_refused_value_is_no_finding_and_a_missing_argument_is_none_of_the_function(run: SimpleNamespace) -> None:
    assert outcomes(run, "picky") == {"test_fuzz_Even": "pass", "test_fuzz_half": "error"}


def test_parameters_without_type_hints_get_values_the_function_takes(run: SimpleNamespace) -> None:
    assert outcomes(run, "untyped") == {"test_fuzz_first": "fail"}
    assert "IndexError" in run.results["untyped"].outcomes[0].message
    assert "1 for which no suitable values" in run.written["untyped"].note


def test_an_endless_loop_is_ended_and_reported_with_its_arguments(run: SimpleNamespace) -> None:
    (stopped,) = run.results["endless"].outcomes
    assert stopped.outcome == "timeout"
    assert "count=0" in stopped.message
    assert stopped.milliseconds < 2000


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not lower the address space")
def test_a_memory_hog_is_contained_and_reported(run: SimpleNamespace) -> None:
    (hog,) = run.results["hungry"].outcomes
    assert hog.outcome == "fail"
    assert "MemoryError" in hog.message


def test_code_that_ends_the_process_or_prints_results_spoils_only_its_own_test(run: SimpleNamespace) -> None:
    assert outcomes(run, "leaving") == {"test_fuzz_leave": "fail", "test_fuzz_vanish": "error"}
    left, vanished = run.results["leaving"].outcomes
    assert "SystemExit: 3" in left.message
    assert "exit code 7" in vanished.message


def test_code_that_reaches_outside_its_folder_is_refused(run: SimpleNamespace, package: Path) -> None:
    assert outcomes(run, "outside") == {"test_fuzz_wipe": "error"}
    assert "os.remove" in run.results["outside"].outcomes[0].message
    assert (package / "outside.py").exists()


def test_a_module_that_cannot_be_imported_or_has_nothing_to_test_is_skipped_with_the_reason(
    run: SimpleNamespace,
) -> None:
    assert "took longer than 2 s" in run.written["stuck"].skipped
    assert "exit code 5" in run.written["fatal"].skipped
    assert run.written["empty"].skipped == "nothing to test"
    assert run.results["empty"].problem == "nothing to test"


def test_a_file_that_outlives_its_limit_is_stopped_with_all_it_started(run: SimpleNamespace) -> None:
    import trials
    from contracts import Run, Written

    tests = Path(run.scanned.workdir, "test_slow.py")
    tests.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\n")
    started = time.monotonic()
    ran = asyncio.run(trials.try_tests(Run(Written("slow", run.scanned.root, str(tests)), limit_s=2, test_s=50)))
    assert time.monotonic() - started < 4
    assert [outcome.outcome for outcome in ran.outcomes] == ["pass"]
    assert "stopped after 2 s" in ran.problem


async def test_cancelling_ends_the_child_and_everything_it_started(run: SimpleNamespace, tmp_path: Path) -> None:
    import trials
    from contracts import Run, Written

    # A pipe that the tests open for reading: it opens here once they run, and breaks when the last process is gone.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    tests = Path(run.scanned.workdir, "test_waiting.py")
    source = f"import time\npipe = open({str(pipe)!r})\ndef test_a(): time.sleep(60)\n"
    await asyncio.to_thread(tests.write_text, source)
    task = asyncio.create_task(trials.try_tests(Run(Written("waiting", run.scanned.root, str(tests)), test_s=50)))
    try:
        async with asyncio.timeout(10):
            opened = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
    finally:
        os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))  # lets the thread go if nobody came
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    broken = select.poll()
    broken.register(opened, 0)
    assert await asyncio.to_thread(broken.poll, 2000)
    os.close(opened)


def test_the_report_adds_up_and_escapes_what_it_quotes(run: SimpleNamespace) -> None:
    import drafts
    from contracts import Draft, Outcome, Publish, Ran

    hostile = Ran("sample.tidy", [Outcome("test_<b>|", "fail", 1, "<script>alert(1)</script>\nline | two")])
    results = [hostile, *(result for name, result in run.results.items() if name != "tidy")]
    drafted = drafts.draft(Draft(run.scanned, list(run.measured.values()), list(run.written.values()), results))
    assert drafted.tests == drafted.passed + drafted.failed + drafted.errors + drafted.timeouts == 10
    assert (drafted.passed, drafted.failed, drafted.errors, drafted.timeouts) == (1, 5, 3, 1)
    page = Path(drafted.drafts[1]).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "test\\_&lt;b&gt;\\|" in Path(drafted.drafts[0]).read_text()

    published = drafts.publish(Publish(drafted.drafts, drafted.destination))
    assert published == drafts.publish(Publish(drafted.drafts, drafted.destination)), "a second attempt changes nothing"
    assert Path(published.paths[1]).read_text() == page
    assert not any(Path(draft).exists() for draft in drafted.drafts)


def test_the_plan_is_valid_and_asks_only_for_what_the_agents_offer_and_send() -> None:
    plan = msgspec.convert(tomllib.loads((FOLDER / "plan.toml").read_text()), Plan)
    agents = [importlib.import_module(name).agent for name in AGENTS]
    offered = {name: capability for agent in agents for name, capability in agent.capabilities.items()}
    assert set(plan.capabilities) == set(offered)

    answers = {phase.name: offered[phase.capability].gives for phase in plan.phases if phase.capability}
    for phase in plan.phases:
        if phase.capability:
            assert set(phase.input) <= set(offered[phase.capability].takes.__struct_fields__)
            for reference in references(phase.input):
                if reference.root in answers and reference.steps:
                    assert reference.steps[0] in answers[reference.root].__struct_fields__


def test_the_scanner_rejects_what_holds_no_python_for_good(tmp_path: Path) -> None:
    import scanner
    from contracts import Scan

    with pytest.raises(Reject, match="holds no Python modules"):
        scanner.scan(Scan(str(tmp_path)))


def test_a_language_model_writes_the_tests_where_one_is_configured(run: SimpleNamespace, tmp_path: Path) -> None:
    written, requests = write_with_model(
        "Here:\n```python\ndef test_sum():\n    assert 1 + 1 == 2\n```\n", run, tmp_path
    )
    assert (written.provider, written.tests, written.note) == ("language model", 1, "")
    assert Path(written.path).read_text() == "def test_sum():\n    assert 1 + 1 == 2\n"
    assert requests[0]["model"] == "small"
    assert "def double" in requests[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "HTTP Error 500"), ("I would rather not.", "not Python"), ("x = 1", "no test")],
    ids=["failing", "talking", "testless"],
)
def test_the_ghostwriter_steps_in_for_a_model_without_an_answer(
    answer: str | None, reason: str, run: SimpleNamespace
) -> None:
    written, _ = write_with_model(answer, run, Path(run.scanned.workdir))
    assert written.provider == "ghostwriter"
    assert written.tests == 1
    assert reason in written.note


def test_a_language_model_is_off_unless_configured() -> None:
    from language_model import LanguageModel

    assert LanguageModel.from_environment({"PHASEBUS_LLM_MODEL": "small"}) is None
    configured = {"PHASEBUS_LLM_URL": "http://127.0.0.1:1", "PHASEBUS_LLM_MODEL": "small"}
    assert LanguageModel.from_environment(configured) == LanguageModel("http://127.0.0.1:1", "small")


def outcomes(run: SimpleNamespace, module: str) -> dict[str, str]:
    return {outcome.name: outcome.outcome for outcome in run.results[module].outcomes}


def write_with_model(answer: str | None, run: SimpleNamespace, workdir: Path) -> tuple[Any, list[Any]]:
    """The author's answer and what the model was asked, with a model that says `answer`, or fails without one."""
    import writing
    from contracts import Write
    from language_model import LanguageModel

    with model_server(answer) as (url, requests):
        model = LanguageModel(url, "small", "key")
        written = asyncio.run(writing.write(Write(run.modules["tidy"], str(workdir)), model))
        return written, requests


@contextmanager
def model_server(answer: str | None) -> Iterator[tuple[str, list[Any]]]:
    requests: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            assert self.path == "/v1/chat/completions"
            assert self.headers["Authorization"] == "Bearer key"
            self.send_response(500 if answer is None else 200)
            self.end_headers()
            self.wfile.write(msgspec.json.encode({"choices": [{"message": {"content": answer}}]}))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
        server.shutdown()
        thread.join()


def test_what_an_agent_started_ends_with_it_even_after_kill_9(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("def test_endless():\n    while True:\n        pass\n")
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio, children\n"
            f"asyncio.run(children.run('driver.py', {str(tmp_path / 'endless.py')!r}, {str(tmp_path)!r}, "
            "'60', '60', str(1 << 30), limit_s=60))",
        ],
        cwd=FOLDER,
    )
    started = _group_of(owner.pid)
    assert started
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 5
    while any(_is_alive(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _group_of(owner: int) -> list[int]:
    """The processes it has started, once the endless test runs in a fork of the driver."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = _children(owner)
        grandchildren = [each for child in children for each in _children(child)]
        if grandchildren:
            return [*children, *grandchildren]
        time.sleep(0.02)
    return []


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if int(line.split()[1]) == pid]


def _is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")
