from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bus.errors import SettingsError
from bus.settings import Settings


def test_without_a_variable_everything_has_a_default() -> None:
    settings = Settings.load({})
    assert (settings.url, settings.context, settings.namespace, settings.durability) == (None, None, "bus", "synced")


def test_the_environment_says_otherwise() -> None:
    settings = Settings.load(
        {"NATS_URL": "nats://h:1", "NATS_CONTEXT": "lab", "PHASEBUS_NAMESPACE": "lab", "PHASEBUS_LEASE_S": "1.5"}
    )
    assert settings.url is not None
    assert settings.url.get_secret_value() == "nats://h:1"
    assert (settings.context, settings.namespace, settings.lease_s) == ("lab", "lab", 1.5)


def test_each_kind_of_value_can_be_set(tmp_path: Path) -> None:
    settings = Settings.load({"PHASEBUS_MEMORY_LIMIT_MB": "512", "PHASEBUS_REPLICAS": "3"}, archive=tmp_path, grace_s=1)
    assert (settings.memory_limit_mb, settings.replicas, settings.archive, settings.grace_s) == (512, 3, tmp_path, 1)
    assert Settings.load({"PHASEBUS_CREDENTIALS": "a.creds"}).credentials == Path("a.creds")


def test_a_given_value_outranks_the_environment_and_none_does_not() -> None:
    environment = {"PHASEBUS_NAMESPACE": "lab", "PHASEBUS_BEAT_S": "0.5"}
    settings = Settings.load(environment, namespace="other", beat_s=None)
    assert (settings.namespace, settings.beat_s) == ("other", 0.5)


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert Settings.load({"PHASEBUS_NAMESPACE": "", "NATS_URL": ""}) == Settings.load({})


@pytest.mark.parametrize(
    ("name", "meant"), [("PHASEBUS_NAMESPCE", "PHASEBUS_NAMESPACE"), ("PHASEBUS_LEASE", "PHASEBUS_LEASE_S")]
)
def test_a_mistyped_variable_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting; did you mean {meant}\\?") as caught:
        Settings.load({name: "s3cret"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["PHASEBUS_COLOUR", "PHASEBUS_", "PHASEBUS_port"])
def test_an_unknown_variable_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting; known are .*PHASEBUS_NAMESPACE") as caught:
        Settings.load({name: "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_variables_of_others_are_left_alone() -> None:
    assert Settings.load({"PATH": "/bin", "NATS_CREDS": "x", "PHASEBUSY": "1", "PHASEBUS_WORKDIR": "w"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PHASEBUS_REPLICAS", "s3cret"),
        ("PHASEBUS_REPLICAS", "0"),
        ("PHASEBUS_REPLICAS", "6"),
        ("PHASEBUS_REPLICAS", "1.5"),
        ("PHASEBUS_DURABILITY", "s3cret"),
        ("PHASEBUS_LOG_LEVEL", "s3cret"),
        ("PHASEBUS_NAMESPACE", "S3cret!"),
        ("PHASEBUS_APPEND_TIMEOUT_S", "s3cret"),
        ("PHASEBUS_APPEND_TIMEOUT_S", "0"),
        ("PHASEBUS_REQUEST_TIMEOUT_S", "-1"),
        ("PHASEBUS_REQUEST_TIMEOUT_S", "nan"),
        ("PHASEBUS_BEAT_S", "61"),
        ("PHASEBUS_LEASE_S", "nan"),
        ("PHASEBUS_GRACE_S", "-0.1"),
        ("PHASEBUS_MEMORY_LIMIT_MB", "0"),
        ("PHASEBUS_MEMORY_LIMIT_MB", "s3cret"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_is_not_printed(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({name: value})
    said = str(caught.value)
    assert name in said
    assert name.removeprefix("PHASEBUS_").lower() in said
    assert "s3cret" not in said.lower()


def test_every_wrong_value_is_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"replicas \(PHASEBUS_REPLICAS\).*; lease_s \(PHASEBUS_LEASE_S\)"):
        Settings.load({"PHASEBUS_REPLICAS": "x", "PHASEBUS_LEASE_S": "y"})


def test_an_unknown_keyword_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="namespce"):
        Settings.load({}, namespce="x")


def test_a_beat_that_outlasts_the_lease_is_refused() -> None:
    """Every instance would lose what it holds between two beats."""
    with pytest.raises(SettingsError, match=r"beat_s|lease_s"):
        Settings.load({"PHASEBUS_BEAT_S": "5", "PHASEBUS_LEASE_S": "3"})


def test_no_secret_is_shown_by_a_settings_object() -> None:
    secrets: dict[str, Any] = {"url": "nats://u:s3cret@h", "system_url": "nats://sys:s3cret@h"}
    settings = Settings.load({}, **secrets)
    assert "s3cret" not in f"{settings!r} {settings}"


def test_settings_never_change() -> None:
    with pytest.raises(AttributeError):
        Settings.load({}).namespace = "other"
