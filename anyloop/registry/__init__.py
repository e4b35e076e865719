"""Checkpoints: written whole or not at all, verified before use, announced in the log, watched by the replicas."""

from anyloop.registry.announce import announce, checkpoint_events, serving_version
from anyloop.registry.announcements import Announcements
from anyloop.registry.manifest import CheckpointError, Manifest
from anyloop.registry.registry import Registry
from anyloop.registry.watcher import CheckpointWatcher

__all__ = [
    "Announcements",
    "CheckpointError",
    "CheckpointWatcher",
    "Manifest",
    "Registry",
    "announce",
    "checkpoint_events",
    "serving_version",
]
