"""AsyncAPI 3.1: the same document as channels, operations and messages, for the tools that read those.

It describes what any process on the bus may send and receive. Subjects are those of `bus.format.subjects`; a test
holds them against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from bus.format.envelope import CONTENT_TYPE
from bus.format.subjects import capability_token
from bus.schema.document import Document, Schema, each_inside, message

Action = Literal["send", "receive"]
_BEAT = "beat.v1"
_HALT = "halt.v1"
_TALLY = "tally.v1"
_BELL = "bell.v1"
_PRESENT = "present.v1"
_PAGE = "roster.v1"
_PACE = "pace.v1"
_ROWS_ASKED, _ROWS_PAGE, _ROWS_CHANGED = "rows.asked.v1", "rows.page.v1", "rows.changed.v1"
_QUESTION = "question"
_YES = "yes"

_PARAMETERS = {
    "topic": "A dotted name.",
    "run": "A run's id: 1 to 63 of a-z, 0-9, _ and -.",
    "key": "A hash of the key: 32 hexadecimal digits.",
    "subscription": "The capability of an agent's subscription, `agent:NAME:on:SUBSCRIPTION`.",
    "lane": "One of 16, chosen by a hash of the key.",
    "capability": "A capability; its dots are written as colons.",
    "level": "The priority of the work: high, normal or low.",
    "sender": "A hash of who it waits on the account of.",
    "row": "The row it stands in, from 0: the further back, the more the sender had waiting.",
    "phase": "A phase's key, and for an item of an `each` phase its index: `analyse` or `analyse:3`.",
    "attempt": "The number of the attempt, from 1.",
    "agent": "An agent's name.",
    "instance": "One live process of an agent.",
    "area": "What operators did something to.",
    "lease": "Which one, in two or three tokens: `lock.deploy`, `leader.indexer`, `permit.gpu.2`.",
    "barrier": "A barrier's name.",
    "decision": "A decision's id.",
    "breaker": "A breaker's name; its dots are written as colons.",
    "limit": "A limit's name; its dots are written as colons.",
    "projection": "A projection's name: `runs`.",
    "provider": "Who runs the model, as a name: `anthropic`.",
}
_HEADERS = {
    "Nats-Msg-Id": "The id in the body: whatever is sent again with it is stored once.",
    "Nats-Expected-Last-Subject-Sequence": "The position of the newest message seen on the subject, 0 for none.",
    "Content-Type": "Always that of the message.",
}


class Channel(msgspec.Struct, frozen=True):
    """A subject below the namespace, what is on it, and who may do what there."""

    name: str
    subject: str
    description: str
    messages: tuple[str, ...]
    is_logged: bool = False


_CHANNELS = (
    Channel("runs", "run.{run}", "What happened to a run and its phases.", ("run.commit.v1",), True),
    Channel(
        "work",
        "work.{capability}.{level}.{sender}.{row}.{run}.{phase}.{attempt}",
        "An attempt waits to be taken. What it is about is in the run's own events.",
        ("phase.work.v1",),
    ),
    Channel(
        "agents",
        "agent.{agent}.{instance}",
        "An instance has come or gone.",
        ("agent.registered.v1", "agent.deregistered.v1", "agent.lost.v1"),
        True,
    ),
    Channel(
        "dead",
        "dead.{capability}",
        "Work that was given up, and messages nobody could read.",
        ("dead.letter.v1", "dead.unreadable.v1"),
        True,
    ),
    Channel(
        "operations",
        "ops.{area}",
        "What operators did to things that are not runs.",
        (
            "ops.letter_redriven.v1",
            "ops.letter_discarded.v1",
            "ops.redrive_begun.v1",
            "ops.redrive_ended.v1",
            "ops.capability_released.v1",
            "ops.payloads_collected.v1",
            "ops.archive_started.v1",
            "ops.archive_sealed.v1",
            "ops.archive_removed.v1",
            "ops.agent_drained.v1",
            "ops.agent_quarantined.v1",
            "ops.agent_released.v1",
        ),
        True,
    ),
    Channel(
        "routes",
        "ops.route.{capability}",
        "How operators share a capability's work out among versions. The newest message is what stands.",
        ("ops.route_set.v1", "ops.route_removed.v1"),
        True,
    ),
    Channel(
        "leases",
        "lease.{lease}",
        "Who got, gave back and lost a lock, a permit or a lead.",
        ("lease.acquired.v1", "lease.released.v1", "lease.lost.v1"),
        True,
    ),
    Channel(
        "barriers",
        "barrier.{barrier}",
        "Who waits at a barrier, and who does not any more.",
        ("barrier.arrived.v1", "barrier.left.v1"),
        True,
    ),
    Channel(
        "decisions",
        "decision.{decision}",
        "A question, the votes, and the outcome.",
        ("decision.proposed.v1", "decision.voted.v1", "decision.decided.v1"),
        True,
    ),
    Channel(
        "breakers",
        "breaker.{breaker}",
        "A breaker has opened, lets a probe through, or has closed. The newest message is its state.",
        ("breaker.opened.v1", "breaker.probing.v1", "breaker.closed.v1"),
        True,
    ),
    Channel(
        "limits",
        "limit.{limit}",
        "A service has asked all to hold, or a budget is spent.",
        ("limit.held.v1", "limit.spent.v1"),
        True,
    ),
    Channel(
        "calls",
        "llm.{provider}",
        "A language model was called: what it cost in money, tokens and time, and for which run, phase and agent.",
        ("llm.called.v1",),
        True,
    ),
    Channel(
        "tallies",
        "tally.{breaker}",
        "How many calls of a process went well and failed, while some do. Not stored.",
        (_TALLY,),
    ),
    Channel(
        "parts",
        "part.{run}.{phase}",
        "Partial results of a phase's attempts, in order.",
        ("phase.parts.v1",),
        True,
    ),
    Channel(
        "lines",
        "line.{capability}.{lane}",
        "Work with a key, in order: what begins it, before its run has that; and which keys may go on.",
        ("task.placed.v1", "task.resumed.v1"),
        True,
    ),
    Channel(
        "parked",
        "line.{capability}.parked.{key}",
        "What waits behind work of the same key that died; the key is hashed.",
        ("task.parked.v1", "task.unparked.v1"),
        True,
    ),
    Channel(
        "mail",
        "mail.{subscription}",
        "A fact that a subscription could not read, once more for that subscription alone.",
        ("topic.again.v1",),
        True,
    ),
    Channel("topics", "topic.{topic}", "Facts, for whoever subscribes.", ("topic.published.v1",), True),
    Channel("beats", "beat.{instance}", "An instance lives. Not stored.", (_BEAT,)),
    Channel(
        "bells",
        "bell.{capability}",
        "Work waits in a queue where instances may not be asking. Not stored.",
        (_BELL,),
    ),
    Channel(
        "changes",
        "changed.{projection}",
        "Rows of a projection have changed: a reason to ask for them. Not stored.",
        (_ROWS_CHANGED,),
    ),
    Channel("halts", "halt.{instance}", "An instance need not go on with some attempts. Not stored.", (_HALT,)),
)
# Who is handed work directly answers with one of these.
_WORDS = ("task.busy.v1", "task.recorded.v1", "task.answered.v1", "task.enclosed.v1", "task.failed.v1")
_HANDOVERS = (
    Channel(
        "handovers",
        "hand.{capability}",
        "One of the instances with the capability is handed work, or a question that is not stored.",
        ("task.handed.v1", "task.asked.v1"),
    ),
    Channel(
        "spares",
        "spare.{capability}",
        "The same, when no other instance is there: one that stands by, or is not well.",
        ("task.handed.v1", "task.asked.v1"),
    ),
)
_QUESTIONS = (
    Channel("everyone", "ping", "Every instance answers.", (_QUESTION,)),
    Channel(
        "instance",
        "ping.{instance}",
        "This instance answers, if it lives; and is told how often to beat while it holds nothing.",
        (_QUESTION, _PACE),
    ),
    Channel("roster", "roster", "The leader says who is there, if they are many.", (_QUESTION,)),
    Channel("offers", "who.{capability}", "Every instance that takes such work answers.", (_QUESTION,)),
    Channel(
        "rows",
        "rows.{projection}",
        "One of those who keep the projection answers with what has changed since a mark.",
        (_ROWS_ASKED,),
    ),
    Channel("orderly", "orders.{capability}", "Every instance that takes such work with a key answers.", (_QUESTION,)),
    Channel(
        "withdrawn",
        "withdrawn.{run}",
        "Who works on a question that is not stored hears that nobody waits for the answer any more.",
        (_QUESTION,),
    ),
)
_ANSWERS = {
    "everyone": _PRESENT,
    "instance": _BEAT,
    "roster": _PAGE,
    "offers": _YES,
    "orderly": _YES,
    "rows": _ROWS_PAGE,
    "withdrawn": _YES,
}


def asyncapi(document: Document, namespace: str, version: str) -> dict[str, Any]:
    """The AsyncAPI document of a namespace. `version` is that of the program."""
    live = [_live(channel) for channel in _CHANNELS if channel.is_logged]
    work = [
        Channel(
            f"work_{name}",
            f"work.{capability_token(name)}.{{level}}.{{sender}}.{{row}}.{{run}}.{{phase}}.{{attempt}}",
            f"Work for {name!r} of agent {each.agent!r}, whose input and output are the schemas "
            f"`{name}.takes` and `{name}.gives`; they are in the run's events.",
            ("phase.work.v1",),
        )
        for name, each in document.capabilities.items()
    ]
    channels = {
        **{each.name: _channel(each, f"{namespace}.") for each in (*_CHANNELS, *_QUESTIONS, *_HANDOVERS, *work)},
        **{each.name: _channel(each, f"live.{namespace}.") for each in live},
        "answers": {
            "address": None,
            "description": "Whoever asked.",
            "messages": {each: _to("components", each) for each in (*_ANSWERS.values(), *_WORDS)},
        },
    }
    operations: dict[str, Any] = {}
    for each in _CHANNELS:
        operations |= {f"{action}_{each.name}": _operation(each, action) for action in ("send", "receive")}
    for each in _QUESTIONS:
        operations |= {f"ask_{each.name}": _question(each, "send"), f"answer_{each.name}": _question(each, "receive")}
    for each in _HANDOVERS:
        operations |= {
            f"ask_{each.name}": _question(each, "send", _WORDS),
            f"answer_{each.name}": _question(each, "receive", _WORDS),
        }
    operations |= {f"receive_{each.name}": _operation(each, "receive") for each in (*live, *work)}
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": f"phasebus, namespace {namespace}",
            "version": version,
            "description": "Agents, runs and their events on NATS JetStream: one ordered log, and everything is in it.",
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"nats": {"host": "localhost:4222", "protocol": "nats", "description": "NATS with JetStream."}},
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": _schemas(document),
            "messages": dict(_messages(document)),
            "correlationIds": {
                "correlation": {
                    "description": "The same in everything that belongs together: a run, and what came of it.",
                    "location": "$message.payload#/correlationid",
                }
            },
        },
    }


def _live(channel: Channel) -> Channel:
    description = "What the server has stored, published by it once more: " + channel.description
    return msgspec.structs.replace(channel, name=f"live_{channel.name}", description=description)


def _channel(channel: Channel, prefix: str) -> dict[str, Any]:
    parameters = {name: {"description": says} for name, says in _PARAMETERS.items() if f"{{{name}}}" in channel.subject}
    return {
        "address": prefix + channel.subject,
        "description": channel.description,
        "messages": {name: _to("components", name) for name in channel.messages},
        **({"parameters": parameters} if parameters else {}),
    }


def _operation(channel: Channel, action: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "messages": [_to(channel.name, name) for name in channel.messages],
    }


def _question(channel: Channel, action: Action, words: Sequence[str] = ()) -> dict[str, Any]:
    said = words or (_ANSWERS[channel.name],)
    reply = {"channel": {"$ref": "#/channels/answers"}, "messages": [_to("answers", each) for each in said]}
    return {**_operation(channel, action), "reply": reply}


def _to(place: str, name: str) -> dict[str, str]:
    """A reference to a message, in the components or in a channel."""
    return {"$ref": f"#/components/messages/{name}" if place == "components" else f"#/channels/{place}/messages/{name}"}


def _messages(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    logged = {name for channel in _CHANNELS if channel.is_logged for name in channel.messages}
    headers = {name: {"type": "string", "description": says} for name, says in _HEADERS.items()}
    envelope, *packed = (document.types[f"envelope{form}.v1"].schema for form in ("", ".compressed", ".referring"))
    for wire, each in document.types.items():
        if each.carried == "data":
            yield (
                wire,
                {
                    "name": wire,
                    "contentType": CONTENT_TYPE,
                    "correlationId": {"$ref": "#/components/correlationIds/correlation"},
                    "payload": _draft_07(_in_all_forms(wire, each.schema, envelope, packed if wire in logged else [])),
                    **({"headers": {"type": "object", "properties": headers}} if wire in logged else {}),
                },
            )
    words = (_BEAT, _BELL, _HALT, _PRESENT, _PAGE, _PACE, _TALLY, *_WORDS)
    for wire in (*words, _ROWS_ASKED, _ROWS_PAGE, _ROWS_CHANGED):
        payload = _draft_07(document.types[wire].schema)
        yield wire, {"name": wire, "contentType": "application/json", "payload": payload}
    yield _QUESTION, {"name": _QUESTION, "summary": "An empty message; whoever is meant answers."}
    yield _YES, {"name": _YES, "summary": "An empty message, too: here is somebody."}


def _in_all_forms(wire: str, schema: Schema, envelope: Schema, packed: list[Schema]) -> Schema:
    inline = message(wire, schema, envelope)
    others = [{"allOf": [form, {"properties": {"type": {"const": wire}}}]} for form in packed]
    return {"anyOf": [inline, *others]} if others else inline


def _schemas(document: Document) -> dict[str, Schema]:
    schemas = dict(document.definitions)
    for name, each in document.capabilities.items():
        schemas |= {f"{name}.takes": each.takes, f"{name}.gives": each.gives}
    return {name: _draft_07(schema) for name, schema in sorted(schemas.items())}


def _draft_07(schema: Schema) -> Schema:
    """The same in the dialect of AsyncAPI, which has another word for items by place, and other places for all."""
    old = each_inside(schema, _draft_07)
    if "$ref" in old:
        old["$ref"] = old["$ref"].replace("#/$defs/", "#/components/schemas/")
    if "prefixItems" in old:
        rest = old.pop("items", None)
        old["items"] = old.pop("prefixItems")
        if rest is not None:
            old["additionalItems"] = rest
    return old
