from __future__ import annotations

import asyncio
import gc
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

from bus.broker import line
from bus.broker.connection import Connection, Message
from bus.broker.rhythm import until_next_s
from bus.broker.server import Server
from bus.broker.wire import Frames
from bus.errors import InvalidName, NoResponders, SettingsError, TooLarge, Unavailable
from tests.cutter import Cutter
from tests.harness import BOUND_S, freeze, until

POISON = {
    "a subject that is not UTF-8": b"PUB flow.\xff 4\r\nevil\r\n",
    "a subject with a form feed": b"PUB flow.\x0c7 4\r\nevil\r\n",
    "a subject with a vertical tab": b"PUB flow.\x0bx 4\r\nevil\r\n",
    "a reply that is not UTF-8": b"PUB flow.a \xfe\xff 4\r\nevil\r\n",
    "a header of three bytes": b"HPUB flow.a 3 7\r\nabcevil\r\n",
    "a header without an end": b"HPUB flow.a 8 12\r\nNATS/1.0evil\r\n",
    "a header with broken lines": b"HPUB flow.a 29 33\r\nNATS/1.0\r\nno colon\r\n: \r\n\xff:\xff\r\nevil\r\n",
    "a status that is not a number": b"HPUB flow.a 16 20\r\nNATS/1.0 \xff\xfe\xfd\r\n\r\nevil\r\n",
    "a status like the server's": b"HPUB flow.a 16 20\r\nNATS/1.0 404\r\n\r\nevil\r\n",
    "a header called Status": b"HPUB flow.a 25 29\r\nNATS/1.0\r\nStatus: 409\r\n\r\nevil\r\n",
    "nothing": b"PUB flow.a 0\r\n\r\n",
}


async def send_raw(server: Server, *lines: bytes) -> None:
    """Publish what a well-behaved client would not, on a socket of its own, and wait until the server has it."""
    url = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    login = {"user": url.username, "pass": url.password, "verbose": False, "headers": True}
    writer.write(b"CONNECT %b\r\n%bPING\r\n" % (json.dumps(login).encode(), b"".join(lines)))
    while b"PONG" not in await reader.readline():
        pass
    writer.close()
    await writer.wait_closed()


async def until_given_up(server: Server, connection: Connection, do: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again at a frozen server, until the line is given up."""
    await freeze(server.pid)
    try:
        async with asyncio.timeout(5):
            while not connection.disconnects:
                with suppress(Unavailable):
                    await do()
    finally:
        server.signal(signal.SIGCONT)


class Inbox:
    """A callback that keeps what it gets, and can be waited for."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.arrived = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.arrived.set()

    async def until(self, enough: Callable[[list[Message]], bool]) -> list[Message]:
        async with asyncio.timeout(5):
            while not enough(self.messages):
                self.arrived.clear()
                await self.arrived.wait()
        return self.messages


async def test_poison_of_every_kind_arrives_as_data_and_the_next_message_too(
    server: Server, connection: Connection
) -> None:
    inbox = Inbox()
    connection.subscribe("flow.>", inbox)
    await connection.flush(2)
    await send_raw(server, *POISON.values(), b"PUB flow.good 4\r\ngood\r\n")
    messages = await inbox.until(lambda messages: messages[-1:] != [] and messages[-1].data == b"good")
    assert len(messages) == len(POISON) + 1
    assert connection.disconnects == 0
    assert messages[0].subject == "flow.\udcff"
    assert [message.subject for message in messages[1:3]] == ["flow.\x0c7", "flow.\x0bx"]
    by_kind = dict(zip(POISON, messages, strict=False))
    assert by_kind["a header of three bytes"].headers == {}
    assert by_kind["a status like the server's"].status == 404
    assert by_kind["a header called Status"].status == 0
    assert by_kind["a header called Status"].headers == {"Status": "409"}
    assert by_kind["a status that is not a number"].status == 0


async def test_a_stream_with_poison_can_be_read_to_its_end(server: Server, connection: Connection) -> None:
    config = {"name": "LIVE", "subjects": ["flow.>"], "allow_direct": True, "storage": "memory"}
    await connection.request("$JS.API.STREAM.CREATE.LIVE", json.dumps(config).encode(), timeout_s=2)
    await send_raw(server, *POISON.values())
    await connection.request("flow.good", timeout_s=2)  # stored when it is answered, and the poison before it
    sequences = []
    async for message in connection.request_many("$JS.API.DIRECT.GET.LIVE", b'{"batch":100,"seq":1}', timeout_s=2):
        if message.status == 204:
            break
        assert message.status == 0  # the server takes out a status that a publisher wrote
        sequences.append(int(message.headers["Nats-Sequence"]))
    assert sequences == list(range(1, len(POISON) + 2))
    assert connection.disconnects == 0


async def test_a_header_of_the_message_can_not_overrule_the_servers_in_a_direct_get(connection: Connection) -> None:
    config = {"name": "S", "subjects": ["s"], "allow_direct": True, "storage": "memory"}
    await connection.request("$JS.API.STREAM.CREATE.S", json.dumps(config).encode(), timeout_s=2)
    await connection.request("s", b"x", headers={"Nats-Sequence": "999", "Nats-Subject": "forged"}, timeout_s=2)
    got = await connection.request("$JS.API.DIRECT.GET.S", b'{"seq":1}', timeout_s=2)
    assert (got.headers["Nats-Sequence"], got.headers["Nats-Subject"]) == ("1", "s")


def test_frames_are_the_same_however_the_bytes_are_cut() -> None:
    wire = (
        b"PING\r\nMSG a.b 7 5\r\nhello\r\nHMSG c 8 r.e 22 24\r\nNATS/1.0 503\r\nA: b\r\n\r\nhi\r\n"
        b"MSG \xff 9 0\r\n\r\n-ERR 'no'\r\nMSG d 1 2\r\n\r\n\r\n"
    )
    whole = list(Frames().feed(wire))
    assert len(whole) == 6
    assert whole[2] == (8, Message("c", b"hi", "r.e", b"NATS/1.0 503\r\nA: b\r\n\r\n"))
    for first in range(len(wire)):
        for second in range(first, len(wire), 7):
            frames = Frames()
            pieces = wire[:first], wire[first:second], wire[second:]
            assert [frame for piece in pieces for frame in frames.feed(piece)] == whole


async def test_a_failing_callback_is_counted_and_the_next_message_arrives(connection: Connection) -> None:
    inbox = Inbox()

    def fail_first(message: Message) -> None:
        inbox(message)
        if len(inbox.messages) == 1:
            raise RuntimeError

    connection.subscribe("t", fail_first)
    connection.publish("t", b"1")
    connection.publish("t", b"2")
    assert [message.data for message in await inbox.until(lambda messages: len(messages) == 2)] == [b"1", b"2"]
    assert connection.callback_errors == 1


async def test_an_inquiry_is_sent_again_until_somebody_answers(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.broker.connection._AGAIN_S", 0.05)
    heard: list[Message] = []

    def answer_the_third(message: Message) -> None:
        heard.append(message)
        if len(heard) == 3:
            connection.publish(message.reply, b"yes")

    connection.subscribe("busy", answer_the_third)
    assert (await connection.inquire("busy", b"well?", timeout_s=5)).data == b"yes"
    assert [message.data for message in heard] == [b"well?"] * 3
    with pytest.raises(Unavailable, match=r"no answer on 'busy' within 0\.2 s"):
        await connection.inquire("busy", timeout_s=0.2)
    with pytest.raises(NoResponders):
        await connection.inquire("nobody.here", timeout_s=10)
    assert not connection._waiting
    assert not connection._repeating


async def test_an_inquiry_waits_no_longer_than_it_may_while_no_line_nor_room_is_there(
    server: Server, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.broker.connection._AGAIN_S", 0.05)
    await server.kill()
    await until(lambda: not connection.is_connected)
    inquiring = asyncio.create_task(connection.inquire("busy", b"well?", timeout_s=0.5))
    await asyncio.sleep(0.2)
    assert list(connection._client._pending).count(b"well?") == 1
    with pytest.raises(Unavailable, match="wait to be sent"):
        while True:
            connection.publish("t", b"x" * 500_000)
    with pytest.raises(Unavailable, match=r"no answer on 'busy' within 0\.5 s"):
        async with asyncio.timeout(BOUND_S):
            await inquiring
    with pytest.raises(Unavailable, match="wait to be sent"):
        await connection.inquire("busy", timeout_s=10)
    assert not connection._waiting


async def test_an_answer_to_an_inquiry_is_gone_when_nobody_has_it_any_more(connection: Connection) -> None:
    """Without the garbage collector: it may have a mebibyte, and there may be hundreds before that looks."""
    connection.subscribe("here", lambda message: connection.publish(message.reply, b"a mebibyte, say"))
    gc.collect()
    gc.disable()
    try:
        await connection.inquire("here", timeout_s=5)
        await asyncio.sleep(0)  # what the event loop was doing when it came is over
        futures = [each for each in gc.get_objects() if type(each) is asyncio.Future and each.done()]
        kept = [each.result() for each in futures if not each.cancelled() and each.exception() is None]
        assert [each for each in kept if isinstance(each, Message) and each.data == b"a mebibyte, say"] == []
    finally:
        gc.enable()


async def test_a_request_nobody_listens_to_fails_at_once(connection: Connection) -> None:
    began = time.monotonic()
    with pytest.raises(NoResponders) as caught:
        await connection.request("nobody.here", timeout_s=10)
    assert caught.value.subject == "nobody.here"
    with pytest.raises(NoResponders):
        [message async for message in connection.request_many("nobody.here", timeout_s=10)]
    assert time.monotonic() - began < 1


async def test_a_request_without_an_answer_is_unavailable_and_leaves_nothing_behind(connection: Connection) -> None:
    connection.subscribe("silent", lambda _: None)
    with pytest.raises(Unavailable):
        await connection.request("silent", timeout_s=0.05)
    assert not connection._waiting


async def test_waiting_requests_fail_when_the_connection_is_closed(server: Server) -> None:
    async with Connection.open(server.url, name="test") as connection:
        connection.subscribe("silent", lambda _: None)
        requests = [asyncio.ensure_future(connection.request("silent", timeout_s=60)) for _ in range(10)]
        await connection.flush(2)
    outcomes = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 1)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    with pytest.raises(Unavailable):
        connection.publish("late")


async def test_many_concurrent_requests_each_get_their_own_answer(connection: Connection) -> None:
    connection.subscribe("echo", lambda message: connection.publish(message.reply, message.data))
    bodies = [str(number).encode() for number in range(500)]
    answers = await asyncio.gather(*(connection.request("echo", body, timeout_s=5) for body in bodies))
    assert [answer.data for answer in answers] == bodies


async def test_what_is_too_large_is_refused_before_the_socket(connection: Connection) -> None:
    limit = connection.max_payload
    for data, headers in ((b"x" * (limit + 1), None), (b"x" * (limit - 10), {"A": "b" * 20})):
        with pytest.raises(TooLarge) as caught:
            connection.publish("t", data, headers=headers)
        assert caught.value.limit_bytes == limit < caught.value.size_bytes
    inbox = Inbox()
    connection.subscribe("t", inbox)
    connection.publish("t", b"x" * limit)
    assert len((await inbox.until(lambda messages: len(messages) == 1))[0].data) == limit
    assert connection.disconnects == 0


@pytest.mark.parametrize(
    "subject", ["", ".", "a..b", "a.", ".a", "a.*", ">", "a b", "a\tb", "a\r\nPUB x", "a\x00", "\udcff", "a" * 1025]
)
async def test_a_subject_that_is_none_is_refused_before_the_socket(connection: Connection, subject: str) -> None:
    with pytest.raises(InvalidName):
        connection.publish(subject)
    if subject:
        with pytest.raises(InvalidName):
            connection.publish("t", reply=subject)


async def test_headers_arrive_as_sent_and_those_that_would_break_the_line_are_refused(connection: Connection) -> None:
    inbox = Inbox()
    connection.subscribe("t", inbox)
    headers = {"Nats-Msg-Id": "ä", "X": ""}
    connection.publish("t", b"d", headers=headers)
    assert (await inbox.until(bool))[0].headers == headers
    for wrong in ({"a b": "c"}, {"": "c"}, {"a": "b\r\nc"}, {"a": "\ud800"}):
        with pytest.raises(InvalidName):
            connection.publish("t", headers=wrong)


async def test_subscriptions_and_what_was_published_meanwhile_survive_a_restart(
    server: Server, connection: Connection
) -> None:
    inbox, back = Inbox(), asyncio.Event()
    connection.subscribe("t", inbox)
    forget = connection.on_reconnect(back.set)
    await server.kill()
    lost = asyncio.Event()
    connection.on_disconnect(lost.set)
    if connection.is_connected:
        await asyncio.wait_for(lost.wait(), 5)
    connection.publish("t", b"meanwhile")
    await server.start()
    await asyncio.wait_for(back.wait(), 5)
    forget()
    connection.publish("t", b"after")
    assert [m.data for m in await inbox.until(lambda messages: len(messages) == 2)] == [b"meanwhile", b"after"]
    assert connection.disconnects == 1


async def test_a_long_answer_that_a_restart_cuts_is_unavailable(server: Server, connection: Connection) -> None:
    connection.subscribe("half", lambda message: connection.publish(message.reply, b"1"))
    with pytest.raises(Unavailable):
        async for _ in connection.request_many("half", timeout_s=10):
            await server.restart()


async def test_answers_end_with_silence(connection: Connection) -> None:
    for number in range(3):
        connection.subscribe("ping", lambda m, n=number: connection.publish(m.reply, b"%d" % n))
    answers = [message.data async for message in connection.request_many("ping", timeout_s=0.2)]
    assert sorted(answers) == [b"0", b"1", b"2"]
    assert not connection._streams


async def test_a_drained_subscription_has_had_everything(connection: Connection) -> None:
    inbox = Inbox()
    subscription = connection.subscribe("t", inbox)
    for _ in range(1000):
        connection.publish("t")
    await subscription.drain(5)
    assert len(inbox.messages) == 1000
    connection.publish("t")
    await connection.flush(2)
    assert len(inbox.messages) == 1000


async def test_a_subscription_for_one_message_ends_by_itself_on_both_sides(connection: Connection) -> None:
    first, second = Inbox(), Inbox()
    connection.subscribe("t", first, once=True)
    for _ in range(3):
        connection.publish("t", b"x")
    await connection.flush(2)
    assert len(first.messages) == 1
    early = connection.subscribe("t", second, once=True)
    early.unsubscribe()
    connection.publish("t", b"x")
    await connection.flush(2)
    assert second.messages == []
    # The server has forgotten it: nobody is there to answer.
    with pytest.raises(NoResponders):
        await connection.request("t", timeout_s=2)


async def test_a_late_answer_to_a_flush_does_not_end_the_reading(server: Server, connection: Connection) -> None:
    await freeze(server.pid)
    with pytest.raises(Unavailable):
        await connection.flush(0.05)
    server.signal(signal.SIGCONT)
    await connection.flush(2)
    assert connection.disconnects == 0


async def test_however_the_reading_ends_the_line_is_made_again(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise RuntimeError

    back = asyncio.Event()
    connection.on_reconnect(back.set)
    with monkeypatch.context() as patched:
        patched.setattr(connection._client, "_process_pong", fail)
        with pytest.raises(Unavailable):
            await connection.flush(2)
    await asyncio.wait_for(back.wait(), 5)
    await connection.flush(2)
    assert connection.disconnects == 1


@asynccontextmanager
async def overheard(server: Server) -> AsyncIterator[tuple[Connection, Cutter]]:
    """A connection, and who hears what it sends from now on."""
    async with Cutter.before(server.port) as between, Connection.open(between.url(server.url), name="test") as one:
        await one.flush(2)
        between.heard.clear()
        yield one, between


async def test_a_ping_that_is_due_goes_along_with_what_is_written(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_PING_S", 0.3)
    async with overheard(server) as (busy, between):
        for number in range(100):
            busy.publish("t", b"%d" % number)
            await asyncio.sleep(0.01)
        pings = [data for data in between.heard if b"PING" in data]
        along = [data for data in pings if b"PUB" in data]
        # One that nothing was written for in time, on a busy machine, goes alone.
        assert len(pings) >= 3 and len(along) > len(pings) / 2
        assert busy.disconnects == 0


async def test_a_ping_alone_at_the_moment_at_which_something_is_written_is_no_second_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both waited for a pong: of the first nobody knew any more, and a sound line was given up."""
    monkeypatch.setattr(line, "_PING_S", 0.3)
    async with Connection.open(server.url, name="test") as one:
        loop = asyncio.get_running_loop()

        def just_before(_now_s: float, _every_s: float, _name: str) -> float:
            loop.call_later(0.3, loop.call_soon, one.publish, "t", b"x")
            return 0.3

        monkeypatch.setattr(line, "until_next_s", just_before)
        await asyncio.sleep(2.5)
        assert one.disconnects == 0


async def test_a_quiet_line_is_pinged_and_one_that_does_not_answer_is_given_up_also_by_who_writes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_PING_S", 0.3)
    async with overheard(server) as (one, between):
        async with asyncio.timeout(5):
            while between.heard.count(b"PING\r\n") < 3:
                await asyncio.sleep(0.01)
        assert one.disconnects == 0

        async def write() -> None:
            one.publish("t", b"x")
            await asyncio.sleep(0.01)

        await until_given_up(server, one, write)


async def test_a_line_that_is_flushed_again_and_again_is_given_up_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_PING_S", 0.3)
    async with Connection.open(server.url, name="test") as one:
        await one.flush(2)
        await until_given_up(server, one, lambda: one.flush(0.1))


async def test_a_quiet_line_is_pinged_at_each_moment_however_late_the_one_before_was(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_PING_S", 0.4)
    async with overheard(server) as (_, between):
        began = time.monotonic()
        for _ in range(4):
            await asyncio.sleep(until_next_s(time.time(), 0.4, "test") - 0.01)
            time.sleep(0.1)  # noqa: ASYNC251 - the loop is late for this moment, and not for the next
            await asyncio.sleep(until_next_s(time.time(), 0.4, "test") + 0.1)
        passed = (time.monotonic() - began) / 0.4
        assert b"".join(between.heard).count(b"PING") >= passed - 2


async def test_closing_is_bounded_when_the_server_is_frozen(server: Server) -> None:
    async with Connection.open(server.url, name="test") as connection:
        await freeze(server.pid)
        for _ in range(20):
            connection.publish("t", b"x" * 500_000)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    server.signal(signal.SIGCONT)


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(Unavailable, match=r"nats://127\.0\.0\.1:1 ") as caught:
        async with Connection.open("nats://bus:secret@127.0.0.1:1", name="test", connect_timeout_s=0.1):
            pass
    assert "secret" not in str(caught.value)


async def test_a_wrong_password_is_refused_at_once(server: Server) -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable, match="Authorization"):
        async with Connection.open(f"nats://bus:wrong@127.0.0.1:{server.port}", name="test", connect_timeout_s=30):
            pass
    assert time.monotonic() - began < 2


async def test_of_several_addresses_one_is_enough_and_a_senseless_one_is_named(server: Server) -> None:
    async with Connection.open(f"{server.url}, nats://127.0.0.1:1", name="test") as connection:
        assert connection.is_connected
        assert connection.server_version
        assert connection.server_id
    with pytest.raises(SettingsError):
        async with Connection.open("http://127.0.0.1:1", name="test"):
            pass


async def test_tls_is_not_silently_left_out(server: Server) -> None:
    with pytest.raises(Unavailable, match="tls"):
        async with Connection.open(server.url.replace("nats://", "tls://"), name="test", connect_timeout_s=0.3):
            pass


async def test_closing_beside_a_cancelled_wait_for_the_same_line_raises_nothing(server: Server) -> None:
    """As when closing cancels the task that makes a new line, which waited for the old one to end, too."""
    async with Connection.open(server.url, name="closing") as connection:
        transport = connection._client._transport
        assert transport is not None
        waiting = asyncio.create_task(transport.wait_closed())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
    assert connection.is_closed
