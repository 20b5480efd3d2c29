"""The layout: the streams and buckets the bus stands on, and what each of them promises.

The log and the work that waits are there from the start. The others are made when somebody first needs them.
"""

from __future__ import annotations

from typing import Any

from bus.format.subjects import Subjects


def log_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """The log: nothing in it can be changed or removed one by one, and no limit drops anything.

    Purging is allowed to the operator's login alone: it is how what was archived leaves the log
    (`bus.archives.archiving`).
    """
    return {
        "name": subjects.stream,
        "subjects": subjects.logged(),
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "deny_delete": True,
        "allow_direct": True,
        "allow_atomic": True,
        "allow_msg_ttl": True,
        # A limit, or a message that replaces those before it, would remove events without a word.
        "allow_rollup_hdrs": False,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        # One for each subscription of an agent. The limit is 1,000 unless it is stated.
        "max_consumers": 100_000,
        # What is stored goes out once more for whoever watches: no consumer state on the server, no acknowledgements.
        "republish": {"src": f"{subjects.namespace}.>", "dest": f"live.{subjects.namespace}.>"},
    }


def work_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """Work waiting to be taken. It can be derived from the log again, so it does not wait for the disk."""
    relaxed = {"storage": "file", "persist_mode": "async"} if replicas == 1 else {"storage": "memory"}
    return {
        "name": subjects.work_stream,
        "subjects": [subjects.all_work],
        "retention": "workqueue",
        "num_replicas": replicas,
        # One message per attempt: publishing it again while it is still there is refused, so it is harmless.
        "discard": "new",
        "max_msgs_per_subject": 1,
        "discard_new_per_subject": True,
        "allow_direct": True,
        # The limit is 1,000 unless it is stated; one consumer per capability stays far below.
        "max_consumers": 100_000,
        **relaxed,
    }


def payloads_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """An object store as every NATS client knows it (ADR-20): chunks, and one message about each object."""
    bucket = subjects.payloads_bucket
    return {
        "name": f"OBJ_{bucket}",
        "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }


def timers_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """What the server is to ring for, and what has rung and waits to be heard. All of it follows from the log.

    A stream of its own: message schedules need rollup, and a log whose events can be rolled up is none.
    """
    return {
        "name": subjects.timers_stream,
        "subjects": [subjects.all_timers],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "allow_rollup_hdrs": True,
    }


def cache_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """Where outputs are found that can be used again. It follows from the log, and losing it costs time only."""
    relaxed = {"persist_mode": "async"} if replicas == 1 else {}
    return {
        "name": subjects.cache_stream,
        "subjects": [subjects.all_cached],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        # The newest counts; of very many the oldest go.
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_msgs": 1_000_000,
        "allow_direct": True,
        "allow_msg_ttl": True,
        **relaxed,
    }


def leases_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """The bucket of leases, whose keys end by themselves if nobody renews them."""
    return {**_bucket_config(subjects.leases_bucket, replicas), "allow_msg_ttl": True}


def limits_config(subjects: Subjects, replicas: int) -> dict[str, Any]:
    """The bucket of limits: one small value for each, written over at the version that was seen."""
    return _bucket_config(subjects.limits_bucket, replicas)


def _bucket_config(bucket: str, replicas: int) -> dict[str, Any]:
    """A key-value bucket as every NATS client knows it (ADR-8)."""
    return {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "max_msgs_per_subject": 1,
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
    }
