"""What an embedded server is told. `nats.conf`, for a server of one's own, says the same with more words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import msgspec

from bus.format.subjects import Subjects

Durability = Literal["synced", "fast"]

_SYNC_INTERVAL = {"synced": "always", "fast": "1s"}

_TEXT = """# Written at each start: what is changed here is lost.
server_name: phasebus
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{http_port}"
{websocket}
ports_file_dir: {store}
log_file: {log_file}
logfile_size_limit: 16MB
logfile_max_num: 2
max_payload: 1MB
max_connections: 4096
ping_interval: "10s"
ping_max: 2
write_deadline: "5s"
jetstream {{
  store_dir: {store}
  sync_interval: {sync_interval}
  max_memory_store: 512MB
  limits {{ max_request_batch: 256 }}
}}
accounts {{
  SYSTEM {{ users: [{{ user: system, password: "{system}", allowed_connection_types: ["STANDARD"] }}] }}
  BUS {{
    jetstream: enabled
    users: [
      {{ user: operator, password: "{operator}", allowed_connection_types: ["STANDARD"], permissions: {{
        publish: {{ deny: ["live.>"] }}
      }} }}
      # Live copies come from the server alone; no stream is changed or removed, nothing leaves the log.
      {{ user: bus, password: "{bus}", allowed_connection_types: ["STANDARD"], permissions: {{ publish: {{ deny: [
        "live.>", "$JS.API.STREAM.DELETE.*", "$JS.API.STREAM.UPDATE.*", "$JS.API.STREAM.PURGE.{log}"
      ] }} }} }}
    ]
    exports: [
      {{ stream: "live.>" }}, {{ stream: "{prefix}.beat.*" }}, {{ stream: "{prefix}.changed.*" }}
      {{ service: "$JS.API.DIRECT.GET.*", response: stream, threshold: "10s" }}
      {{ service: "$JS.API.STREAM.INFO.*" }}, {{ service: "$JS.API.STREAM.NAMES" }}
      {{ service: "{prefix}.rows.*" }}, {{ service: "{prefix}.roster", response: stream }}
      {{ service: "{prefix}.ping", response: stream, allow_trace: true }}
    ]
  }}
  # Who only reads has an account of his own: what the server sends there for him can't reach the bus.
  AUDIT {{
    imports: [
      {{ stream: {{ account: BUS, subject: "live.>" }} }}, {{ stream: {{ account: BUS, subject: "{prefix}.beat.*" }} }}
      {{ stream: {{ account: BUS, subject: "{prefix}.changed.*" }} }}
      {{ service: {{ account: BUS, subject: "$JS.API.DIRECT.GET.*" }} }}
      {{ service: {{ account: BUS, subject: "$JS.API.STREAM.INFO.*" }}, to: "audit.STREAM.INFO.$1" }}
      {{ service: {{ account: BUS, subject: "$JS.API.STREAM.NAMES" }}, to: "audit.STREAM.NAMES" }}
      {{ service: {{ account: BUS, subject: "{prefix}.rows.*" }} }}
      {{ service: {{ account: BUS, subject: "{prefix}.roster" }} }}
      {{ service: {{ account: BUS, subject: "{prefix}.ping" }} }}
    ]
    # Otherwise this account's own JetStream, which there is none of, would answer first.
    mappings: {{ "$JS.API.STREAM.INFO.*": "audit.STREAM.INFO.$1", "$JS.API.STREAM.NAMES": "audit.STREAM.NAMES" }}
    users: [{{ user: auditor, password: "{auditor}", permissions: {{
      publish: {{ allow: [
        "$JS.API.DIRECT.GET.{log}", "$JS.API.DIRECT.GET.OBJ_{log}_PAYLOADS", "$JS.API.DIRECT.GET.KV_{log}_LEASES",
        "$JS.API.DIRECT.GET.KV_{log}_LIMITS", "$JS.API.DIRECT.GET.{log}_CACHE",
        "audit.STREAM.INFO.*", "audit.STREAM.NAMES", "{prefix}.rows.*", "{prefix}.roster", "{prefix}.ping",
        "_INBOX.*.trace"
      ] }}
      subscribe: {{ allow: ["_INBOX.>", "live.{prefix}.>", "{prefix}.beat.*", "{prefix}.changed.*"] }}
    }} }}]
  }}
}}
system_account: SYSTEM
authorization {{ timeout: 2 }}
"""
# On loopback, so the password is not to be overheard; only the login that may do no harm comes in by it.
_WEBSOCKET = 'websocket {{ listen: "127.0.0.1:{port}", no_tls: true, compression: true }}'


class Logins(msgspec.Struct, frozen=True):
    """The password of each login, and the port that goes with them."""

    bus: str
    system: str
    operator: str
    auditor: str
    port: int = -1


def configuration(
    store: Path,
    logins: Logins,
    *,
    port: int,
    http_port: int,
    websocket_port: int | None,
    durability: Durability,
    subjects: Subjects,
) -> str:
    """The text of its file. A port of -1 is a free one; without `websocket_port` nobody listens for WebSockets."""
    return _TEXT.format(
        port=port,
        http_port=http_port,
        websocket="" if websocket_port is None else _WEBSOCKET.format(port=websocket_port),
        store=json.dumps(str(store), ensure_ascii=False),
        log_file=json.dumps(str(store / "server.log"), ensure_ascii=False),
        sync_interval=_SYNC_INTERVAL[durability],
        system=logins.system,
        bus=logins.bus,
        operator=logins.operator,
        auditor=logins.auditor,
        log=subjects.stream,
        prefix=subjects.namespace,
    )
