"""Checks of the ground everything stands on: the server, the login, the streams, the disk, the clocks."""

from __future__ import annotations

from collections.abc import Iterator

from projections.doctor.facts import Facts
from projections.doctor.finding import Finding

_LEAST_PAYLOAD = 256 * 1024
_FULL = 0.95
# Deadlines and expiries are compared with the clocks of others; a network's delay is not a skew.
_SKEW_S = 1.0
_CONFIGURE = "set it in nats.conf (the one of phasebus has it), and restart the server"


def reach(facts: Facts) -> Iterator[Finding]:
    """Whether there is a server that lets us in and keeps streams."""
    ground = facts.ground
    causes = {
        "nowhere": (ground.said or "no bus found here, and NATS_URL is not set", "phasebus up"),
        "unreachable": (f"no bus reachable: nobody listens at {ground.where}", "phasebus up, or correct NATS_URL"),
        "refused": (
            f"login refused by {ground.where}: {ground.said}",
            "correct the user and the password in NATS_URL, --url or the context",
        ),
        "mute": (
            f"server frozen: {ground.where} takes connections, and does not answer",
            "ps -o pid,stat,command -C nats-server, then kill -CONT PID or restart it",
        ),
        "no_jetstream": (
            f"JetStream is off on {ground.where}: no stream can be kept there",
            "nats-server -c nats.conf",
        ),
    }
    if ground.reached != "yes":
        cause, next_step = causes[ground.reached]
        yield Finding(code=ground.reached, weight="fatal", cause=cause, next_step=next_step, details=_said(ground.said))


def streams(facts: Facts) -> Iterator[Finding]:
    """Whether the streams of the namespace are there, and are what they promise."""
    ground, name = facts.ground, facts.namespace
    if ground.reached != "yes":
        return
    log, work = name.upper(), f"{name.upper()}_WORK"
    if log in ground.lost and ground.kept:
        cause = f"log lost: stream {log} is gone, while {', '.join(ground.kept)} of the same namespace are there"
        yield Finding(
            code="log_lost",
            weight="fatal",
            cause=cause,
            next_step="stop the agents, restore the server's store from a backup or `phasebus events import FILE`",
        )
    elif log in ground.lost:
        there = f"; there is {', '.join(ground.others)}" if ground.others else ""
        next_step = f"export PHASEBUS_NAMESPACE={ground.others[0]}" if ground.others else "phasebus up"
        cause = f"wrong namespace: there is no bus {name!r} on this server{there}"
        yield Finding(code="wrong_namespace", weight="fatal", cause=cause, next_step=next_step)
    elif work in ground.lost:
        cause = f"work stream lost: {work} is gone, so nothing can be taken; it can be made again from the log"
        yield Finding(
            code="work_lost",
            weight="broken",
            cause=cause,
            next_step="restart an agent or a supervisor: phasebus up",
        )
    if ground.wrong:
        cause = f"stream misconfigured: {ground.wrong}"
        next_step = f"nats stream edit {_stream_of(ground.wrong, log)}, back to what the bus needs"
        yield Finding(code="stream_wrong", weight="broken", cause=cause, next_step=next_step)


def disk(facts: Facts) -> Iterator[Finding]:
    """Whether what is stored is stored, and whether there is room for more."""
    ground = facts.ground
    if ground.unwritable:
        cause = f"store full or read-only: the server refuses to store anything: {ground.unwritable}"
        next_step = "make room on the server's disk or raise max_file_store, then restart it"
        yield Finding(code="unwritable", weight="broken", cause=cause, next_step=next_step)
    elif ground.full is not None and ground.full >= _FULL:
        cause = f"store nearly full: {ground.full:.0%} of max_file_store is used"
        next_step = "raise max_file_store, or phasebus archive run"
        yield Finding(code="nearly_full", weight="advice", cause=cause, next_step=next_step)
    if ground.unsynced is not None:
        cause = (
            f"not synced: server {ground.unsynced!r} acknowledges before it has written, "
            "so a power cut loses what was acknowledged"
        )
        next_step = f"sync_interval: always in its jetstream block: {_CONFIGURE}; or PHASEBUS_DURABILITY=fast"
        yield Finding(code="not_synced", weight="broken", cause=cause, next_step=next_step)
    if ground.max_payload is not None and ground.max_payload < _LEAST_PAYLOAD:
        cause = f"max_payload too small: the server takes messages of {ground.max_payload} bytes, 1 MB is needed"
        yield Finding(code="small_payload", weight="broken", cause=cause, next_step=f"max_payload: 1MB: {_CONFIGURE}")


def clocks(facts: Facts) -> Iterator[Finding]:
    """Whether this machine and the server agree on the time."""
    ahead_s = facts.ground.ahead_s
    if ahead_s is not None and abs(ahead_s) > _SKEW_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        cause = f"clock skew: this machine is {abs(ahead_s):.1f} s {way} the server, so deadlines come at wrong times"
        yield Finding(code="clock_skew", weight="broken", cause=cause, next_step="timedatectl set-ntp true")


def system_login(facts: Facts) -> Iterator[Finding]:
    """Whether crashes are told at once, and durability can be proven."""
    if facts.ground.system:
        cause = (
            f"no system login: {facts.ground.system}; crashes are noticed by silence instead of at once, "
            "and durability is not proven"
        )
        next_step = "export PHASEBUS_SYSTEM_URL=nats://system:PASSWORD@HOST:PORT"
        yield Finding(code="no_system_login", weight="advice", cause=cause, next_step=next_step)


def _stream_of(wrong: str, otherwise: str) -> str:
    """The stream that a sentence about its settings names."""
    return wrong.split("'")[1] if wrong.count("'") >= 2 else otherwise


def _said(text: str) -> tuple[str, ...]:
    return (text,) if text else ()
