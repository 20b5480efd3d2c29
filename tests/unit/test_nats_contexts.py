from __future__ import annotations

import json
from pathlib import Path

import pytest

from bus.broker.natscontext import NatsContext, read_context
from bus.errors import SettingsError


@pytest.fixture
def contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which context files are looked for."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    return folder


def test_a_context_is_read_by_its_name(contexts: Path) -> None:
    stored = {"url": "nats://h:1", "user": "u", "password": "p", "description": "a lab", "color": "red"}
    (contexts / "lab.json").write_text(json.dumps(stored))
    assert read_context("lab") == NatsContext(url="nats://h:1", user="u", password="p")


def test_without_the_variable_contexts_are_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config" / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "lab.json").write_text("{}")
    assert read_context("lab").url == "nats://127.0.0.1:4222"


@pytest.mark.parametrize("name", ["missing", "", "../lab", "/lab", "..", "a\x00b", "x" * 300])
def test_a_context_that_is_not_there_is_refused_with_the_file_that_was_expected(contexts: Path, name: str) -> None:
    (contexts.parent / "lab.json").write_text("{}")
    with pytest.raises(SettingsError, match="there is no NATS context"):
        read_context(name)


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b'{"url": 1}', b'{"user": null}', b'{"url": "\xff"}', b"\xff"]
)
def test_a_file_that_is_no_context_is_refused_by_name(contexts: Path, body: bytes) -> None:
    (contexts / "lab.json").write_bytes(body)
    with pytest.raises(SettingsError, match=r"lab\.json"):
        read_context("lab")


@pytest.mark.parametrize(
    ("context", "url"),
    [
        (NatsContext(), "nats://127.0.0.1:4222"),
        (NatsContext(url="h:1"), "nats://h:1"),
        (NatsContext(url="tls://h:1", user="u", password="p"), "tls://u:p@h:1"),
        (NatsContext(url="nats://h:1", user="u"), "nats://u@h:1"),
        (NatsContext(url="nats://h:1", token="t"), "nats://t@h:1"),
        (NatsContext(url="nats://h:1", user="u", password="p@/:é"), "nats://u:p%40%2F%3A%C3%A9@h:1"),
        (NatsContext(url="nats://a:b@h:1", user="u", password="p"), "nats://a:b@h:1"),
        (NatsContext(url="nats://h:1, nats://i:2", token="t"), "nats://t@h:1,nats://t@i:2"),
        (NatsContext(url="nats://h:1", creds="x.creds"), "nats://h:1"),
    ],
)
def test_the_login_is_put_into_the_url_unless_it_is_there_or_in_a_file(context: NatsContext, url: str) -> None:
    assert context.login_url == url


def test_credentials_are_a_file_in_the_home_folder_or_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert NatsContext().credentials is None
    assert NatsContext(creds="~/a.creds").credentials == Path("/home/ann/a.creds")
    assert NatsContext(nkey="/keys/b.nk").credentials == Path("/keys/b.nk")
