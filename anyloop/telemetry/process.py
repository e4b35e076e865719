"""What every process does first, so that it can be watched."""

from anyloop.config import Settings
from anyloop.telemetry import logs, tracing


def begin(service: str, settings: Settings) -> None:
    """Logs as JSON, and traces where an endpoint is set. `service` is what both call this process."""
    logs.configure(service, settings.log_level, settings.access_log)
    tracing.configure(service, settings)
