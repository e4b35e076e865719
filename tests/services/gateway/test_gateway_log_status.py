"""What /v1/loop says of a log that cannot be asked."""

from pathlib import Path

from anyloop.log.sqlite_log import SqliteLog
from services.gateway.log_status import LogStatus


class Misconfigured(SqliteLog):
    """As Kafka's connection is when a certificate was replaced by something that is none."""

    def end_offsets(self, topic: str) -> dict[int, int]:
        raise ValueError("ANYLOOP_KAFKA_SSL_CAFILE=ca.pem: not a readable PEM file of certificates")


async def test_settings_that_cannot_be_right_are_said_and_no_failure(tmp_path: Path) -> None:
    with Misconfigured(tmp_path / "log.db") as log:
        assert await LogStatus(log).report() == {
            "log": {"error": "ANYLOOP_KAFKA_SSL_CAFILE=ca.pem: not a readable PEM file of certificates"},
            "promoted": {},
        }
