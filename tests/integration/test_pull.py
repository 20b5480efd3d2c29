from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from bus.broker.connection import Connection
from bus.broker.pull import Delivery, Intake
from bus.broker.server import Server
from bus.errors import Unavailable
from tests.cutter import Cutter
from tests.harness import freeze
from tests.integration.test_connection import POISON, send_raw

STREAM = {"name": "S", "subjects": ["flow.>"], "storage": "file"}


async def api(connection: Connection, call: str, body: object = None) -> dict[str, object]:
    answer = await connection.request(
        f"$JS.API.{call}", b"" if body is None else json.dumps(body).encode(), timeout_s=5
    )
    decoded = json.loads(answer.data)
    assert "error" not in decoded, decoded
    return dict(decoded)


async def create_consumer(connection: Connection, **changes: object) -> None:
    config = {"durable_name": "c", "ack_policy": "explicit", "ack_wait": 30_000_000_000, "max_ack_pending": 10_000}
    await api(connection, "CONSUMER.DURABLE.CREATE.S.c", {"stream_name": "S", "config": config | changes})


async def publish(connection: Connection, count: int, first: int = 0) -> None:
    bodies = [b"%d" % number for number in range(first, first + count)]
    await asyncio.gather(*(connection.request("flow.a", body, timeout_s=5) for body in bodies))


class Owner:
    """Keeps what is delivered, acknowledges it, and grants as much again if it is told to."""

    def __init__(
        self, connection: Connection, *, again: bool = False, expires_s: float = 30.0, group: str = ""
    ) -> None:
        self.got: list[Delivery] = []
        self.missed = 0
        self.again = again
        self.connection = connection
        self.changed = asyncio.Event()
        self.intake = Intake(
            connection, "S", "c", deliver=self.deliver, missing=self.missing, expires_s=expires_s, group=group
        )

    def deliver(self, delivery: Delivery) -> None:
        self.got.append(delivery)
        delivery.ack()
        if self.again:
            self.intake.grant(1)
        self.changed.set()

    async def missing(self) -> None:
        self.missed += 1
        self.changed.set()
        try:
            await api(self.connection, "STREAM.CREATE.S", STREAM)
            await create_consumer(self.connection)
        except AssertionError as error:
            raise Unavailable("not now") from error

    async def until(self, enough: Callable[[Owner], bool]) -> None:
        async with asyncio.timeout(10):
            while not enough(self):
                self.changed.clear()
                await self.changed.wait()

    def bodies(self) -> set[bytes]:
        return {delivery.message.data for delivery in self.got}


@asynccontextmanager
async def running(owner: Owner) -> AsyncIterator[Owner]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(owner.intake.run())
        yield owner
        task.cancel()


@pytest.fixture
async def stream(connection: Connection) -> None:
    await api(connection, "STREAM.CREATE.S", STREAM)
    await create_consumer(connection)


async def outstanding(connection: Connection) -> object:
    """How many requests wait at the server."""
    answer = await connection.request("$JS.API.CONSUMER.INFO.S.c", timeout_s=5)
    return json.loads(answer.data).get("num_waiting")


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """For what only the server knows, which does not tell when it changes."""
    async with asyncio.timeout(5):
        while not await true():
            await asyncio.sleep(0.01)


async def until_asked(connection: Connection) -> None:
    async def is_one() -> bool:
        return await outstanding(connection) == 1

    await until(is_one)


@pytest.mark.usefixtures("stream")
async def test_exactly_what_was_granted_is_delivered(connection: Connection) -> None:
    await publish(connection, 700)
    async with running(Owner(connection)) as owner:
        for count in (1, 2, 300):  # the last is more than one request may ask for
            owner.intake.grant(count)
        await owner.until(lambda owner: len(owner.got) == 303)
        assert owner.intake.credit == 0
        await connection.flush(2)
        assert len(owner.got) == 303
        owner.intake.grant(397)
        await owner.until(lambda owner: len(owner.got) == 700)
    assert [delivery.stream_sequence for delivery in owner.got] == list(range(1, 701))
    assert [delivery.pending for delivery in owner.got] == list(range(699, -1, -1))
    assert {delivery.delivered for delivery in owner.got} == {1}


@pytest.mark.usefixtures("stream")
async def test_credit_granted_one_by_one_becomes_one_request_while_there_is_nothing_to_do(
    connection: Connection,
) -> None:
    async with running(Owner(connection)) as owner:
        for _ in range(20):
            owner.intake.grant(1)
            await connection.flush(2)
        await until_asked(connection)
        await publish(connection, 21)
        await owner.until(lambda owner: len(owner.got) == 20)
        await connection.flush(2)
        assert len(owner.got) == 20


@pytest.mark.usefixtures("stream")
async def test_while_nothing_comes_a_heartbeat_is_rare_and_what_then_comes_is_exactly_what_was_granted(
    server: Server, connection: Connection
) -> None:
    def asked(heartbeat: bytes) -> int:
        return b"".join(between.heard).count(b'"idle_heartbeat":%b' % heartbeat)

    async with (
        Cutter.before(server.port) as between,
        Connection.open(between.url(server.url), name="idle") as idle,
        running(Owner(idle, expires_s=1.8)) as owner,
    ):
        owner.intake.grant(10)
        async with asyncio.timeout(10):
            while not asked(b"600000000"):
                await asyncio.sleep(0.05)
        assert asked(b"500000000") == 1
        await publish(connection, 30)
        await owner.until(lambda owner: len(owner.got) == 10)
        await connection.flush(2)
        await idle.flush(2)
        assert len(owner.got) == 10
        owner.intake.grant(21)
        await owner.until(lambda owner: len(owner.got) == 30)
        assert owner.bodies() == {b"%d" % number for number in range(30)}
        # There is one left, and nothing comes: from then on it is as at first.
        async with asyncio.timeout(10):
            while asked(b"500000000") < 2:
                await asyncio.sleep(0.05)


@pytest.mark.usefixtures("stream")
async def test_a_restart_in_the_middle_loses_nothing_and_the_flow_resumes(
    server: Server, connection: Connection
) -> None:
    await publish(connection, 500)
    async with running(Owner(connection, again=True)) as owner:
        owner.intake.grant(10)
        await owner.until(lambda owner: len(owner.got) >= 100)
        await server.restart()
        began = time.monotonic()
        async with Connection.open(server.url, name="publisher") as other:
            await publish(other, 100, first=500)
        await owner.until(lambda owner: len(owner.bodies()) >= 590)
        assert time.monotonic() - began < 2
        # Up to ten were on the broken line, and come again when their time is up: nothing is lost, some is late.
        assert owner.intake.credit == 10
    assert connection.disconnects == 1


@pytest.mark.usefixtures("stream")
async def test_a_restart_while_idle_does_not_double_the_credit(server: Server, connection: Connection) -> None:
    async with running(Owner(connection)) as owner:
        owner.intake.grant(5)
        for _ in range(2):
            back = asyncio.Event()
            forget = connection.on_reconnect(back.set)
            await server.restart()
            await asyncio.wait_for(back.wait(), 5)
            forget()
        await publish(connection, 20)
        await owner.until(lambda owner: len(owner.got) == 5)
        await connection.flush(2)
        assert len(owner.got) == 5


@pytest.mark.usefixtures("stream")
async def test_a_frozen_server_is_not_asked_twice_for_the_same(server: Server, connection: Connection) -> None:
    async with running(Owner(connection)) as owner:
        owner.intake.grant(5)
        await until_asked(connection)
        await freeze(server.pid)
        inbox = owner.intake._inbox
        for number in range(20):
            connection.publish("flow.a", b"%d" % number)
        await asyncio.sleep(1.5)  # three heartbeats are missed: what is tested is time itself
        server.signal(signal.SIGCONT)
        await owner.until(lambda owner: len(owner.got) == 5)
        await connection.flush(2)
        assert len(owner.got) == 5
        owner.intake.grant(15)
        await owner.until(lambda owner: len(owner.got) == 20)
        assert owner.intake._inbox != inbox
    assert connection.disconnects == 0


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("call", ["CONSUMER.DELETE.S.c", "STREAM.DELETE.S"])
async def test_what_was_deleted_is_made_again_and_the_flow_goes_on(
    server: Server, connection: Connection, call: str
) -> None:
    async with (
        running(Owner(connection, again=True)) as owner,
        Connection.open(server.operator_url, name="operator") as operator,
    ):
        owner.intake.grant(3)
        await until_asked(connection)
        await api(operator, call)
        await owner.until(lambda owner: owner.missed > 0)
        await until_asked(connection)
        await publish(connection, 50)
        await owner.until(lambda owner: len(owner.bodies()) == 50)


async def test_an_owner_that_can_not_make_it_is_asked_again_after_a_pause(connection: Connection) -> None:
    asked: list[float] = []
    thrice = asyncio.Event()

    async def missing() -> None:
        asked.append(time.monotonic())
        if len(asked) == 4:
            thrice.set()
        raise Unavailable("no leader")

    intake = Intake(connection, "S", "c", deliver=lambda _: None, missing=missing)
    intake.grant(1)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(intake.run())
        await asyncio.wait_for(thrice.wait(), 5)
        task.cancel()
    assert asked[3] - asked[2] >= 0.1


@pytest.mark.usefixtures("stream")
async def test_poison_in_the_stream_is_delivered_as_data(server: Server, connection: Connection) -> None:
    await send_raw(server, *POISON.values())
    await publish(connection, 1)
    async with running(Owner(connection)) as owner:
        owner.intake.grant(100)
        await owner.until(lambda owner: len(owner.got) == len(POISON) + 1)
    assert owner.got[-1].message.data == b"0"
    assert owner.intake.credit == 100 - len(owner.got)
    assert connection.callback_errors == 0


@pytest.mark.usefixtures("stream")
async def test_a_message_that_copies_the_servers_words_is_a_message(server: Server, connection: Connection) -> None:
    for status in (b"100 Idle Heartbeat", b"409 Consumer Deleted", b"408", b"503"):
        head = b"NATS/1.0 %b\r\n\r\n" % status
        await send_raw(server, b"HPUB flow.a %d %d\r\n%b\r\n" % (len(head), len(head), head))
    async with running(Owner(connection)) as owner:
        owner.intake.grant(4)
        await owner.until(lambda owner: len(owner.got) == 4)
    assert owner.missed == 0


@pytest.mark.usefixtures("stream")
async def test_after_stop_nothing_more_comes_and_run_returns(connection: Connection) -> None:
    await publish(connection, 50)
    owner = Owner(connection, again=True)
    owner.intake.grant(5)
    task = asyncio.create_task(owner.intake.run())
    await owner.until(lambda owner: len(owner.got) >= 10)
    owner.intake.stop()
    await asyncio.wait_for(task, 5)
    count = len(owner.got)
    await publish(connection, 5)
    await connection.flush(2)
    assert len(owner.got) == count
    info = await api(connection, "CONSUMER.INFO.S.c")
    assert info["num_ack_pending"] == 0


async def test_run_ends_when_the_connection_is_closed(server: Server) -> None:
    async with Connection.open(server.url, name="test") as connection:
        await api(connection, "STREAM.CREATE.S", STREAM)
        await create_consumer(connection)
        owner = Owner(connection)
        owner.intake.grant(5)
        task = asyncio.create_task(owner.intake.run())
        await until_asked(connection)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(task, 2)


@pytest.mark.usefixtures("stream")
async def test_each_answer_has_its_effect(connection: Connection) -> None:
    await create_consumer(connection, ack_wait=1_000_000_000)
    await publish(connection, 4)
    got: asyncio.Queue[Delivery] = asyncio.Queue()
    intake = Intake(connection, "S", "c", deliver=got.put_nowait, missing=asyncio.Event().wait)
    intake.grant(10)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(intake.run())
        first, second, third, fourth = [await got.get() for _ in range(4)]
        await first.ack_sync(2)
        second.nak(0.05)
        third.term("never\r\nagain")
        fourth.in_progress()
        again = await got.get()
        assert (again.stream_sequence, again.delivered) == (second.stream_sequence, 2)
        again.ack()
        fourth.ack()
        await connection.flush(2)
        assert (await api(connection, "CONSUMER.INFO.S.c"))["num_ack_pending"] == 0
        task.cancel()


async def test_who_ranks_lower_is_served_first_also_when_both_have_long_waited(connection: Connection) -> None:
    """Who asked anew at the first message was not there for the next ones, which went to the other."""
    await api(connection, "STREAM.CREATE.S", STREAM)
    await create_consumer(connection, priority_groups=["g"], priority_policy="prioritized")
    first, second = (Owner(connection, again=True, expires_s=1.6, group="g") for _ in range(2))
    second.intake.rank(5)
    async with running(first), running(second):
        for owner in (first, second):
            owner.intake.grant(64)
        await asyncio.sleep(2)  # what is tested is time itself
        for number in range(40):
            await publish(connection, 1, first=number)
        await first.until(lambda owner: len(owner.got) == 40)
        assert not second.got


async def test_who_ranks_lower_is_served_first_also_with_what_was_asked_for_before(connection: Connection) -> None:
    await api(connection, "STREAM.CREATE.S", STREAM)
    await create_consumer(connection, priority_groups=["g"], priority_policy="prioritized")
    got: list[str] = []
    intakes: dict[str, Intake] = {}
    async with asyncio.TaskGroup() as tasks:
        for name in ("first", "second"):

            def deliver(delivery: Delivery, name: str = name) -> None:
                got.append(name)
                delivery.ack()

            intakes[name] = Intake(connection, "S", "c", deliver=deliver, missing=asyncio.Event().wait, group="g")
            intakes[name].grant(4)
            tasks.create_task(intakes[name].run())
            await asyncio.sleep(0.1)
        intakes["first"].rank(5)
        await asyncio.sleep(0.2)
        await publish(connection, 4)
        await publish(connection, 1)
        async with asyncio.timeout(10):
            while len(got) < 5:
                await asyncio.sleep(0.01)
        for intake in intakes.values():
            intake.stop()
    assert got == ["second"] * 4 + ["first"]
