"""Celery on Redis: a task in a list, acknowledged when done, its result in a key, told by a message.

`python -m benchmarks.peers.with_celery worker|ask|hold FOLDER`. Results can't well be waited for in many threads:
with a hundred waiting, 2,000 tasks were not answered after 90 s. So one thread has a hundred under way.
"""

from __future__ import annotations

import sys

from celery import Celery  # type: ignore[import-not-found]

from benchmarks.peers import measuring

_WORKER = ["worker", "--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
# Faster here than processes and than one at a time.
_POOL = ["--pool", "threads", "--concurrency", "32"]
_ANSWER_S = 60

app = Celery("peer", broker=measuring.URL, backend=measuring.URL)
app.conf.broker_connection_retry_on_startup = True
if measuring.IS_BEST:
    # Without the first a task is gone as soon as a worker has taken it. What takes longer than that is done twice.
    app.conf.task_acks_late = True
    app.conf.broker_transport_options = {"visibility_timeout": 5}


def _work(value: int) -> int:
    return value


work = app.task(name="work")(_work)
hold = app.task(name="hold")(measuring.hold_blocking)

if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "worker":
        app.worker_main([*_WORKER, *_POOL])
    elif role == "hold":
        hold.delay(*arguments)
    else:
        measuring.measure_blocking(
            lambda: work.delay(1), lambda sent: sent.get(timeout=_ANSWER_S), repeats=300, total=1_500
        )
