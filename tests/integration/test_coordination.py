"""Locks, semaphores, elections, barriers and decisions against a real server, with several clients."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from bus import Client, LeaseLost, NotFound, Refused, SettingsError, TimedOut, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.coordination import turns
from bus.coordination.decision import PROPOSED, Decided, Proposed
from bus.coordination.held import Hold
from bus.coordination.lease import LeaseAcquired, LeaseReleased, Place, standing
from bus.coordination.lease import LeaseLost as Lost
from bus.format.envelope import Envelope, envelope
from bus.log.log import Part
from tests.harness import BOUND_S, supervised, until


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url, name="one") as connected:
        yield connected


@pytest.fixture
async def other(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url, name="other") as connected:
        yield connected


def note(text: str) -> Envelope:
    return envelope("noted.v1", text, id=uuid4().hex, source="/test", time=utc_now())


def block(for_s: float) -> None:
    """The event loop, as a handler that calculates does."""
    time.sleep(for_s)


async def told(client: Client, place: Place) -> list[LeaseAcquired | LeaseReleased | Lost]:
    """What the log has of a place."""
    subject = client.subjects.lease(place.path)
    return [standing(each.envelope(), each.position).event async for each in client.log.read(subject)]


async def test_a_lock_is_one_holder_s_at_a_time_and_its_tokens_grow(client: Client, other: Client) -> None:
    inside, tokens = 0, []

    async def work(on: Client) -> None:
        nonlocal inside
        async with on.lock("deploy", timeout_s=BOUND_S) as lease:
            inside += 1
            assert inside == 1
            tokens.append(lease.token)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(work(on) for _ in range(10) for on in (client, other)))
    assert len(tokens) == 20
    assert all(earlier < later for earlier, later in pairwise(tokens))


@pytest.mark.parametrize("permits", [1, 3])
async def test_who_waits_is_woken_by_those_before_not_by_the_clock(
    client: Client, other: Client, permits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has just taken it still stands in the line for a moment: each of those behind waited a second for that."""
    monkeypatch.setattr(turns, "_FIRST_LOOKS_S", 3600.0)
    monkeypatch.setattr(turns, "_OTHERS_LOOK_S", 3600.0)
    inside = 0

    async def work(on: Client) -> None:
        nonlocal inside
        async with on.semaphore("deploy", limit=permits, timeout_s=BOUND_S):
            inside += 1
            assert inside <= permits
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(work(on) for _ in range(15) for on in (client, other)))


async def test_who_comes_while_the_next_one_leaves_the_line_is_woken_by_it(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had taken the lock before the newcomer listened, and still stood in the line: that was waited for twice."""
    monkeypatch.setattr(turns, "_FIRST_LOOKS_S", 3600.0)
    monkeypatch.setattr(turns, "_OTHERS_LOOK_S", 3600.0)
    before, drop = turns.Wanted._before, client.leases.bucket.drop
    looks, leaving, may_leave = asyncio.Queue[int](), asyncio.Event(), asyncio.Event()

    async def looking(wanted: turns.Wanted, own: str) -> int:
        found = await before(wanted, own)
        looks.put_nowait(found)
        return found

    async def dropping(revision: int) -> None:
        leaving.set()
        await may_leave.wait()
        await drop(revision)

    async def have(on: Client) -> None:
        async with on.lock("deploy", timeout_s=BOUND_S):
            pass

    monkeypatch.setattr(turns.Wanted, "_before", looking)
    monkeypatch.setattr(client.leases.bucket, "drop", dropping)
    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as tasks:
        async with other.lock("deploy"):
            tasks.create_task(have(client))
            assert await looks.get() == 0
        await leaving.wait()
        tasks.create_task(have(other))
        assert await looks.get() == 1
        may_leave.set()


async def test_who_leaves_the_line_while_its_place_is_renewed_has_left_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way was written behind the removal: nobody could have what was free, for a whole lease."""
    monkeypatch.setattr(turns, "_RENEWALS", 100)
    bucket, key, renewing = client.leases.bucket, "line.lock.deploy.one", asyncio.Event()
    put, sent = bucket.put, list[asyncio.Task[int]]()

    async def arriving(*given: Any, **named: Any) -> int:
        await asyncio.sleep(0.05 if len(sent) > 1 else 0)
        return await put(*given, **named)

    async def putting(*given: Any, **named: Any) -> int:
        # What was sent arrives, whether or not its sender still waits for the answer.
        sent.append(asyncio.create_task(arriving(*given, **named)))
        if len(sent) > 1:
            renewing.set()
        return await asyncio.shield(sent[-1])

    monkeypatch.setattr(bucket, "put", putting)
    async with asyncio.timeout(BOUND_S):
        async with turns.present(bucket, key, 3):
            await renewing.wait()
        await asyncio.gather(*sent)
        assert await bucket.get(key) is None


async def test_who_is_cancelled_while_he_takes_a_lock_leaves_it_free(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way was stored after he had looked whether there was anything of his: nobody's for a lease."""
    put, sent = client.leases.bucket.put, asyncio.Event()

    async def putting(*given: Any, **named: Any) -> int:
        async def arriving() -> int:
            await asyncio.sleep(0.05)
            return await put(*given, **named)

        sent.set()
        return await asyncio.shield(asyncio.create_task(arriving()))

    async def have() -> None:
        async with client.lock("deploy"):
            pytest.fail("it was cancelled before")

    monkeypatch.setattr(client.leases.bucket, "put", putting)
    taking = asyncio.create_task(have())
    await sent.wait()
    taking.cancel()
    await asyncio.wait({taking})
    assert taking.cancelled()
    await asyncio.sleep(0.1)
    async with other.lock("deploy", timeout_s=0):
        pass


async def test_who_waits_longest_is_next(client: Client, other: Client) -> None:
    order: list[int] = []

    async def wait(number: int) -> None:
        async with (client, other)[number % 2].lock("deploy", timeout_s=BOUND_S):
            order.append(number)

    async def waiting(count: int) -> bool:
        return len(await client.leases.bucket.entries("line.>")) == count

    async with asyncio.TaskGroup() as tasks, client.lock("deploy"):
        for number in range(6):
            tasks.create_task(wait(number))
            await until(lambda number=number: waiting(number + 1))
    assert order == list(range(6))
    await until(lambda: waiting(0))


async def test_what_is_not_free_is_waited_for_no_longer_than_said(client: Client, other: Client) -> None:
    async with client.lock("deploy", by="ann"):
        for timeout_s in (0, 0.3):
            with pytest.raises(TimedOut, match="ann came first"):
                async with other.lock("deploy", timeout_s=timeout_s):
                    pass
    async with other.lock("deploy", timeout_s=0):
        pass


async def test_who_got_and_gave_back_what_is_in_the_log_and_renewals_are_not(client: Client) -> None:
    async with client.lock("deploy", ttl_s=1, by="ann") as lease:
        await asyncio.sleep(1.5)
        lease.check()
        [holding] = await client.holdings()
        assert (holding.place.path, holding.holder, holding.token) == ("lock.deploy", "ann", lease.token)
    events = await told(client, lease.place)
    assert [type(event) for event in events] == [LeaseAcquired, LeaseReleased]
    assert {event.lease for event in events} == {lease.id}
    assert await client.holdings() == []
    with pytest.raises(LeaseLost, match="given back"):
        lease.check()


async def test_the_log_takes_what_is_fenced_as_long_as_the_lease_is_held(client: Client, other: Client) -> None:
    async with client.lock("deploy") as lease:
        position = await client.log.append("bus.topic.notes", note("mine"), fence=lease)
        assert position > lease.token
        together = [Part("bus.topic.a", note("1"), expected=0), Part("bus.topic.b", note("2"), fence=lease)]
        await client.log.append_together(together)
    with pytest.raises(LeaseLost, match=f"token {lease.token}"):
        await client.log.append("bus.topic.notes", note("late"), fence=lease)
    async with other.lock("deploy") as newer:
        with pytest.raises(LeaseLost):
            await client.log.append_together(
                [Part("bus.topic.c", note("1"), expected=0), Part("bus.topic.b", note("2"), fence=lease)]
            )
        await other.log.append("bus.topic.notes", note("theirs"), fence=newer)
    assert await client.log.last("bus.topic.c") is None
    said = [record.envelope().data async for record in client.log.read("bus.topic.notes")]
    assert list(map(bytes, said)) == [b'"mine"', b'"theirs"']
    with pytest.raises(SettingsError, match="not both"):
        await client.log.append("bus.topic.notes", note("x"), expected=0, fence=lease)


async def test_a_lock_that_is_broken_cancels_the_block_and_the_next_one_gets_it(client: Client, other: Client) -> None:
    async def hold() -> None:
        async with client.lock("deploy"):
            held.set()
            await asyncio.sleep(BOUND_S)

    held = asyncio.Event()
    holding = asyncio.create_task(hold())
    await held.wait()
    broken = await other.break_lease("lock", "deploy", by="ann")
    async with other.lock("deploy", timeout_s=BOUND_S) as lease:
        assert lease.token > broken.token
        with pytest.raises(LeaseLost, match="ended by ann"):
            await holding
    kinds = [type(event).__name__ for event in await told(client, lease.place)]
    assert kinds == ["LeaseAcquired", "LeaseLost", "LeaseAcquired", "LeaseReleased"]
    with pytest.raises(NotFound, match="nobody has"):
        await other.break_lease("lock", "deploy", by="ann")


async def test_an_error_of_the_block_is_its_own_and_gives_the_lock_back(client: Client) -> None:
    for error in (ValueError("mine"), TimeoutError("mine")):
        with pytest.raises(type(error), match="mine"):
            async with client.lock("deploy", timeout_s=0):
                raise error


async def test_nothing_goes_wrong_behind_a_block_that_has_ended(client: Client, other: Client) -> None:
    unseen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: unseen.append(told))
    for on in (client, other):
        async with on.lock("deploy", ttl_s=1):
            await asyncio.sleep(0.5)
        async with on.semaphore("gpu", limit=2), on.election("indexer") as candidacy:
            await candidacy.elected(timeout_s=BOUND_S)
    with pytest.raises(LeaseLost):
        async with client.lock("deploy"):
            await other.break_lease("lock", "deploy", by="ann")
            await asyncio.sleep(BOUND_S)
    await asyncio.sleep(0.1)
    gc.collect()
    assert unseen == []


async def test_a_blocked_loop_that_nobody_overtook_still_had_its_lock(client: Client) -> None:
    async with client.lock("deploy", ttl_s=1) as lease:
        block(0.9)
        with pytest.raises(LeaseLost):
            lease.check()
    assert [type(event) for event in await told(client, lease.place)] == [LeaseAcquired, LeaseReleased]


async def test_a_semaphore_lets_in_as_many_as_it_says_each_with_a_permit_of_its_own(
    client: Client, other: Client
) -> None:
    inside: set[int | None] = set()
    most = 0

    async def work(on: Client) -> None:
        nonlocal most
        async with on.semaphore("gpu", limit=3, timeout_s=BOUND_S) as permit:
            assert permit.slot not in inside
            inside.add(permit.slot)
            most = max(most, len(inside))
            await until(lambda: most == 3)
            await asyncio.sleep(0.01)
            inside.discard(permit.slot)

    await asyncio.gather(*(work(on) for _ in range(6) for on in (client, other)))
    assert most == 3
    with pytest.raises(SettingsError, match="limit"):
        async with client.semaphore("gpu", limit=0):
            pass


async def test_an_election_has_one_leader_and_the_next_one_follows_when_it_leaves(
    client: Client, other: Client
) -> None:
    async with other.election("indexer", by="follower") as following:
        first = await following.elected(timeout_s=BOUND_S)
    async with client.election("indexer", by="leader") as leading:
        lease = await leading.elected(timeout_s=BOUND_S)
        assert lease.token > first.token
        async with other.election("indexer", by="follower") as following:
            async for term in following:
                if term.leader == "leader":
                    break
            assert not term.is_own
            with pytest.raises(TimedOut, match="leader leads"):
                await following.elected(timeout_s=0.1)
            await client.break_lease("leader", "indexer", by="ann")
            assert (await following.elected(timeout_s=BOUND_S)).token > lease.token
            async for term in leading:
                if term.leader == "follower":
                    break
        again = await leading.elected(timeout_s=BOUND_S)
        assert again.token > lease.token


async def test_parties_of_a_barrier_go_on_together_again_and_again(client: Client, other: Client) -> None:
    arrived = 0

    async def work(on: Client) -> list[int]:
        nonlocal arrived
        generations = []
        for number in range(1, 4):
            arrived += 1
            generations.append(await on.barrier("ready", parties=4, timeout_s=BOUND_S))
            assert arrived >= 4 * number
        return generations

    assert await asyncio.gather(*(work(on) for on in (client, other, client, other))) == [[1, 2, 3]] * 4


async def test_a_party_that_gave_up_waiting_is_not_counted(client: Client, other: Client) -> None:
    with pytest.raises(TimedOut, match="0 others of 2"):
        await client.barrier("ready", parties=2, timeout_s=0.3)
    waiting = asyncio.create_task(client.barrier("ready", parties=2, timeout_s=BOUND_S))
    await until(lambda: _is_told(client, 3))
    waiting.cancel()
    await asyncio.wait({waiting})
    waiting = asyncio.create_task(client.barrier("ready", parties=2, timeout_s=BOUND_S))
    await until(lambda: _is_told(client, 5))
    assert not waiting.done()
    with pytest.raises(Refused, match="not 3"):
        await other.barrier("ready", parties=3)
    assert await other.barrier("ready", parties=2, timeout_s=BOUND_S) == await waiting


async def test_a_barrier_does_not_open_for_a_party_that_is_gone(client: Client, other: Client) -> None:
    waiting = asyncio.create_task(client.barrier("ready", parties=2, timeout_s=BOUND_S, party="gone"))
    await until(lambda: _is_told(client, 1))
    subject = client.subjects.barrier("ready")
    waiting.cancel()
    await asyncio.wait({waiting})
    # As a killed process leaves it: it has come, and has no key.
    came = await client.log.at(1)
    assert came is not None
    dead = envelope(came.envelope().type, came.envelope().data, id=uuid4().hex, source="/test", time=utc_now())
    await client.log.append(subject, dead)
    one = asyncio.create_task(other.barrier("ready", parties=2, timeout_s=BOUND_S))
    await until(lambda: _is_told(client, 5))
    assert not one.done()
    assert await client.barrier("ready", parties=2, timeout_s=BOUND_S) == await one


async def _is_told(client: Client, count: int) -> bool:
    return len([each async for each in client.log.read(client.subjects.barrier("ready"))]) >= count


async def test_votes_at_the_same_moment_all_count(client: Client, other: Client) -> None:
    voters = {f"voter-{number}": number + 1 for number in range(20)}
    made = await client.propose("ship it?", options=["yes", "no"], voters=voters, quorum=1, timeout_s=BOUND_S)
    await asyncio.gather(
        *(
            (client, other)[index % 2].vote(made.id, "no" if index == 0 else "yes", by=voter)
            for index, voter in enumerate(voters)
        )
    )
    found = await client.decided(made.id, timeout_s=BOUND_S)
    assert len(found.votes) == 20
    assert found.outcome == Decided(why="votes", tally={"yes": 209, "no": 1}, option="yes")
    subject = client.subjects.decision(made.id)
    kinds = [record.envelope().type async for record in client.log.read(subject)]
    assert (len(kinds), kinds.count("decision.decided.v1")) == (22, 1)


async def test_a_decision_ends_at_its_deadline_by_whoever_waits(client: Client, other: Client) -> None:
    made = await client.propose("ship it?", options=["yes", "no"], voters=["ann", "bob", "eve"], timeout_s=0.5)
    with pytest.raises(TimedOut, match="open still"):
        await client.decided(made.id, timeout_s=0.05)
    found = await asyncio.gather(*(on.decided(made.id, timeout_s=BOUND_S) for on in (client, other, client)))
    assert {each.outcome.why for each in found if each.outcome is not None} == {"no_quorum"}
    assert len({each.position for each in found}) == 1
    with pytest.raises(Refused, match="has ended"):
        await client.vote(made.id, "yes", by="ann")


async def test_a_decision_nobody_waits_for_is_ended_by_the_supervisor(client: Client, server: Server) -> None:
    made = await client.propose("ship it?", options=["yes", "no"], voters=["ann"], timeout_s=0.5)
    async with supervised(server):

        async def is_stored() -> bool:
            newest = await client.log.last(client.subjects.decision(made.id))
            return newest is not None and newest.envelope().type == "decision.decided.v1"

        await until(is_stored)


async def test_a_lease_nobody_renews_and_nobody_wants_is_told_as_lost_by_the_supervisor(
    client: Client, server: Server
) -> None:
    lease = await client.leases.take(Place("lock", "deploy"), "ann", 1)
    assert lease is not None
    async with supervised(server), client.lock("other"):

        async def is_told() -> bool:
            return isinstance((await told(client, lease.place))[-1], Lost)

        await until(is_told)
        assert sorted(each.place.path for each in await client.holdings()) == ["leader.supervisor", "lock.other"]


async def test_a_voter_is_told_what_waits_for_its_vote(client: Client, other: Client) -> None:
    first = await client.propose("1?", options=["yes", "no"], voters=["ann"], decision="first-one")
    await client.vote(first.id, "yes", by="ann")
    await client.propose("2?", options=["yes", "no"], voters=["ann", "bob"], decision="second")
    await client.propose("3?", options=["yes", "no"], voters=["bob"], decision="third")
    asked = []
    async with asyncio.timeout(BOUND_S):
        async for ballot in other.ballots("ann"):
            asked.append(ballot.id)
            await other.vote(ballot.id, "yes", by="ann")
            if ballot.id == "fourth":
                break
            await client.propose("4?", options=["yes", "no"], voters=["ann"], decision="fourth")
    assert asked == ["second", "fourth"]
    assert [each.id for each in await client.decisions(only_open=True)] == ["second", "third"]
    with pytest.raises(Refused, match="before"):
        await client.propose("2?", options=["yes", "no"], voters=["ann"], decision="second")
    with pytest.raises(NotFound):
        await client.vote("fifth", "yes", by="ann")


async def test_bytes_that_anybody_could_publish_stop_neither_locks_nor_decisions(client: Client, other: Client) -> None:
    made = await client.propose("ship it?", options=["yes", "no"], voters=["ann"], timeout_s=BOUND_S)
    for subject in ("bus.lease.lock.deploy", f"bus.decision.{made.id}", "bus.barrier.ready"):
        await client.connection.request(subject, b"\xff{", timeout_s=5)
    again = Proposed(
        by="mallory",
        question="!",
        options=("a", "b"),
        voters={"mallory": 1},
        quorum=0.1,
        tie="a",
        deadline_at=utc_now(),
    )
    forged = envelope(PROPOSED, again, id=uuid4().hex, source="/mallory", time=utc_now())
    await client.log.append(client.subjects.decision(made.id), forged)
    await client.leases.bucket.put("lock.deploy", b"\xff")
    await client.leases.bucket.put("line.lock.deploy.x.y", b"\xff")
    async with other.lock("deploy", timeout_s=BOUND_S):
        pass
    assert (await client.vote(made.id, "yes", by="ann")).option == "yes"
    assert await asyncio.gather(*(on.barrier("ready", parties=2) for on in (client, other))) == [1, 1]


async def test_a_renewal_whose_answer_was_lost_is_recognised_as_our_own(client: Client) -> None:
    lease = await client.leases.take(Place("lock", "deploy"), "ann", 2)
    assert lease is not None
    value = msgspec.json.encode(Hold(lease.id, "ann"))
    written = await client.leases.bucket.put("lock.deploy", value, expected=lease.revision, ttl_s=2)
    await client.leases.renew(lease)
    assert lease.revision > written
    await client.leases.release(lease)
