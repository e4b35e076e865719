"""The media store on an object store: s3fs against moto's S3 over real HTTP."""

import gc
import hashlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from anyloop.media.store import MediaCorrupted, MediaNotFound, MediaStore, MediaStoreError, StoredMedia
from anyloop.modality import Modality

BUCKET = "anyloop-media"
ABC = hashlib.sha256(b"abc").hexdigest()

# Of third parties: botocore's dates, and sockets that aiobotocore's pool leaves to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(botocore|aiobotocore|dateutil).*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.disable(logging.CRITICAL)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """moto's server in a process of its own, so that it and the store share nothing but HTTP."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        try:
            yield url
        finally:
            server.stdin.close()  # it ends with its input


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaStore]:
    """An empty bucket, found by the variables that an operator sets."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3").clear_instance_cache()
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    fsspec.filesystem("s3").mkdir(BUCKET)
    yield MediaStore(f"s3://{BUCKET}/media")
    fsspec.filesystem("s3").clear_instance_cache()
    gc.collect()  # here, where their warnings are known, not in whatever test comes later


def _ask_who_calls_after(endpoint: str, calls: str) -> None:
    plain = {"Content-Type": "text/plain"}
    url = f"{endpoint}/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(url, calls.encode(), plain, method="POST")).close()


def _object(sha256: str) -> str:
    return f"{BUCKET}/media/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def test_a_medium_comes_back_whole_in_part_and_described(store: MediaStore) -> None:
    stored = store.put(b"abc", "image/png")
    assert stored == StoredMedia(ABC, "image/png", 3, Modality.IMAGE)
    assert store.get(ABC) == b"abc"
    assert store.piece(ABC, 1, 3) == b"bc"
    assert store.describe(ABC) == stored
    assert store.location(ABC) == f"s3://{_object(ABC)}"
    assert fsspec.filesystem("s3").cat_file(_object(ABC)) == b"abc"


def test_the_same_bytes_are_one_object_and_written_once(store: MediaStore) -> None:
    store.put(b"abc", "audio/wav")
    first = fsspec.filesystem("s3").info(_object(ABC), refresh=True)["LastModified"]
    time.sleep(1.1)  # the store's clock counts seconds
    assert store.put(b"abc", "audio/x-wav").mime_type == "audio/wav"
    s3 = fsspec.filesystem("s3")
    s3.invalidate_cache()
    assert s3.info(_object(ABC), refresh=True)["LastModified"] == first
    assert len(s3.find(f"{BUCKET}/media")) == 2  # the bytes, and what they are


def test_what_another_process_stores_is_seen(store: MediaStore) -> None:
    """Gateway and decoders share a bucket: a listing remembered from before must not hide what came since."""
    assert not store.exists(ABC)
    code = f"from anyloop.media.store import MediaStore; MediaStore('s3://{BUCKET}/media').put(b'abc', 'image/png')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert store.exists(ABC)
    assert store.get(ABC) == b"abc"


def test_many_threads_store_and_read_at_once(store: MediaStore) -> None:
    contents = [b"medium %d" % (number % 8) for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda data: store.put(data, "image/png"), contents))
        assert list(pool.map(lambda medium: store.get(medium.sha256), stored)) == contents
    assert len({medium.sha256 for medium in stored}) == 8


def test_what_is_not_stored_is_not_found(store: MediaStore) -> None:
    for attempt in (store.get, store.describe, store.location):
        with pytest.raises(MediaNotFound, match="0" * 64):
            attempt("0" * 64)
    assert not store.exists("0" * 64)


def test_bytes_that_were_changed_behind_it_are_found_out(store: MediaStore) -> None:
    store.put(b"abc", "image/png")
    fsspec.filesystem("s3").pipe_file(_object(ABC), b"abd")
    with pytest.raises(MediaCorrupted, match=ABC):
        store.get(ABC)


def test_a_bucket_that_is_not_there_is_named(store: MediaStore) -> None:
    elsewhere = MediaStore("s3://no-such-bucket/media")
    with pytest.raises(MediaStoreError, match=r"s3://no-such-bucket/media.*create the bucket"):
        elsewhere.put(b"abc", "image/png")


def test_wrong_credentials_are_said_to_be_wrong(endpoint: str, store: MediaStore) -> None:
    store.put(b"abc", "image/png")
    _ask_who_calls_after(endpoint, "0")
    try:
        for attempt in (lambda: store.get(ABC), lambda: store.put(b"abcd", "image/png"), lambda: store.exists(ABC)):
            with pytest.raises(MediaStoreError, match="AWS_ACCESS_KEY_ID"):
                attempt()
    finally:
        _ask_who_calls_after(endpoint, "inf")


def test_a_store_that_cannot_be_reached_is_said_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(MediaStoreError, match=r"s3://anyloop-media/media.*127\.0\.0\.1:9"):
        MediaStore("s3://anyloop-media/media").get(ABC)
    fsspec.filesystem("s3").clear_instance_cache()


def test_the_description_is_json_beside_the_bytes(store: MediaStore) -> None:
    store.put(b"abc", "image/png")
    described = json.loads(fsspec.filesystem("s3").cat_file(_object(ABC) + ".json"))
    assert described == {"mime_type": "image/png", "size_bytes": 3}
