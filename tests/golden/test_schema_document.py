"""The schemas of what is on the wire, pinned; and held against the bytes."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bus.format.subjects import Subjects, Work, live_copy, subscription
from bus.runs.lane import token_of
from bus.schema import document, vocabulary
from bus.schema.asyncapi import asyncapi
from bus.schema.compatibility import changes
from bus.schema.document import Document
from tests.golden.samples import EVENTS, FOLDER, MESSAGES, SCHEMAS, schemas

ROOT = Path(__file__).parents[2]
WRITE = "`python -m tests.golden.samples` writes it anew"


@pytest.fixture(scope="module")
def now() -> Document:
    return document.decode(schemas())


def test_no_type_changes_in_a_way_that_breaks_old_logs_or_old_readers(now: Document) -> None:
    breaking = [change for change in changes(document.decode(SCHEMAS.read_bytes()), now) if change.breaks]
    assert not breaking, (
        f"give the type its next version, and an upcaster from the old one; or, if nothing written before has to be "
        f"read, write the decision into the changelog, and {WRITE}"
    )


def test_the_schemas_are_those_that_were_committed() -> None:
    assert schemas() == SCHEMAS.read_bytes(), f"types have changed without breaking a reader: {WRITE}"


def test_the_document_is_the_same_after_reading_and_writing_it() -> None:
    assert document.encode(document.decode(SCHEMAS.read_bytes())) == SCHEMAS.read_bytes()


def test_whatever_the_sources_name_as_a_type_is_in_the_vocabulary(now: Document) -> None:
    wire = re.compile(r"[a-z_.]+\.v[1-9]\d*")
    found = {
        node.value
        for package in ("bus", "agents", "projections", "console")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and wire.fullmatch(node.value)
    }
    # Such as an example in a docstring names.
    assert found - {"price.v1"} == set(now.types)


def test_every_type_has_golden_bytes_and_all_golden_bytes_have_a_type(now: Document) -> None:
    named = {"commit": "run.commit.v1", "beat": "beat.v1", "halt": "halt.v1", "bell": "bell.v1", "tally": "tally.v1"}
    named["standing"] = vocabulary.STANDING
    envelopes = {vocabulary.ENVELOPE, vocabulary.COMPRESSED, vocabulary.REFERRING}
    assert {named.get(name, name) for name in MESSAGES} | envelopes == set(now.types)


def test_the_document_is_json_schema(now: Document) -> None:
    Draft202012Validator.check_schema(json.loads(schemas()))


@pytest.mark.parametrize("name", MESSAGES)
def test_the_golden_bytes_of_a_message_have_its_schema(name: str, now: Document) -> None:
    body = json.loads((FOLDER / f"{name}.json").read_bytes())
    whole = json.loads(schemas())
    Draft202012Validator(whole).validate(body)
    if "data" not in body:
        return
    payload = body["data"]
    Draft202012Validator(document.part(now, body["type"])).validate(payload)
    for event in payload["events"] if name in EVENTS else []:
        Draft202012Validator(document.part(now, name)).validate(event)


@pytest.mark.parametrize(
    ("name", "form"),
    [("compressed", "compressed"), ("object", "referring"), ("object-compressed", "referring")],
)
def test_large_messages_have_the_schema_of_their_form(name: str, form: str, now: Document) -> None:
    body = json.loads((FOLDER / "payload" / f"{name}.json").read_bytes())
    fits = [each for each in ("compressed", "referring") if is_valid(document.part(now, f"envelope.{each}.v1"), body)]
    assert fits == [form]
    assert is_valid(json.loads(schemas()), body)


def is_valid(schema: dict[str, Any], body: Any) -> bool:
    return bool(Draft202012Validator(schema).is_valid(body))


def commit(event: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((FOLDER / "phase.ready.v1.json").read_bytes())
    body["data"]["events"] = [event]
    return body


@pytest.mark.parametrize(
    ("event", "fits"),
    [
        ({"type": "phase.ready.v1", "phase": "a", "attempt": 1, "mood": "good"}, True),
        ({"type": "phase.ready.v1", "phase": "a"}, False),
        ({"type": "phase.ready.v1", "phase": "a", "attempt": "1"}, False),
        ({"type": "phase.dreamt.v9", "of": None}, True),
        ({"of": None}, False),
        (None, False),
    ],
)
def test_events_of_other_versions_fit_and_malformed_ones_do_not(event: Any, fits: bool) -> None:
    assert Draft202012Validator(json.loads(schemas())).is_valid(commit(event)) is fits


def test_one_type_s_schema_has_what_it_refers_to_and_nothing_else(now: Document) -> None:
    alone = document.part(now, "run.failed.v1")
    assert set(alone["$defs"]) == {"run.failed.v1", "Problem"}
    with pytest.raises(KeyError):
        document.part(now, "run.failed.v2")


@pytest.fixture(scope="module")
def described(now: Document) -> dict[str, Any]:
    return asyncapi(now, "lab", "1.2.3")


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        inside = [reference for each in value.values() for reference in references(each)]
        return [value["$ref"], *inside] if isinstance(value.get("$ref"), str) else inside
    return [reference for each in value for reference in references(each)] if isinstance(value, list) else []


def test_every_reference_of_the_asyncapi_document_leads_somewhere(described: dict[str, Any]) -> None:
    assert len(references(described)) > 100
    for reference in references(described):
        place: Any = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_an_operation_s_messages_are_those_of_its_channel(described: dict[str, Any]) -> None:
    for operation in described["operations"].values():
        channel = operation["channel"]["$ref"]
        assert operation["action"] in ("send", "receive")
        assert all(each["$ref"].startswith(f"{channel}/messages/") for each in operation["messages"])


def test_the_channels_are_the_subjects_of_the_namespace(described: dict[str, Any]) -> None:
    subjects = Subjects("lab")
    values = {"run": "r-1", "capability": "git:collect", "phase": "-8:2", "attempt": "3", "agent": "git"}
    values |= {"instance": "git-1", "area": "dead", "lease": "permit.gpu.2", "barrier": "ready", "decision": "d-1"}
    values |= {"breaker": "git:collect", "limit": "openai", "provider": "openai"}
    values |= {"topic": "orders.packed", "projection": "runs"}
    values |= {"level": "normal", "sender": "0", "row": "0"}
    values |= {"lane": "3", "key": token_of("customer-7"), "subscription": "agent:git:on:pushes"}
    found = {
        name: channel["address"].format_map(values)
        for name, channel in described["channels"].items()
        if channel["address"] is not None
    }
    stored = {
        "runs": subjects.run("r-1"),
        "agents": subjects.agent("git", "git-1"),
        "dead": subjects.dead("git.collect"),
        "operations": subjects.ops("dead"),
        "routes": subjects.route("git.collect"),
        "leases": subjects.lease("permit.gpu.2"),
        "barriers": subjects.barrier("ready"),
        "decisions": subjects.decision("d-1"),
        "breakers": subjects.breaker("git.collect"),
        "limits": subjects.limit("openai"),
        "calls": subjects.llm("openai"),
        "parts": subjects.part("r-1", "-8", 2),
        "lines": subjects.line("git.collect", 3),
        "parked": subjects.parked("git.collect", token_of("customer-7")),
        "mail": subjects.again(subscription("git", "pushes")),
        "topics": subjects.topic("orders.packed"),
    }
    assert found == {
        **stored,
        **{f"live_{name}": live_copy(subject) for name, subject in stored.items()},
        "work": subjects.work(Work("git.collect", "r-1", "-8", 2, 3)),
        "tallies": subjects.tally("git.collect"),
        "beats": subjects.beat("git-1"),
        "changes": subjects.changed("runs"),
        "rows": subjects.rows("runs"),
        "halts": subjects.halt("git-1"),
        "bells": subjects.bell("git.collect"),
        "everyone": subjects.everyone,
        "instance": subjects.ping("git-1"),
        "roster": subjects.roster,
        "offers": subjects.who("git.collect"),
        "orderly": subjects.who("git.collect", ordered=True),
        "handovers": subjects.hand("git.collect"),
        "spares": subjects.hand("git.collect", spare=True),
        "withdrawn": subjects.withdrawn("r-1"),
    }
    for channel in described["channels"].values():
        named = set(re.findall(r"{(\w+)}", channel["address"] or ""))
        assert named == set(channel.get("parameters", {}))


def test_asyncapi_messages_are_cloudevents_that_say_what_they_belong_to(described: dict[str, Any]) -> None:
    commit = described["components"]["messages"]["run.commit.v1"]
    assert commit["contentType"] == "application/cloudevents+json"
    place = described["components"]["correlationIds"]["correlation"]["location"]
    assert place == "$message.payload#/correlationid"
    assert "correlationid" in described["components"]["schemas"]["envelope.v1"]["properties"]
    assert described["components"]["schemas"]["Held"]["items"][0] == {"type": "string"}


def test_documents_do_not_depend_on_the_order_in_which_types_are_given() -> None:
    entries = vocabulary.vocabulary()
    turned = dict(reversed(entries.items()))
    one, other = (document.encode(document.document(each, {}, {})) for each in (entries, turned))
    assert one == other
