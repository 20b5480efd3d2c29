"""Commands about phases: a phase may be called `-3`, which is a word like any other there, and no option."""

from __future__ import annotations

import re

import click

_NUMBER = re.compile(r"-\d+(:\d+)?")


class Numbered(click.Command):
    """A command one of whose arguments is a phase, or an item of one: `-3`, `-3:0`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(map(_NUMBER.fullmatch, args)):
            # No option of ours begins with a digit: what looks like one is left to the arguments.
            ctx.ignore_unknown_options = True
        return super().parse_args(ctx, args)
