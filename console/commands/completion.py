"""`phasebus completion`: click's own, for the shells it knows."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands in a shell.

    For bash: source <(phasebus completion bash)
    """
    kind = get_completion_class(shell)
    assert kind is not None, "one of click's shells"
    click.echo(kind(ctx.find_root().command, {}, "phasebus", "_PHASEBUS_COMPLETE").source())
