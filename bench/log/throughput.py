"""Acknowledged events per second: threads that append again and again for a while."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from anyloop.log import RESPONSES
from anyloop.log.spool import Fsync, SpooledWriter
from bench.log.contenders import CONTENDERS, events, prepared
from bench.log.process import Usage

_WARM_UP_S = 0.5


def appending(contender: str, url: str, threads: int, batch: int, seconds: float) -> dict[str, Any]:
    """`threads` threads share one producer, append `batch` events at a time and wait for each acknowledgement."""
    pool = events()
    target = CONTENDERS[contender](url, pool)
    counts, waits = [0] * threads, [[] for _ in range(threads)]  # type: ignore[var-annotated]
    begin = threading.Barrier(threads + 1)
    stop = threading.Event()

    def work(mine: int) -> None:
        at = mine * len(pool) // threads
        begin.wait()
        while not stop.is_set():
            numbers = [(at + step) % len(pool) for step in range(batch)]
            began = time.perf_counter()
            target.append(numbers)
            waits[mine].append(time.perf_counter() - began)
            counts[mine] += batch
            at += batch

    target.append([0])  # connected, and the topic is known
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    begin.wait()
    time.sleep(min(_WARM_UP_S, seconds / 4))
    before, usage, began = sum(counts), Usage.now(), time.perf_counter()
    time.sleep(seconds)
    after, used, elapsed = sum(counts), Usage.now() - usage, time.perf_counter() - began
    stop.set()
    for worker in workers:
        worker.join()
    stored, acknowledged = target.stored(), 1 + sum(counts)
    target.close()
    times = sorted(wait for one in waits for wait in one)
    return {
        "events_per_s": (after - before) / elapsed,
        "append_p50_ms": 1e3 * times[len(times) // 2],
        "append_p99_ms": 1e3 * times[len(times) * 99 // 100],
        "cpu_us_per_event": 1e6 * used.cpu / max(1, after - before),
        "rss_mb": used.rss_mb,
        "acknowledged": acknowledged,
        "stored": stored,
    }


def through_outbox(url: str, folder: Path, threads: int, fsync: Fsync, count: int) -> dict[str, Any]:
    """`count` events are put by threads as fast as the disk lets them, until the log has the last of them."""
    pool = events()
    with prepared(url) as log, SpooledWriter(lambda: prepared(url), folder, 2**31, fsync=fsync) as outbox:
        outbox.put(RESPONSES, pool[0])
        outbox.flush(60)

        def work(mine: int) -> None:
            for number in range(mine, count, threads):
                outbox.put(RESPONSES, pool[number % len(pool)])

        usage, began = Usage.now(), time.perf_counter()
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        accepted = time.perf_counter() - began
        drained = outbox.flush(120)
        elapsed, used = time.perf_counter() - began, Usage.now() - usage
        return {
            "accepted_per_s": count / accepted,
            "events_per_s": count / elapsed,
            "cpu_us_per_event": 1e6 * used.cpu / count,
            "rss_mb": used.rss_mb,
            "acknowledged": count + 1 if drained else -1,
            "stored": sum(log.end_offsets(RESPONSES).values()),
        }
