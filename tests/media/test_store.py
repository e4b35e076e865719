import hashlib
import os
import threading
from pathlib import Path

import pytest

from anyloop.media.store import (
    MediaCorrupted,
    MediaNotFound,
    MediaStore,
    StoredMedia,
    from_proto,
    modality_of,
    to_proto,
)
from anyloop.modality import Modality
from protos.anyloop.v1 import types_pb2

ABC = hashlib.sha256(b"abc").hexdigest()


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MediaStore:
    return MediaStore(f"file://{tmp_path}/media" if request.param == "file" else f"memory://{tmp_path}")


def object_path(tmp_path: Path) -> Path:
    return next(path for path in (tmp_path / "media").rglob(ABC))


def test_a_medium_comes_back_under_the_hash_of_its_bytes(store: MediaStore) -> None:
    stored = store.put(b"abc", "image/png")
    assert stored == StoredMedia(ABC, "image/png", 3, Modality.IMAGE)
    assert store.get(ABC) == b"abc"
    assert store.describe(ABC) == stored
    assert store.exists(ABC)


def test_the_same_bytes_are_stored_once_and_keep_their_first_type(store: MediaStore) -> None:
    assert store.put(b"abc", "audio/wav") == store.put(b"abc", "audio/wav")
    assert store.put(b"abc", "audio/x-wav").mime_type == "audio/wav"


def test_what_is_not_stored_is_not_found(store: MediaStore) -> None:
    absent = "0" * 64
    assert not store.exists(absent)
    for attempt in (store.get, store.describe):
        with pytest.raises(MediaNotFound, match=absent):
            attempt(absent)


@pytest.mark.parametrize("name", ["", "abc", "../../etc/passwd", "A" * 64, "/" * 64, "0" * 63 + "\n", "0" * 65])
def test_what_is_no_hash_never_becomes_a_path(store: MediaStore, name: str) -> None:
    assert not store.exists(name)
    for attempt in (store.get, store.describe):
        with pytest.raises(MediaNotFound, match="SHA-256"):
            attempt(name)


def test_empty_data_and_unknown_types_are_refused(store: MediaStore) -> None:
    with pytest.raises(ValueError, match="empty"):
        store.put(b"", "image/png")
    with pytest.raises(ValueError, match="application/pdf"):
        store.put(b"abc", "application/pdf")
    assert not store.exists(ABC)


def test_parameters_and_case_of_a_type_do_not_matter(store: MediaStore) -> None:
    assert store.put(b"abc", "Audio/WAV; codecs=1").mime_type == "audio/wav"


def test_changed_bytes_are_never_handed_out_and_storing_again_repairs_a_truncated_object(tmp_path: Path) -> None:
    store = MediaStore(f"file://{tmp_path}/media")
    store.put(b"abc", "image/png")
    object_path(tmp_path).write_bytes(b"ab")
    with pytest.raises(MediaCorrupted, match="upload the medium again"):
        store.get(ABC)
    store.put(b"abc", "image/png")
    assert store.get(ABC) == b"abc"


def test_an_object_without_its_description_is_not_whole(tmp_path: Path) -> None:
    store = MediaStore(f"file://{tmp_path}/media")
    store.put(b"abc", "image/png")
    description = object_path(tmp_path).with_name(f"{ABC}.json")
    description.unlink()
    assert not store.exists(ABC)
    store.put(b"abc", "image/png")
    description.write_text("{")
    assert not store.exists(ABC)
    with pytest.raises(MediaCorrupted):
        store.describe(ABC)
    assert store.put(b"abc", "image/png").size_bytes == 3
    assert store.exists(ABC)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore(f"file://{tmp_path}/media")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.put(b"abc", "image/png")
    assert [path for path in (tmp_path / "media").rglob("*") if path.is_file()] == []
    assert not store.exists(ABC)


def test_many_writers_of_the_same_medium_agree(tmp_path: Path) -> None:
    found: list[StoredMedia] = []
    data = bytes(200_000)

    def put() -> None:
        found.append(MediaStore(f"file://{tmp_path}/media").put(data, "video/mp4"))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8
    assert len([path for path in (tmp_path / "media").rglob("*") if path.is_file()]) == 2


@pytest.mark.parametrize(
    ("mime_type", "modality"),
    [("image/png", Modality.IMAGE), ("audio/x-wav", Modality.AUDIO), ("video/mp4; codecs=avc1", Modality.VIDEO)],
)
def test_a_type_names_its_modality(mime_type: str, modality: Modality) -> None:
    assert modality_of(mime_type) is modality


@pytest.mark.parametrize("mime_type", ["", "image", "image/", "text/plain", "/png", "image/../x"])
def test_other_types_name_none(mime_type: str) -> None:
    with pytest.raises(ValueError, match="not an image, audio or video type"):
        modality_of(mime_type)


def test_references_carry_everything_over_the_wire(store: MediaStore) -> None:
    stored = store.put(b"abc", "video/mp4")
    reference = to_proto(stored)
    assert reference == types_pb2.MediaRef(
        sha256=ABC, mime_type="video/mp4", size_bytes=3, modality=types_pb2.MODALITY_VIDEO
    )
    assert from_proto(reference) == stored
    with pytest.raises(ValueError, match="SHA-256"):
        from_proto(types_pb2.MediaRef(sha256="../x", mime_type="video/mp4"))
