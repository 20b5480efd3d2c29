"""The doctor, with each fault made for real: its first line names the cause and what to type, within five seconds.

Each fault is put into a server and processes of the test's own; the doctor is the real command, another process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from bus import Approval, Client, Phase, Plan, connect
from bus.broker import configuration
from bus.broker.connection import Connection
from bus.broker.server import Server, embedded
from bus.errors import BudgetSpent, NoResponders, Unavailable
from bus.log.streams import purge
from bus.rules.commands import Take
from bus.rules.retry import RetryPolicy
from bus.rules.run import RunState
from projections.doctor.finding import Code
from tests.faults.patient import agent as patient
from tests.harness import ROOT, agent_process, agents_there, freeze, pid_of, serving, supervised, until
from tests.integration.test_cli import CLEAN, PHASEBUS

PATIENT = Path(__file__).with_name("patient.py")
_BOUND_S = 5.0
NO_RETRY = RetryPolicy(transient=0, dependency=0, unknown=0, lost=0)


class Said(NamedTuple):
    """What the doctor says: its first line, all of it, the code of each finding, and how it ended."""

    first: str
    text: str
    codes: Sequence[str]
    ended: int

    @property
    def code(self) -> str:
        """That of the first."""
        return self.codes[0] if self.codes else ""


async def doctor(*words: str, url: str | None = None, system_url: str | None = None, **environment: str) -> Said:
    """What the command says to a person, and to a program."""
    told = dict(environment)
    if url is not None:
        told["NATS_URL"] = url
    if system_url is not None:
        told["PHASEBUS_SYSTEM_URL"] = system_url
    people, program = await asyncio.gather(_typed(words, told), _typed((*words, "--json"), told))
    lines = people[0].splitlines()
    findings = [json.loads(line) for line in program[0].splitlines()]
    assert people[1] == program[1], (people, program)
    first = lines[0] if lines else ""
    assert not findings or "; next: " in first
    return Said(first, people[0], [each["code"] for each in findings], people[1])


async def _typed(words: Sequence[str], environment: dict[str, str]) -> tuple[str, int]:
    process = await asyncio.create_subprocess_exec(
        *(PHASEBUS, "doctor", *words),
        env=CLEAN | {"PYTHONPATH": str(ROOT)} | environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    assert process.returncode is not None
    return out.decode(), process.returncode


async def of(server: Server, *words: str, **environment: str) -> Said:
    return await doctor(*words, url=server.url, system_url=server.system_url, **environment)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url, system_url=server.system_url) as connected:
        yield connected


@contextmanager
def running(server: Server, *, twisted: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves the patient, and no supervisor. What is `twisted` is done in it first."""
    process = agent_process(server, PATIENT) if not twisted else twisted_process(server, twisted)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def twisted_process(server: Server, twist: str) -> subprocess.Popen[bytes]:
    environment = CLEAN | {"NATS_URL": server.url, "PYTHONPATH": str(ROOT)}
    begin = f"{twist}\nfrom tests.faults.patient import agent\nagent.run()"
    return subprocess.Popen([sys.executable, "-c", begin], env=environment, stderr=subprocess.DEVNULL)


@asynccontextmanager
async def serving_apart(server: Server, client: Client) -> AsyncIterator[None]:
    """The same, once it answers. It need not finish what it has begun."""
    with running(server):
        await agents_there(client, 1)
        yield


@contextmanager
def supervisor_process(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    environment = CLEAN | {"NATS_URL": server.url, "PHASEBUS_SYSTEM_URL": server.system_url, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [PHASEBUS, "up"], env=environment, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@asynccontextmanager
async def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> AsyncIterator[Server]:
    """A server with another setting than ours."""
    assert old in configuration._TEXT
    monkeypatch.setattr(configuration, "_TEXT", configuration._TEXT.replace(old, new))
    async with embedded(tmp_path / "other") as running_server:
        yield running_server


async def began(client: Client, run: str, phase: str = "a") -> RunState:
    """The run, once somebody holds that phase."""

    async def is_held() -> bool:
        return (await client.runs.load(run)).phases[phase].status == "in_progress"

    await until(is_held)
    return await client.runs.load(run)


async def ended(client: Client, run: str) -> RunState:
    return await client.result(run, timeout_s=20)


def one(capability: str, **values: object) -> Plan:
    return Plan("one", phases=[Phase("a", capability, input={"s": 30}, **values)])  # type: ignore[arg-type]


async def test_all_is_well_where_nothing_is_wrong(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        run = (await client.start(one("sleep"))).run
        await began(client, run)
        assert await of(server) == Said("", "", [], 0)
        assert await of(server, run) == Said("", "", [], 0)


# The way there


async def test_no_bus_is_known_here() -> None:
    said = await doctor()
    assert (said.code, said.ended) == ("nowhere", 1)
    assert said.first.startswith("no bus found")
    assert said.first.endswith("next: phasebus up")


async def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = await doctor(url=f"nats://127.0.0.1:{port}")
    assert said.code == "unreachable"
    assert said.first.startswith(f"no bus reachable: nobody listens at 127.0.0.1:{port}")


async def test_the_login_is_wrong(server: Server) -> None:
    said = await doctor(url=f"nats://bus:wrong@127.0.0.1:{server.port}")
    assert said.code == "refused"
    assert said.first.startswith("login refused by 127.0.0.1:")
    assert "correct the user and the password" in said.first


async def test_the_server_is_frozen(server: Server, client: Client) -> None:
    await freeze(server.pid)
    try:
        said = await of(server)
    finally:
        server.signal(signal.SIGCONT)
    assert said.code == "mute"
    assert said.first.startswith("server frozen: ")


async def test_the_server_keeps_no_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with configured(tmp_path, monkeypatch, "    jetstream: enabled\n", "") as server:
        said = await doctor(url=server.url)
    assert said.code == "no_jetstream"
    assert "JetStream is off" in said.first


async def test_the_namespace_is_wrong(server: Server, client: Client) -> None:
    said = await of(server, PHASEBUS_NAMESPACE="shop")
    assert said.code == "wrong_namespace"
    assert said.first == (
        "wrong namespace: there is no bus 'shop' on this server; there is bus; next: export PHASEBUS_NAMESPACE=bus"
    )


# Streams, disk, clocks


async def as_operator(server: Server, subject: str, body: object = None) -> dict[str, object]:
    """Ask the server as somebody who may change streams."""
    async with Connection.open(server.operator_url, name="test") as operator:
        data = b"" if body is None else json.dumps(body).encode()
        answer: dict[str, object] = json.loads((await operator.request(subject, data, timeout_s=5)).data)
        assert "error" not in answer, answer
        return answer


async def test_the_log_is_lost(server: Server, client: Client) -> None:
    await as_operator(server, "$JS.API.STREAM.DELETE.BUS")
    said = await of(server)
    assert said.code == "log_lost"
    assert said.first.startswith("log lost: stream BUS is gone, while BUS_WORK")


async def test_the_work_stream_is_lost(server: Server, client: Client) -> None:
    await as_operator(server, "$JS.API.STREAM.DELETE.BUS_WORK")
    said = await of(server)
    assert said.code == "work_lost"
    assert said.first.startswith("work stream lost: BUS_WORK is gone")


async def test_a_stream_is_not_what_the_bus_needs(server: Server, client: Client) -> None:
    config = (await as_operator(server, "$JS.API.STREAM.INFO.BUS"))["config"]
    assert isinstance(config, dict)
    await as_operator(server, "$JS.API.STREAM.UPDATE.BUS", config | {"max_msgs": 1000})
    said = await of(server)
    assert said.code == "stream_wrong"
    assert said.first.startswith("stream misconfigured: stream 'BUS' has max_msgs = 1000, the bus needs -1")


async def test_the_server_does_not_sync(tmp_path: Path) -> None:
    async with embedded(tmp_path / "fast", durability="fast") as server, connect(server.url, durability="fast"):
        said = await of(server)
        assert said.code == "not_synced"
        assert said.first.startswith("not synced: server 'phasebus' acknowledges before it has written")
        assert "not_synced" not in (await of(server, PHASEBUS_DURABILITY="fast")).code


async def test_the_store_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "max_file_store: 200KB\n  max_memory_store"
    async with (
        configured(tmp_path, monkeypatch, "max_memory_store", small) as server,
        connect(server.url, append_timeout_s=0.5, request_timeout_s=2) as client,
    ):
        async with client.lock("any"):
            pass
        for _ in range(40):
            try:
                await client.start(one("nobody"), {"filler": os.urandom(10_000).hex()})
            except Exception:  # noqa: BLE001 - the store is full, that is what was wanted
                break
        else:
            raise AssertionError("the store took everything")
        said = await of(server)
    assert said.code == "unwritable"
    assert said.first.startswith("store full or read-only: the server refuses to store anything")


async def test_the_store_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "max_file_store: 1MB\n  max_memory_store"
    async with (
        configured(tmp_path, monkeypatch, "max_memory_store", small) as server,
        supervised(server),
        connect(server.url) as client,
    ):
        while await stored_bytes(client) < 0.955 * 2**20:
            await client.publish("filler", os.urandom(4_000).hex())
        said = await of(server)
    assert said.code == "nearly_full"
    assert said.first.startswith("store nearly full: 9")


async def stored_bytes(client: Client) -> int:
    answer = await client.connection.request("$JS.API.INFO", timeout_s=5)
    return int(json.loads(answer.data)["storage"])


async def test_messages_may_be_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        configured(tmp_path, monkeypatch, "max_payload: 1MB", "max_payload: 16KB") as server,
        supervised(server),
    ):
        said = await of(server)
    assert said.code == "small_payload"
    assert said.first.startswith("max_payload too small: the server takes messages of 16384 bytes")


async def test_the_clocks_differ(server: Server, client: Client) -> None:
    ahead = (
        "import sys; from datetime import timedelta; from bus import clock; now = clock.utc_now; "
        "clock.utc_now = lambda: now() + timedelta(minutes=2); "
        "from console.main import main; sys.exit(main(['doctor', '--json']))"
    )
    environment = CLEAN | {"NATS_URL": server.url, "PHASEBUS_SYSTEM_URL": server.system_url, "PYTHONPATH": str(ROOT)}
    async with supervised(server):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ahead), env=environment, cwd="/", stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
    first = json.loads(out.splitlines()[0])
    assert first["code"] == "clock_skew"
    assert first["cause"].startswith("clock skew: this machine is 120.0 s ahead of the server")
    assert process.returncode == 1


async def test_there_is_no_system_login(server: Server, client: Client) -> None:
    async with supervised(server):
        said = await doctor(url=server.url)
        assert said.code == "no_system_login"
        assert said.first.startswith("no system login: PHASEBUS_SYSTEM_URL is not set; crashes are noticed by silence")
        refused = await doctor(url=server.url, system_url=server.url.replace("bus:", "system:x", 1))
        assert refused.first.startswith("no system login: the server refused it")
        assert (await doctor(url=server.url, system_url=server.url)).code == "no_system_login"


# Who is there


async def test_no_supervisor_leads(server: Server, client: Client) -> None:
    said = await of(server)
    assert said.code == "no_supervisor"
    assert said.first.startswith("no supervisor leads: ")
    assert said.first.endswith("next: phasebus up")


async def test_the_supervisor_is_frozen(server: Server, client: Client) -> None:
    with supervisor_process(server) as process:
        await until(lambda: leads(client))
        await freeze(process.pid)
        await until(lambda: nobody_leads(client))
        said = await of(server)
    assert said.code == "supervisor_frozen"
    assert said.first.startswith("supervisor frozen: 1 process is connected as supervisor, and none leads")


async def leads(client: Client) -> bool:
    from agents.leadership import PLACE

    with suppress(Unavailable):  # The bucket is made by the first who wants to lead.
        return await client.leases.holder_of(PLACE) is not None
    return False


async def nobody_leads(client: Client) -> bool:
    return not await leads(client)


async def test_nobody_offers_the_capability(server: Server, client: Client) -> None:
    async with supervised(server):
        run = (await client.start(one("paint"))).run
        await asyncio.sleep(5.1)  # Younger than this, nothing is held against anybody.
        said = await of(server, run)
        assert (await of(server)).code == "unserved"
    assert said.code == "unserved"
    assert "no live agent offers 'paint'" in said.first
    assert said.first.endswith("next: phasebus agent run FILE.py:agent")


async def test_every_place_is_taken(server: Server, client: Client) -> None:
    async with supervised(server):
        with running(server):
            await agents_there(client, 1)
            [held, waits] = [(await client.start(one("mumble"))).run for _ in range(2)]
            await began(client, held)
            await asyncio.sleep(5.1)  # As above.
            said = await of(server, waits)
    assert said.code == "starved"
    assert said.first.startswith(f"starved: 1 of phase a of run {waits} wait, the first for ")
    assert "all 1 places for 'mumble' are taken" in said.first


async def test_all_who_could_take_it_are_quarantined(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        await client.quarantine_agents("patient", by="ann", reason="bad build")
        await until(lambda: all_are(client, "quarantined"))
        run = (await client.start(one("sleep"))).run
        said = await of(server, run)
    assert said.code == "quarantined"
    assert said.first.startswith("nobody takes 'sleep': patient-")
    assert "is quarantined: " in said.first
    assert said.first.endswith("next: phasebus agent release patient")


async def test_all_who_could_take_it_are_draining(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        busy = (await client.start(one("sleep"))).run
        await began(client, busy)
        await client.drain_agents("patient", by="ann", reason="a new version")
        await until(lambda: all_are(client, "draining"))
        run = (await client.start(one("sleep"))).run
        said = await of(server, run)
    assert said.code == "draining"
    assert said.first.startswith("nobody takes 'sleep': patient-")
    assert "is draining: " in said.first
    assert said.first.endswith(f"phase a of run {run} waits; next: phasebus agent run FILE.py:agent")


async def test_a_capability_is_paused_after_a_dead_letter(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        await ended(client, (await client.start(one("fragile", retry=NO_RETRY))).run)
        await until(lambda: is_paused(client, "fragile"))
        run = (await client.start(one("fragile"))).run
        said = await of(server, run)
    assert said.code == "capability_paused"
    assert said.first.startswith("nobody takes 'fragile': patient-")
    assert "is paused after a dead letter" in said.first
    assert said.first.endswith("next: phasebus dead release fragile")


async def is_paused(client: Client, capability: str) -> bool:
    return any(capability in each.paused for each in await client.agents())


async def all_are(client: Client, status: str) -> bool:
    return all(each.status == status for each in await client.agents())


async def test_an_instance_is_dead_and_nobody_takes_its_work_back(server: Server, client: Client) -> None:
    with running(server) as process:
        await agents_there(client, 1)
        run = (await client.start(one("sleep"))).run
        await began(client, run)
        process.kill()
        process.wait()
        said = await of(server, run)
    assert said.code == "dead"
    assert said.first.startswith("instance dead: attempt 1 of a on patient-")
    assert "has no process any more, and no supervisor leads that would take it back" in said.first


async def test_an_instance_is_frozen(server: Server, client: Client) -> None:
    with running(server) as process:
        await agents_there(client, 1)
        run = (await client.start(one("sleep"))).run
        state = await began(client, run)
        [(_, _, holder)] = state.held()
        pid = await pid_of(client, holder.instance)
        await freeze(pid)
        said = await of(server, run)
        assert (await of(server)).text.count("instance frozen") == 1
    assert process.pid == pid
    assert said.code == "frozen"
    assert said.first.startswith(f"instance frozen: process {pid} on ")
    assert said.first.endswith(f"next: kill -CONT {pid}")


async def test_an_instance_has_been_frozen_for_so_long_that_the_server_has_closed_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        configured(tmp_path, monkeypatch, 'ping_interval: "10s"', 'ping_interval: "500ms"') as server,
        connect(server.url, system_url=server.system_url) as client,
    ):
        with running(server) as process:
            await agents_there(client, 1)
            run = (await client.start(one("sleep"))).run
            state = await began(client, run)
            [(_, _, holder)] = state.held()
            await freeze(process.pid)
            await until(lambda: is_forgotten_by_the_server(client, holder.instance))
            said = await of(server, run)
            async with supervised(server):
                await until(lambda: is_taken_back(client, run))
            [attempt] = (await client.runs.load(run)).phases["a"].items[0].attempts[:1]
    assert said.code == "frozen"
    assert said.first.endswith(f"next: kill -CONT {process.pid}")
    # Who leads from then on tells it apart as well.
    assert attempt.cause == "frozen"
    assert attempt.evidence.endswith("; its process is stopped")


async def is_taken_back(client: Client, run: str) -> bool:
    return (await client.runs.load(run)).phases["a"].items[0].attempts[0].ended_at is not None


async def is_forgotten_by_the_server(client: Client, instance: str) -> bool:
    try:
        await client.connection.request(client.subjects.ping(instance), timeout_s=0.1)
    except NoResponders:
        return True
    except Unavailable:
        return False
    return False


async def test_an_event_loop_is_blocked(server: Server, client: Client) -> None:
    with running(server):
        await agents_there(client, 1)
        run = (await client.start(one("block"))).run
        await began(client, run)
        said = await of(server, run)
    assert said.code == "loop_blocked"
    assert said.first.startswith("event loop blocked: process ")


async def test_an_idle_instance_is_frozen(server: Server, client: Client) -> None:
    async with supervised(server):
        with running(server) as process:
            await agents_there(client, 1)
            await freeze(process.pid)
            said = await of(server)
    assert said.code == "frozen"


async def test_an_instance_elsewhere_is_mute(server: Server, client: Client) -> None:
    """Of a process of another machine nobody here can tell whether it is frozen or its loop is blocked."""
    async with supervised(server):
        with running(server, twisted="import socket; socket.gethostname = lambda: 'far'") as process:
            await agents_there(client, 1)
            await freeze(process.pid)
            said = await of(server)
    assert said.code == "mute"
    assert said.first.startswith("instance mute: instance patient-")
    assert said.first.endswith(f"next: on far: ps -o stat= -p {process.pid}")


async def test_an_attempt_is_past_its_deadline_and_nobody_ends_it(server: Server, client: Client) -> None:
    """Its holder's clock is late, so it is in time by its own; and no supervisor leads that knows better."""
    late = """
import sys
from datetime import timedelta
import bus
from bus.clock import utc_now as truly
for module in [each for each in sys.modules.values() if getattr(each, "utc_now", None) is truly]:
    module.utc_now = lambda: truly() - timedelta(minutes=1)
"""
    with running(server, twisted=late):
        await agents_there(client, 1)
        run = (await client.start(one("sleep", timeout_s=30))).run
        await began(client, run)
        said = await of(server, run)
    assert said.code == "overdue"
    assert said.first.startswith("past its deadline: attempt 1 of a on patient-")


async def test_an_instance_does_not_know_of_an_attempt_that_it_holds(server: Server, client: Client) -> None:
    """What the log has of it, it never made: as if the answer to its first word had been lost, and it with it."""
    with running(server):
        await agents_there(client, 1)
        [there] = await client.agents()
        run = (await client.start(one("nobody"))).run
        await client.runs.submit(run, Take("a", None, 1, "nobody", "patient", there.instance, 60))
        await asyncio.sleep(5.1)  # Younger than this, it may be on its way.
        said = await of(server, run)
    assert said.code == "forgotten"
    assert said.first.startswith(f"attempt forgotten: {there.instance} lives, and does not hold attempt 1 of a")


# Work


async def test_a_run_is_past_its_deadline_and_nobody_ends_it(server: Server, client: Client) -> None:
    run = (await client.start(Plan("short", phases=[Phase("a", wait_for="never")], timeout_s=0.5))).run
    await asyncio.sleep(0.6)
    said = await of(server, run)
    assert said.code == "run_overdue"
    assert said.first.startswith(f"run past its deadline: run {run}: the run is past its deadline and nobody has ended")
    assert said.first.endswith("next: phasebus up")


async def test_the_message_of_waiting_work_is_lost(server: Server, client: Client) -> None:
    run = (await client.start(one("sleep"))).run
    async with connect(server.operator_url, create=False) as operator:
        assert await purge(operator.connection, operator.subjects.work_stream, f"bus.work.sleep.*.*.*.{run}.>", 5)
    with running(server):
        await agents_there(client, 1)
        await asyncio.sleep(5.1)  # Younger than this, it may be on its way.
        said = await of(server, run)
    assert said.code == "untaken"
    assert said.first.startswith(f"not taken: 1 of phase a of run {run} wait, the first for ")
    assert "its work was lost on its way" in said.first


@pytest.mark.parametrize(
    ("first", "why", "next_step"),
    [
        (60.0, "for its turn among the work of 'queued' with key 'customer-7'", "phasebus run ls --tasks"),
        (-1.0, "is dead, and with on_dead='park' holds what has the same key", "phasebus dead ls --capability queued"),
    ],
    ids=["under way", "parked"],
)
async def test_work_stands_in_line_behind_work_of_its_key(
    server: Server, client: Client, first: float, why: str, next_step: str
) -> None:
    async with supervised(server), serving_apart(server, client):
        before = await client.send("queued", {"s": first}, key="customer-7")
        await (began(client, before.run, "work") if first > 0 else ended(client, before.run))
        waiting = await client.send("queued", {"s": 0.0}, key="customer-7")
        await asyncio.sleep(5.3)  # Younger than this, it may be on its way.
        said = await of(server, waiting.run)
    assert said.code == "in_line"
    assert said.first.startswith(f"in line: run {waiting.run} has waited ")
    assert why in said.first and said.first.endswith(f"next: {next_step}")


async def test_a_handler_has_fallen_silent(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        run = (await client.start(one("mumble"))).run
        await began(client, run)
        await asyncio.sleep(5.3)  # What was said before sets how long is long; under five seconds nothing is.
        said = await of(server, run)
    assert said.code == "silent"
    assert said.first.startswith("handler silent: attempt 1 of a on patient-")


async def test_a_handler_says_nothing_where_others_of_it_have_talked(server: Server, client: Client) -> None:
    talking = Plan("talk", phases=[Phase("a", "mumble", input={"s": 0.0})])
    async with supervised(server), serving_apart(server, client):
        for run in [(await client.start(talking)).run for _ in range(10)]:
            await ended(client, run)
        dumb = Plan("talk", phases=[Phase("a", "mumble", input={"s": 30.0, "dumb": 1.0})])
        run = (await client.start(dumb)).run
        await began(client, run)
        await asyncio.sleep(2)  # Ten took a fifth of a second or so.
        said = await of(server, run)
    assert said.code == "silent"
    assert "has said nothing for" in said.first and "as others of it do" in said.first


async def test_a_handler_waits_for_a_lock(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client), client.lock("deploy", by="somebody"):
        run = (await client.start(one("locked"))).run
        await began(client, run)
        await until(client.in_line)
        said = await of(server, run)
    assert said.code == "lock"
    assert said.first.startswith("waits for a lock: attempt 1 of a on patient-")
    assert said.first.endswith("waits for lock 'deploy', which somebody has; next: phasebus lock break lock.deploy")


async def test_a_handler_was_ended_because_it_said_nothing(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        run = (await client.start(one("mumble", silence_timeout_s=0.5, retry=RetryPolicy(lost_s=60)))).run

        async def again() -> bool:
            return (await client.runs.load(run)).phases["a"].items[0].attempt == 2

        await until(again)
        said = await of(server, run)
    assert said.code == "silent"


async def test_work_is_merely_slow(server: Server, client: Client) -> None:
    plan = Plan("slow", phases=[Phase("a", "sleep", input={"s": 0.01})])
    async with supervised(server), serving_apart(server, client):
        for run in [(await client.start(plan)).run for _ in range(10)]:
            await ended(client, run)
        run = (await client.start(Plan("slow", phases=[Phase("a", "sleep", input={"s": 30})]))).run
        await began(client, run)
        await asyncio.sleep(1)
        said = await of(server, run)
    assert said.code == "slow"
    assert said.first.startswith("merely slow: attempt 1 of a on patient-")
    assert "the longest of 10 took" in said.first


async def test_a_run_waits_for_an_answer_a_signal_or_another_run(server: Server, client: Client) -> None:
    inside = Plan("inside", phases=[Phase("x", wait_for="now")])
    plans = {
        "approval": Plan("p", phases=[Phase("a", approval=Approval(prompt="Fine?"))]),
        "signal": Plan("p", phases=[Phase("a", wait_for="window")]),
        "child": Plan("p", phases=[Phase("a", plan=inside)]),
    }
    async with supervised(server):
        runs = {code: (await client.start(plan)).run for code, plan in plans.items()}
        said = {code: await of(server, run) for code, run in runs.items()}
    assert {code: each.code for code, each in said.items()} == {code: code for code in plans}
    assert said["approval"].first.endswith(f"next: phasebus run approve {runs['approval']} a")
    assert said["signal"].first.endswith(f"next: phasebus run signal {runs['signal']} window")
    assert "next: phasebus doctor p-" in said["child"].first


async def test_a_retry_is_delayed(server: Server, client: Client) -> None:
    plan = one("stumble", retry=RetryPolicy(transient=3, transient_s=60, dependency=3, dependency_s=60))
    async with supervised(server), serving(server, patient):
        run = (await client.start(plan)).run

        async def failed() -> bool:
            return any(each.ended_at for each in (await client.runs.load(run)).phases["a"].items[0].attempts)

        await until(failed)
        said = await of(server, run)
    assert said.code == "retrying"
    assert "attempt 1 failed (ConnectionError: the line is down)" in said.first


async def test_a_run_is_paused(server: Server, client: Client) -> None:
    async with supervised(server):
        run = (await client.start(one("sleep"))).run
        await client.pause(run, by="ann")
        said = await of(server, run)
    assert said.code == "paused"
    assert "paused by ann" in said.first
    assert said.first.endswith(f"next: phasebus run resume {run}")


async def test_work_is_poison(server: Server, client: Client) -> None:
    async with supervised(server), serving(server, patient):
        run = (await client.start(one("die", retry=RetryPolicy(unknown=3, unknown_s=0.1)))).run

        async def twice() -> bool:
            attempts = (await client.runs.load(run)).phases["a"].items[0].attempts
            return sum(1 for each in attempts if each.cause == "crashed") >= 2

        await until(twice)
        said = await of(server, run)
    assert said.code == "poison"
    assert said.first.startswith(f"poison: a of run {run} has crashed the process that ran it ")


async def test_dead_letters_grow(server: Server, client: Client) -> None:
    async with supervised(server), serving(server, patient):
        for _ in range(3):
            await ended(client, (await client.start(one("refuse", retry=NO_RETRY))).run)
        said = await of(server)
    assert said.code == "dead_letters"
    assert said.first.startswith(
        "dead letters growing: 3 in the last 10 min, 3 in all, 3 of 'refuse': there is no such"
    )


async def test_a_run_has_failed(server: Server, client: Client) -> None:
    async with supervised(server), serving(server, patient):
        run = (await client.start(one("refuse", retry=NO_RETRY))).run
        await ended(client, run)
        said = await of(server, run)
    assert said.code == "failed"
    assert "there is no such sku" in said.first


async def test_a_breaker_is_open(server: Server, client: Client) -> None:
    async with supervised(server):
        await client.open_breaker("openai", by="ann", reason="it is down")
        said = await of(server)
    assert said.code == "breaker_open"
    assert said.first == "breaker open: 'openai', opened by ann: it is down; next: phasebus breaker close openai"


async def test_a_run_waits_because_the_breaker_of_a_capability_is_open(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        await client.open_breaker("guarded", by="ann", reason="it is down")
        run = (await client.start(one("guarded"))).run
        said = await of(server, run)
    assert said.code == "breaker_open"
    assert f"opened by ann: it is down; phase a of run {run} waits; next: phasebus breaker close guarded" in said.first


async def test_a_budget_is_spent(server: Server, client: Client) -> None:
    async with supervised(server):
        limit = client.limit("openai", cost_per_day=10)
        await limit.take(calls=0, cost=8)
        with pytest.raises(BudgetSpent):
            await limit.take(calls=0, cost=8)
        said = await of(server)
        await limit.hold(60, reason="429")
        held = await of(server)
    assert "limit_held" in held.codes
    assert said.code == "budget_spent"
    assert said.first.startswith("budget spent: cost_per_day=10 of limit 'openai'; it begins anew at ")
    assert "limit held: nobody takes anything of 'openai' until" in held.text


async def test_there_is_no_such_run(server: Server, client: Client) -> None:
    async with supervised(server):
        said = await of(server, "nobody")
    assert said.code == "no_such_run"


def test_every_kind_of_fault_the_doctor_knows_is_made_here() -> None:
    told = Path(__file__).read_text()
    assert [code for code in get_args(Code) if f'"{code}"' not in told] == []
