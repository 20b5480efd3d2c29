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
from typing import NamedTuple

import pytest

from bus import Approval, Client, Phase, Plan, connect
from bus.broker import configuration
from bus.broker.connection import Connection
from bus.broker.server import Server, embedded
from bus.errors import BudgetSpent, Unavailable
from bus.rules.retry import RetryPolicy
from bus.rules.run import RunState
from tests.faults.patient import agent as patient
from tests.harness import ROOT, agent_process, agents_there, pid_of, serving, supervised, until
from tests.integration.test_cli import CLEAN, PHASEBUS

PATIENT = Path(__file__).with_name("patient.py")
_BOUND_S = 5.0
NO_RETRY = RetryPolicy(transient=0, dependency=0, unknown=0, lost=0)


class Said(NamedTuple):
    """What the doctor says: its first line, all of it, the code of its first finding, and how it ended."""

    first: str
    text: str
    code: str
    ended: int


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
    return Said(first, people[0], findings[0]["code"] if findings else "", people[1])


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
def running(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves the patient, and no supervisor."""
    process = agent_process(server, PATIENT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


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
        assert await of(server) == Said("", "", "", 0)
        assert await of(server, run) == Said("", "", "", 0)


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
    server.signal(signal.SIGSTOP)
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
        "from console.main import main; sys.exit(main(['doctor']))"
    )
    environment = CLEAN | {"NATS_URL": server.url, "PHASEBUS_SYSTEM_URL": server.system_url, "PYTHONPATH": str(ROOT)}
    async with supervised(server):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ahead), env=environment, cwd="/", stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert out.decode().startswith("clock skew: this machine is 120.0 s ahead of the server")
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
        process.send_signal(signal.SIGSTOP)
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
        os.kill(pid, signal.SIGSTOP)
        said = await of(server, run)
        assert (await of(server)).text.count("instance frozen") == 1
    assert process.pid == pid
    assert said.code == "frozen"
    assert said.first.startswith(f"instance frozen: process {pid} on ")
    assert said.first.endswith(f"next: kill -CONT {pid}")


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
            process.send_signal(signal.SIGSTOP)
            said = await of(server)
    assert said.code == "frozen"


# Work


async def test_a_handler_has_fallen_silent(server: Server, client: Client) -> None:
    async with supervised(server), serving_apart(server, client):
        run = (await client.start(one("mumble"))).run
        await began(client, run)
        await asyncio.sleep(5.3)  # What was said before sets how long is long; under five seconds nothing is.
        said = await of(server, run)
    assert said.code == "silent"
    assert said.first.startswith("handler silent: attempt 1 of a on patient-")


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


async def test_a_budget_is_spent(server: Server, client: Client) -> None:
    async with supervised(server):
        limit = client.limit("openai", cost_per_day=10)
        await limit.take(calls=0, cost=8)
        with pytest.raises(BudgetSpent):
            await limit.take(calls=0, cost=8)
        said = await of(server)
        await limit.hold(60, reason="429")
        held = await of(server)
    assert said.code == "budget_spent"
    assert said.first.startswith("budget spent: cost_per_day=10 of limit 'openai'; it begins anew at ")
    assert "limit held: nobody takes anything of 'openai' until" in held.text


async def test_there_is_no_such_run(server: Server, client: Client) -> None:
    async with supervised(server):
        said = await of(server, "nobody")
    assert said.code == "no_such_run"
