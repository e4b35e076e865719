"""What an installation needs before its services serve, once: `python -m anyloop.bootstrap`.

Copies the base model to ANYLOOP_MODEL_DIR where `--model-source` names one, creates the topics of the log, and
registers the base checkpoint of each lineage. Safe to repeat and to run twice at once: what is there stays.
"""

import argparse
import contextlib
import errno
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec

from anyloop.config import Settings
from anyloop.log import LogError, open_log, topic_specs
from anyloop.log.topics import refused
from anyloop.registry import CheckpointError, Registry
from anyloop.telemetry.logs import configure

LINEAGES = ("policy", "critique")
_PAUSE_S = 2.0

logger = logging.getLogger(__name__)


class BootstrapError(RuntimeError):
    """The installation cannot be prepared; the message says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when all is there, 1 when it cannot be (the log says why)."""
    parser = argparse.ArgumentParser(prog="python -m anyloop.bootstrap", description=__doc__)
    parser.add_argument("--model-source", default="", help="fsspec URL of the folder to copy to ANYLOOP_MODEL_DIR")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for the event log")
    options = parser.parse_args(arguments)
    settings = Settings()
    configure("bootstrap", settings.log_level)
    try:
        if options.model_source:
            fetch_model(options.model_source, settings.model_dir)
        make_topics(settings, options.wait)
        import_bases(settings)
    except (BootstrapError, CheckpointError, LogError, OSError, ValueError) as error:
        logger.error("%s", error)
        return 1
    return 0


def fetch_model(source: str, target: Path) -> None:
    """Copies the folder at `source` (an fsspec URL) to `target`, whole or not at all; a model that is there stays.

    Raises BootstrapError when the source is no model directory or a local folder is in the way.
    """
    if (target / "config.json").exists():
        logger.info("the base model is there", extra={"folder": str(target)})
        return
    files, root = fsspec.core.url_to_fs(source)
    if not files.exists(f"{root.rstrip('/')}/config.json"):
        raise BootstrapError(f"{source} holds no config.json: model.source names the folder of a Hugging Face model")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        files.get(root.rstrip("/") + "/", f"{temporary}/", recursive=True)
        os.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        if not (target / "config.json").exists():  # and not another process that was faster
            raise BootstrapError(f"{target} holds something that is no model: remove it, or set model.path") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("the base model is copied", extra={"source": source, "folder": str(target)})


def make_topics(
    settings: Settings,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Creates and configures the topics; waits up to `wait_s` seconds for a log that is away.

    Raises BootstrapError for topics that are there and cannot become what is asked, and LogError.
    """
    until = clock() + wait_s
    said = ""
    while True:
        try:
            with contextlib.closing(open_log(settings.effective_log_url)) as log:
                specs = topic_specs(settings)
                if refusal := refused(log.plan_topics(specs)):
                    raise BootstrapError(f"the topics stay as they are: {refusal}")
                for change in log.apply_topics(specs):
                    logger.info("%s %s: %s", change.action, change.topic, change.detail)
                return
        except LogError as error:
            if not error.retriable or clock() >= until:
                raise
            if str(error) != said:
                logger.warning("waiting for the event log: %s", error)
            said = str(error)
        pause(_PAUSE_S)


def import_bases(settings: Settings) -> None:
    """Registers the base model as the root of each lineage. Raises CheckpointError."""
    root = settings.effective_registry_dir
    root.mkdir(parents=True, exist_ok=True)
    registry = Registry(root)
    for lineage in LINEAGES:
        logger.info("%s begins with %s", lineage, registry.import_base(lineage, settings.model_dir).version)


if __name__ == "__main__":
    sys.exit(main())
