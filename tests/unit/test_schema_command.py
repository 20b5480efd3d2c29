"""`phasebus schema` and `phasebus schema check`, without a bus."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bus.format import messages
from console.main import main
from tests.golden.samples import SCHEMAS

AGENT = """
from msgspec import Struct
from bus import Agent, message, upcaster

@message
class Price(Struct, tag_field="type", tag="price.v2"):
    cents: int

@upcaster("price.v1")
def in_cents(old):
    return {"cents": old["euros"] * 100}

agent = Agent("pricing")

@agent.capability("shop.price")
def price(query: Price) -> list[Price] | None:
    ...
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an agent. What it registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    mine = messages.MESSAGES
    for name in ("_types", "_upcasters", "_decoders"):
        monkeypatch.setattr(mine, name, dict(getattr(mine, name)))
    (tmp_path / "pricing_of_schemas.py").write_text(AGENT)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["schema", *words]) == code
    return capsys.readouterr().out


def test_without_options_it_is_the_document_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == SCHEMAS.read_text()
    line = printed(capsys, "--json")
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(SCHEMAS.read_bytes())


def test_the_document_is_the_same_in_another_process_with_another_seed_of_hashes() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bus", "schema"],
        check=True,
        capture_output=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
        timeout=30,
    )
    assert ended.stdout == SCHEMAS.read_bytes()


def test_one_type_is_a_schema_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    alone = json.loads(printed(capsys, "--type", "run.failed.v1"))
    assert alone["$ref"] == "#/$defs/run.failed.v1"
    assert set(alone["$defs"]) == {"run.failed.v1", "Problem"}


def test_a_type_that_is_not_there_is_said_with_those_it_may_have_been(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--type", "phase.ready"]) == 3
    said = capsys.readouterr().err
    assert "there is no type 'phase.ready'" in said
    assert "next: one of phase.ready.v1" in said


def test_an_agent_s_capabilities_and_its_program_s_messages_are_in_the_document(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(printed(capsys, "--agent", "pricing_of_schemas.py:agent"))
    price = {"$ref": "#/$defs/price.v2"}
    assert found["x-capabilities"] == {
        "shop.price": {
            "agent": "pricing",
            "takes": price,
            "gives": {"anyOf": [{"type": "array", "items": price}, {"type": "null"}]},
        }
    }
    assert found["x-types"]["price.v2"] == {"carried": "value", "schema": price}
    assert found["x-upcasters"] == {"price.v1": "price.v2"}


def test_capabilities_are_channels_of_their_own_in_the_asyncapi_document(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Twice the same file, as if it held two agents: it is loaded once.
    both = ("--agent", "pricing_of_schemas.py:agent") * 2
    described = json.loads(printed(capsys, *both, "--asyncapi"))
    address = "bus.work.shop:price.{level}.{sender}.{row}.{run}.{phase}.{attempt}"
    assert described["channels"]["work_shop.price"]["address"] == address
    assert described["components"]["schemas"]["shop.price.takes"] == {"$ref": "#/components/schemas/price.v2"}


def test_agents_that_differ_in_a_capability_and_names_of_the_bus_are_refused(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "other_of_schemas.py").write_text(
        "from bus import Agent\nagent = Agent('other')\n"
        "@agent.capability('shop.price')\ndef price(query: int) -> int: ...\n"
    )
    both = ("--agent", "pricing_of_schemas.py:agent", "--agent", "other_of_schemas.py:agent")
    assert main(["schema", *both]) == 2
    assert "'pricing' and 'other' have different types for capability 'shop.price'" in capsys.readouterr().err
    (shop / "thief_of_schemas.py").write_text(AGENT.replace("price.v2", "dead.letter.v1").replace("price.v1", "x.v1"))
    assert main(["schema", "--agent", "thief_of_schemas.py:agent"]) == 2
    assert "'dead.letter.v1' is one of the bus's own" in capsys.readouterr().err


def test_the_asyncapi_document_has_the_subjects_of_its_namespace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHASEBUS_NAMESPACE", "lab")
    assert json.loads(printed(capsys, "--asyncapi"))["channels"]["runs"]["address"] == "lab.run.{run}"
    assert main(["schema", "--asyncapi", "--namespace", "a b"]) == 2
    assert main(["schema", "--asyncapi", "--type", "run.failed.v1"]) == 2


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The document of a version in which one thing breaks old data, and another old readers."""
    document = json.loads(SCHEMAS.read_bytes())
    ready = document["$defs"]["phase.ready.v1"]
    ready["properties"]["why"] = {"type": "string"}
    ready["required"].append("why")
    document["$defs"]["Problem"]["properties"]["code"]["enum"].append("new")
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(document))
    return file


def test_a_check_says_every_change_and_whom_it_breaks(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "check", str(SCHEMAS), str(changed), code=1).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["BREAKS", "old readers", "old data"]
    assert "Problem.code" in lines[1]
    assert "can be 'new' now" in lines[1]
    assert lines[1].endswith("dead.letter.v1, phase.attempt_failed.v1, phase.failed.v1 and 3 more")
    assert "phase.ready.v1.why  is new and required" in lines[2]


def test_a_check_for_one_side_fails_for_that_side_only(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compatible = json.loads(changed.read_bytes())
    compatible["$defs"]["phase.ready.v1"]["required"].remove("why")
    changed.write_text(json.dumps(compatible))
    assert printed(capsys, "check", "--for", "old-data", str(SCHEMAS), str(changed))
    assert printed(capsys, "check", "--for", "old-readers", str(SCHEMAS), str(changed), code=1)


def test_changes_are_records_for_a_program(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        json.loads(line) for line in printed(capsys, "check", "--json", str(SCHEMAS), str(changed), code=1).splitlines()
    ]
    assert [record["breaks"] for record in records] == [["old_readers"], ["old_data"]]
    assert records[1]["types"] == ["phase.ready.v1"]


def test_the_same_document_twice_is_no_change_and_one_may_be_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SCHEMAS.read_bytes())))
    assert main(["schema", "check", str(SCHEMAS), "-"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no changes\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a document of `phasebus schema`"),
        ('{"asyncapi": "3.1.0"}', "missing required field `x-types`"),
        ('{"x-types": {"a.v1": {"carried": "data", "schema": {"$ref": "#/$defs/gone"}}}, "x-upcasters": {}, '
         '"x-capabilities": {}, "$defs": {}}', "'gone'"),
        (None, "does not exist"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_a_mistake_of_usage(
    text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text)
    assert main(["schema", "check", str(SCHEMAS), str(file)]) == 2
    assert says in capsys.readouterr().err
    assert main(["schema", "check", "-", "-"]) == 2
