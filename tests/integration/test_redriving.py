"""Dead letters on a real server: chosen, grouped, redriven one by one and many at once, edited, discarded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from bus import Agent, Client, Phase, Plan, Refused, Reject, SettingsError, connect, ref, serving
from bus.archives.outgoing import select
from bus.archives.retention import Policy
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import NotFound
from bus.format.envelope import envelope
from bus.letters.campaign import Outcome
from bus.letters.letters import Letter
from bus.letters.verdicts import Terms
from bus.letters.wanted import Wanted
from bus.problem import Problem
from bus.rules.dead import LETTER, DeadLetter, Unreadable
from bus.rules.events import PhaseInputReplaced, RunRedriven
from tests.harness import BOUND_S, supervised, until

EACH = Plan("many", phases=[Phase("each", "shop.buy", each=ref("input"))])


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


class Shop:
    """An agent whose `shop.buy` knows only what is in `stock`; `bought` is what it did, each time it did it."""

    def __init__(self) -> None:
        self.agent = Agent("shop")
        self.stock: set[str] = set()
        self.bought: list[str] = []

        @self.agent.capability("shop.buy", concurrency=4)
        async def buy(sku: str) -> str:
            if sku not in self.stock:
                raise Reject(f"unknown sku {sku!r}")
            self.bought.append(sku)
            return sku


async def letters(client: Client, **wanted: Any) -> list[Letter]:
    return [each async for each in client.dead_letters(**wanted)]


async def standings(client: Client) -> list[str]:
    return [each.standing for each in await letters(client)]


async def dead_ones(client: Client, *skus: str) -> list[int]:
    """Send work that is given up, one after the other; the numbers of its letters."""
    for sku in skus:
        receipt = await client.send("shop.buy", sku)
        assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "failed"
    return [each.number for each in await letters(client, status=["open"])]


async def redriven(client: Client, wanted: Wanted, **more: Any) -> list[Outcome]:
    async with aclosing(client.redrive_letters(wanted, by="ann", **more)) as outcomes:
        return [each async for each in outcomes]


async def test_a_letter_tells_where_its_work_comes_from(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        await dead_ones(client, "a")
    [found] = await letters(client)
    letter = found.letter
    assert isinstance(letter, DeadLetter)
    commits = [commit async for commit in client.ledger.commits(letter.run)]
    # One commit began the run and made its work ready; the last one gave it up.
    assert (letter.began, letter.origin) == (commits[0].position, commits[0].position)
    assert (found.causation, found.correlation) == (commits[-1].id, letter.run)
    assert (letter.attempts[0].agent, letter.cause, found.at) == ("shop", "error", commits[-1].at)


async def test_letters_are_chosen_by_what_they_say_and_grouped_by_what_they_share(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        first, second = await dead_ones(client, "A-7", "B-12")
        await client.connection.request("bus.work.shop:buy.forged.work.1", b"\xff", timeout_s=5)
        await until(lambda: _count(client, 3))
    one, two, raw = await letters(client)
    assert one.cause == two.cause and one.cause.title == "unknown sku '…'"
    assert raw.cause != one.cause
    assert isinstance(one.letter, DeadLetter)
    assert [each.number for each in await letters(client, group=one.cause.key)] == [first, second]
    assert [each.number for each in await letters(client, run=one.letter.run)] == [first]
    assert [each.number for each in await letters(client, cause="unreadable")] == [raw.number]
    assert [each.number for each in await letters(client, code="rejected", error_class="permanent")] == [first, second]
    assert len(await letters(client, agent="shop", capability="shop.buy", plan="task", since=one.at)) == 2
    for nothing in ({"until": one.at}, {"status": ["resolved"]}, {"capability": "shop.sell"}, {"agent": "other"}):
        assert not await letters(client, **nothing)
    with pytest.raises(SettingsError, match="status is a list of"):
        await letters(client, status=["done"])


async def test_whoever_redrives_first_does_it_and_all_others_are_refused(server: Server, client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        [number] = await dead_ones(client, "a")
        shop.stock.add("a")

        async def once() -> bool:
            async with connect(server.url) as other:
                try:
                    await other.redrive_letter(number, by="ann")
                except Refused:
                    return False
                return True

        assert sum(await asyncio.gather(*(once() for _ in range(8)))) == 1
        await until(lambda: _stand(client, ["resolved"]))
    assert shop.bought == ["a"]


async def test_work_that_dies_again_is_another_letter_that_names_the_first(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        [number] = await dead_ones(client, "a")
        await client.redrive_letter(number, by="ann")
        await until(lambda: _stand(client, ["died_again", "open"]))
        first, second = await letters(client)
        assert isinstance(second.letter, DeadLetter)
        assert second.letter.earlier == first.id
        with pytest.raises(Refused, match="died again: a newer one"):
            await client.redrive_letter(number, by="ann")
        shop.stock.add("a")
        await client.redrive_letter(second.number, by="ann")
        await until(lambda: _stand(client, ["resolved", "resolved"]))


async def test_an_edit_says_who_and_why_and_keeps_what_was(client: Client) -> None:
    shop = Shop()
    shop.stock.add("a")
    async with serving(client, shop.agent):
        [number] = await dead_ones(client, "typo")
        await client.redrive_letter(number, by="ann", reason="a typo", payload="a")
        await until(lambda: _stand(client, ["resolved"]))
    [found] = await letters(client)
    assert isinstance(found.letter, DeadLetter)
    assert msgspec.json.decode(found.letter.payload) == "typo"
    events = [event async for commit in client.ledger.commits(found.letter.run) for event in commit.events]
    [replaced] = [event for event in events if isinstance(event, PhaseInputReplaced)]
    assert (replaced.by, replaced.reason, bytes(replaced.input)) == ("ann", "a typo", b'"a"')
    [redriven] = [event for event in events if isinstance(event, RunRedriven)]
    assert (redriven.letter, redriven.by, redriven.reason) == (found.id, "ann", "a typo")
    assert shop.bought == ["a"]


async def test_what_is_discarded_is_not_dead_any_more_and_can_still_be_redriven(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        [number] = await dead_ones(client, "a")
        await client.discard_letter(number, by="ann", reason="old")
        assert await standings(client) == ["discarded"]
        with pytest.raises(Refused, match="is discarded"):
            await client.discard_letter(number, by="ann")
        selection = await select(client.log, Policy.of(["ops=0s"]), utc_now())
        assert selection.tallies["ops"].stays == {"its dead letter is there": 1}
        shop.stock.add("a")
        await client.redrive_letter(number, by="ben")
        await until(lambda: _stand(client, ["resolved"]))
    with pytest.raises(NotFound, match="no dead letter 1"):
        await client.discard_letter(1, by="ann")


async def test_items_of_one_phase_are_redriven_one_by_one(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        receipt = await client.start(EACH, ["a", "b", "c", "d"])
        await client.result(receipt.run, timeout_s=BOUND_S)
        shop.stock |= {"a", "b", "c", "d"}
        outcomes = await redriven(client, Wanted(), terms=Terms(most=3))
        assert (outcomes[-1].ending, outcomes[-1].redriven) == ("capped", 3)
        await until(lambda: _stand(client, ["resolved"] * 3 + ["open"]))
        assert not (await client.runs.load(receipt.run)).is_open
        outcomes = await redriven(client, Wanted())
        assert (outcomes[-1].ending, outcomes[-1].redriven) == ("done", 1)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    assert (state.status, client.output(state, "each")) == ("completed", ["a", "b", "c", "d"])
    assert sorted(shop.bought) == ["a", "b", "c", "d"]


async def test_the_first_is_tried_alone_and_the_others_only_go_if_it_succeeds(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        await dead_ones(client, "a", "b", "c")
        outcomes = await redriven(client, Wanted(capability="shop.buy"), terms=Terms(try_one=True))
        assert (outcomes[-1].ending, outcomes[-1].redriven) == ("died_again", 1)
        assert await standings(client) == ["died_again", "open", "open", "open"]
        shop.stock |= {"a", "b", "c"}
        outcomes = await redriven(client, Wanted(capability="shop.buy"), terms=Terms(try_one=True))
        assert (outcomes[-1].ending, outcomes[-1].redriven) == ("done", 3)
        await until(lambda: _stand(client, ["resolved"] * 4))
    assert shop.bought[0] == "b" and sorted(shop.bought) == ["a", "b", "c"]


async def test_a_transform_mends_what_it_can_and_the_rest_stays(client: Client) -> None:
    shop = Shop()
    shop.stock |= {"A", "B"}

    def upper(sku: str) -> str:
        if sku == "c":
            raise KeyError(sku)
        return sku.upper()

    async with serving(client, shop.agent):
        await dead_ones(client, "a", "b", "c")
        outcomes = await redriven(client, Wanted(), terms=Terms(transform="mend:upper"), transform=upper)
        assert [each.refusal for each in outcomes] == ["", "", "the transform raised KeyError: 'c'", ""]
        assert (outcomes[-1].redriven, outcomes[-1].refused) == (2, 1)
        await until(lambda: _stand(client, ["resolved", "resolved", "open"]))
    assert sorted(shop.bought) == ["A", "B"]
    [found, _, _] = await letters(client)
    assert isinstance(found.letter, DeadLetter)
    events = [event async for commit in client.ledger.commits(found.letter.run) for event in commit.events]
    assert [event.transform for event in events if isinstance(event, PhaseInputReplaced)] == ["mend:upper"]


async def test_an_interrupted_redrive_goes_on_with_what_is_left_on_the_same_terms(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        numbers = await dead_ones(client, *"abcde")
        shop.stock |= set("abcde")
        async with aclosing(client.redrive_letters(Wanted(), by="ann", terms=Terms(most=4))) as outcomes:
            first = await anext(outcomes)
        assert first.number == numbers[0]
        resumed = [each async for each in client.resume_redrive(first.operation, by="ben")]
        assert [each.number for each in resumed[:-1]] == numbers[1:4]
        assert (resumed[-1].ending, resumed[-1].redriven) == ("capped", 4)
        with pytest.raises(Refused, match="is over: 4 were redriven"):
            [each async for each in client.resume_redrive(first.operation, by="ben")]
        with pytest.raises(NotFound, match="no redrive 'nothing'"):
            [each async for each in client.resume_redrive("nothing", by="ben")]
        await until(lambda: _stand(client, ["resolved"] * 4 + ["open"]))
    assert sorted(shop.bought) == ["a", "b", "c", "d"]


async def test_letters_that_come_later_are_not_in_a_redrive(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        await dead_ones(client, "a", "b")
        # Each dies again; a redrive that followed its own deaths would never end.
        outcomes = await redriven(client, Wanted())
        assert outcomes[-1].redriven == 2
        await until(lambda: _stand(client, ["died_again", "died_again", "open", "open"]))


async def test_bytes_are_sent_again_once_and_those_that_stay_unreadable_die_again(client: Client) -> None:
    shop = Shop()
    async with serving(client, shop.agent):
        headers = {"A": "b"}
        await client.connection.request("bus.work.shop:buy.forged.work.1", b"\xff", headers=headers, timeout_s=5)
        await until(lambda: _count(client, 1))
        [found] = await letters(client)
        assert isinstance(found.letter, Unreadable)
        assert (found.letter.headers, found.letter.agent, found.letter.origin) == (headers, "shop", 1)
        with pytest.raises(Refused, match="no input to replace"):
            await client.redrive_letter(found.number, by="ann", payload=1)
        await client.redrive_letter(found.number, by="ann")
        await until(lambda: _stand(client, ["died_again", "open"]))
        with pytest.raises(Refused, match="died again"):
            await client.redrive_letter(found.number, by="ann")


async def test_a_capability_that_pauses_takes_nothing_after_a_death_until_it_is_released(
    server: Server, client: Client
) -> None:
    agent, taken = Agent("careful"), list[int]()

    @agent.capability("careful.do", on_dead="pause")
    async def do(number: int) -> int:
        taken.append(number)
        if number == 1:
            raise Reject("never")
        return number

    async def paused(count: int) -> bool:
        return [each.paused for each in await client.agents()] == [["careful.do"]] * count

    async with serving(client, agent):
        for number in range(5):
            await client.send("careful.do", number)
        await until(lambda: paused(1))
        # One that starts later knows it too, and so does one in another process.
        async with connect(server.url) as other, serving(other, agent):
            await until(lambda: paused(2))
            await asyncio.sleep(0.3)
            assert taken == [0, 1]
            await client.release("careful.do", by="ann", reason="looked at it")
            await until(lambda: len(taken) == 5)
        assert sorted(taken) == [0, 1, 2, 3, 4]
    # What was released stays so.
    async with serving(client, agent):
        await client.send("careful.do", 7)
        await until(lambda: 7 in taken)


async def test_a_capability_that_pauses_stays_so_for_who_starts_after_its_dead_work_was_redriven(
    client: Client,
) -> None:
    agent, taken = Agent("careful"), list[int]()

    @agent.capability("careful.do", on_dead="pause")
    async def do(number: int) -> int:
        taken.append(number)
        raise Reject("never")

    async def paused() -> bool:
        return [each.paused for each in await client.agents()] == [["careful.do"]]

    async with serving(client, agent):
        receipt = await client.send("careful.do", 1)
        await client.result(receipt.run, timeout_s=BOUND_S)
    await client.redrive(receipt.run, by="ann")
    async with serving(client, agent):
        await until(paused)
        await asyncio.sleep(0.3)
        assert taken == [1]
        await client.release("careful.do", by="ann")
        await until(lambda: taken == [1, 1])


async def test_a_run_that_is_cancelled_is_not_dead(client: Client) -> None:
    receipt = await client.send("nobody", 1)
    await client.cancel(receipt.run, by="ann")
    assert not await letters(client)


async def test_a_letter_is_not_lost_while_nobody_supervises(server: Server, client: Client) -> None:
    plan = Plan("late", phases=[Phase("a", "nobody", queue_timeout_s=0.2)])
    receipt = await client.start(plan)
    await asyncio.sleep(0.4)
    assert not await letters(client)
    async with supervised(server):
        assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "failed"
    [found] = await letters(client)
    assert isinstance(found.letter, DeadLetter)
    assert (found.letter.cause, found.letter.attempts, found.letter.origin) == ("unclaimed", [], receipt.position)


async def _count(client: Client, count: int) -> bool:
    return len(await letters(client)) == count


async def _stand(client: Client, wanted: list[str]) -> bool:
    return await standings(client) == wanted


async def test_a_letter_without_its_run_stays_open_and_can_not_be_redriven(client: Client) -> None:
    letter = DeadLetter(
        capability="shop.buy",
        run="elsewhere",
        plan="p",
        phase="a",
        problem=Problem("rejected", "no", "permanent"),
        payload=msgspec.Raw(b"1"),
    )
    record = envelope(LETTER, letter, id="1", source="/test", time=utc_now())
    number = await client.log.append(client.subjects.dead("shop.buy"), record)
    assert await standings(client) == ["open"]
    with pytest.raises(Refused, match="there is no run 'elsewhere' in this log"):
        await client.redrive_letter(number, by="ann")
    assert [each.refusal for each in await redriven(client, Wanted())] == [
        "there is no run 'elsewhere' in this log",
        "",
    ]
