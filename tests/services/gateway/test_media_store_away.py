"""An object store that is away is nobody's mistake: 503, come back, and no word of where it is."""

import io
import logging

import grpc
import pytest
from PIL import Image

from anyloop.config import Settings
from anyloop.media.store import MediaStore
from services.gateway.errors import GatewayError
from services.gateway.media import MediaDesk
from services.rpc.errors import as_rpc_error
from tests.media.broken_store import BrokenFileSystem


@pytest.fixture
def desk() -> MediaDesk:
    return MediaDesk(MediaStore(BrokenFileSystem.url("media")), Settings())


async def test_clients_are_told_to_come_back_and_the_log_says_why(
    desk: MediaDesk, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        for attempt in (lambda: desk.ingest(_picture()), lambda: desk.read("0" * 64), lambda: desk.describe("0" * 64)):
            with pytest.raises(GatewayError, match="try again shortly") as refused:
                await attempt()
            assert refused.value.response().status_code == 503
            assert "10.0.0.9" not in str(refused.value)
    assert caplog.text.count("does not answer: no route to 10.0.0.9") == 3


def test_services_say_unavailable_with_a_delay() -> None:
    with pytest.raises(OSError) as raised:
        MediaStore(BrokenFileSystem.url("media")).get("0" * 64)
    refused = as_rpc_error(raised.value)
    assert (refused.code, refused.retry_after_ms) == (grpc.StatusCode.UNAVAILABLE, 5000)


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()
