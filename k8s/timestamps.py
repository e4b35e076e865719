"""Instants in resources: RFC 3339 with microseconds, in UTC."""

from datetime import UTC, datetime


def written(seconds: float) -> str:
    """Unix seconds as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read(text: str | None) -> float | None:
    """Unix seconds; None of nothing."""
    return datetime.fromisoformat(text).timestamp() if text else None
