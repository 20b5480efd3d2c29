"""`phasebus agent ls`: who is there now. Asked, not read: the log knows who was there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.presence import Beat
    from console.printer import Printer


@click.command()
@on_bus
async def ls(client: Client, printer: Printer) -> None:
    """List the instances that answer now."""
    beats = await client.agents()
    if printer.as_json:
        for beat in beats:
            printer.record(_record(beat))
    elif beats:
        headings = ["AGENT", "VERSION", "INSTANCE", "HOST", "PID", "CAPABILITIES", "HOLDS"]
        printer.table(headings, [_row(beat) for beat in beats])
    else:
        printer.hint("no agent answers: start one with `phasebus agent run FILE.py:agent`")


def _row(beat: Beat) -> list[str]:
    capabilities = ", ".join(
        f"{name} x{width}" + (" (paused)" if name in beat.paused else "") for name, width in beat.capabilities.items()
    )
    held = ", ".join(
        f"{each.run}/{each.phase}" + (f":{each.item}" if each.item is not None else "") + f" #{each.attempt}"
        for each in beat.held
    )
    return [beat.agent, beat.version, beat.instance, beat.host, str(beat.pid), capabilities, held or "-"]


def _record(beat: Beat) -> dict[str, Any]:
    """The beat with its held attempts as objects: on the wire they are arrays."""
    from msgspec.structs import asdict

    return asdict(beat) | {"held": [asdict(each) for each in beat.held]}
