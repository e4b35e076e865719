"""The controller of one cluster: copies of what it watches, a queue of what to look at, workers that look."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

import httpx

from anyloop.log import EventLog, LogError
from anyloop.telemetry import metrics
from k8s.api import PODS, ROLLOUTS, Api, ApiError, Json
from k8s.checkpoints import Checkpoints
from k8s.config import ControllerSettings
from k8s.informer import Informer, Key, key_of
from k8s.measuring import Meter
from k8s.pods import Pod
from k8s.queue import WorkQueue
from k8s.reconciler import NoLongerLeader, Reconciler
from k8s.replicas import Replicas

logger = logging.getLogger(__name__)

_TOGETHER_SECONDS = 0.2  # pods change in bursts
_HTTP_SECONDS = 5.0


async def lead(
    api: Api, log: EventLog, replicas: Replicas, settings: ControllerSettings, namespace: str, leads: Callable[[], bool]
) -> None:
    """Acts until cancelled, as the only one who does; `namespace` empty: in all of them. Raises what cannot pass."""
    queue: WorkQueue[Key] = WorkQueue()

    def of_lineage(lineage: str) -> None:
        for rollout in rollouts:
            if rollout["spec"].get("lineage", "policy") == lineage:
                queue.add(key_of(rollout))

    def pod_changed(key: Key, before: Pod | None, now: Pod | None) -> None:
        for rollout in rollouts:  # few: a cluster has one or two
            if rollout["metadata"]["namespace"] == key[0]:
                queue.add(key_of(rollout), _TOGETHER_SECONDS)

    def rollout_changed(key: Key, before: Json | None, now: Json | None) -> None:
        if _meaning(before) != _meaning(now):  # not by a status that this controller wrote
            queue.add(key)

    rollouts = Informer(api, ROLLOUTS, namespace, lambda found: found, rollout_changed, settings.rollout_selector)
    pods = Informer(api, PODS, namespace, Pod.read, pod_changed, settings.pod_selector)
    checkpoints = Checkpoints(log, of_lineage, settings.log_poll_seconds)
    async with httpx.AsyncClient(timeout=_HTTP_SECONDS, trust_env=False) as client:
        meter = Meter(settings, client)
        reconciler = Reconciler(api, checkpoints, replicas, meter, settings, rollouts, pods, queue, leads)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(rollouts.run())
                tasks.create_task(pods.run())
                tasks.create_task(checkpoints.run())
                await asyncio.gather(rollouts.synced.wait(), pods.synced.wait(), checkpoints.synced.wait())
                logger.info("in charge of %d rollouts and %d pods", len(rollouts.things), len(pods.things))
                for key in rollouts.things:
                    queue.add(key)
                for _ in range(settings.workers):
                    tasks.create_task(_work(queue, reconciler))
        finally:
            await reconciler.close()


async def _work(queue: WorkQueue[Key], reconciler: Reconciler) -> None:
    while True:
        key = await queue.get()
        began = time.perf_counter()
        try:
            again = await reconciler.reconcile(key)
        except NoLongerLeader:
            queue.retry(key)
            await asyncio.sleep(0)
            continue
        except (ApiError, LogError) as error:
            kind = "log" if isinstance(error, LogError) else "conflict" if error.conflict else "api"
            wait = queue.retry(key)
            metrics.CONTROLLER_RECONCILE_ERRORS.labels(kind).inc()
            level = logging.INFO if kind == "conflict" else logging.WARNING
            logger.log(level, "%s/%s is looked at again in %.1f s: %s", *key, wait, error)
        except Exception:
            wait = queue.retry(key)
            metrics.CONTROLLER_RECONCILE_ERRORS.labels("bug").inc()
            logger.exception("%s/%s is looked at again in %.1f s", *key, wait)
        else:
            queue.done(key)
            if again < math.inf:
                queue.add(key, again)
        finally:
            metrics.CONTROLLER_RECONCILE.observe(time.perf_counter() - began)


def _meaning(rollout: Json | None) -> tuple[object, ...] | None:
    """What of a PolicyRollout asks for a look when it changes."""
    if rollout is None:
        return None
    metadata = rollout["metadata"]
    return (
        metadata["uid"],
        metadata.get("generation"),
        metadata.get("annotations"),
        metadata.get("deletionTimestamp"),
        metadata.get("finalizers"),
    )
