"""Agents as services of the NATS protocol (ADR-32): asked as its tools ask, by raw requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bus import Agent, WorkFailed, connect
from bus.broker.server import Server
from bus.client import Client
from tests.harness import serving, until


def pricing(version: str = "1.2") -> Agent:
    agent = Agent("pricing", version=version, tags=["eu"])

    @agent.capability("price.total", concurrency=2, tags=["slow"])
    async def total(query: dict[str, int]) -> int:
        return sum(query.values())

    @agent.capability("price.broken")
    async def broken(query: int) -> None:
        raise PermissionError(f"not allowed to see {query}")

    return agent


async def asked(client: Client, subject: str) -> list[Any]:
    answers = client.connection.request_many(subject, timeout_s=0.3)
    return [json.loads(message.data) async for message in answers]


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_services_answer_to_all_to_their_name_and_to_their_id(server: Server, verb: str) -> None:
    async with connect(server.url) as client, serving(server, pricing(), pricing(), Agent("empty")):
        everyone = await asked(client, f"$SRV.{verb}")
        assert sorted(each["name"] for each in everyone) == ["empty", "pricing", "pricing"]
        named = await asked(client, f"$SRV.{verb}.pricing")
        assert {each["id"] for each in named} == {each["id"] for each in everyone if each["name"] == "pricing"}
        (one,) = await asked(client, f"$SRV.{verb}.pricing.{named[0]['id']}")
        assert one["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
        assert (one["version"], one["metadata"]["tags"]) == ("1.2.0", "eu")
        assert one["id"] in {each.instance for each in await client.agents()}


async def test_endpoints_are_capabilities_with_their_schemas(server: Server) -> None:
    async with connect(server.url) as client, serving(server, pricing()):
        (info,) = await asked(client, "$SRV.INFO.pricing")
    endpoint = info["endpoints"][0]
    assert (endpoint["name"], endpoint["subject"], endpoint["queue_group"]) == (
        "price_total",
        "bus.work.price:total.>",
        "price:total",
    )
    metadata = endpoint["metadata"]
    assert (metadata["capability"], metadata["concurrency"], metadata["tags"]) == ("price.total", "2", "slow")
    assert json.loads(metadata["gives"]) == {"type": "integer"}
    assert all(isinstance(value, str) for value in metadata.values())


async def test_stats_count_what_was_done_and_what_failed(server: Server) -> None:
    async with connect(server.url) as client, serving(server, pricing()):
        (before,) = await asked(client, "$SRV.STATS.pricing")
        for number in range(3):
            await client.ask("price.total", {"a": number})
        with pytest.raises(WorkFailed):
            await client.ask("price.broken", 7)
        (after,) = await asked(client, "$SRV.STATS.pricing")
    total, broken = after["endpoints"]
    assert [each["num_requests"] for each in before["endpoints"]] == [0, 0]
    assert (total["num_requests"], total["num_errors"], total["last_error"]) == (3, 0, "")
    assert (broken["num_requests"], broken["num_errors"]) == (1, 1)
    assert "not allowed to see 7" in broken["last_error"]
    assert total["processing_time"] >= total["average_processing_time"] > 0
    assert after["started"] == before["started"] and after["started"].endswith("Z")


async def test_who_has_ended_does_not_answer(server: Server) -> None:
    async with connect(server.url) as client:
        async with serving(server, pricing()):
            pass
        await until(lambda: _nobody(client))


async def _nobody(client: Client) -> bool:
    from bus.errors import NoResponders

    try:
        await client.connection.request("$SRV.PING", timeout_s=1)
    except NoResponders:
        return True
    return False
