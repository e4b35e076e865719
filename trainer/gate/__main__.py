"""`python -m trainer.gate`: evaluates candidates and promotes or rejects them."""

import logging
import signal
import threading

from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.media.store import MediaStore
from anyloop.registry import Registry
from anyloop.telemetry import metrics
from anyloop.telemetry.process import begin
from anyloop.transport import TransportError, certificate_files
from trainer.gate.config import GateSettings
from trainer.gate.service import Gate
from trainer.gate.suite import SuiteError, load_suite

log = logging.getLogger(__name__)


def main() -> int:
    """Runs until SIGTERM or SIGINT. Returns 2 when suite or certificates cannot be loaded."""
    settings, gate_settings = Settings(), GateSettings()
    begin("gate", settings)
    try:
        certificate_files(settings)  # better now than at the first candidate
        suite = load_suite(gate_settings.suite)
    except (SuiteError, TransportError) as error:
        log.error("%s", error)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _interrupt(stop))
    event_log = open_log(settings.effective_log_url)
    metrics.expect_gate()
    stop_metrics = metrics.start_metrics_server(settings.metrics_port, settings.bind)
    registry, media = Registry(settings.effective_registry_dir), MediaStore(settings.effective_media_url)
    try:
        log.info("the gate waits for candidates", extra={"suite": gate_settings.suite})
        Gate(settings, gate_settings, event_log, registry, media, suite).run(stop)
    except KeyboardInterrupt:
        log.info("stopped; an undecided candidate is evaluated at the next start")
    finally:
        event_log.close()
        stop_metrics()
    return 0


def _interrupt(stop: threading.Event) -> None:
    """Ends the loop, and a running evaluation at once."""
    if not stop.is_set():
        stop.set()
        raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
