"""Media in every form that records have, and nothing outside of the media folders."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyloop.datasets.media_values import MediaReader
from anyloop.media.formats import read_audio
from anyloop.media.limits import MediaError, MediaLimits
from anyloop.modality import Modality
from tests.datasets.samples import mp4, png, seconds_of, tone, wav


@pytest.fixture
def reader(tmp_path: Path) -> MediaReader:
    folder = tmp_path / "data"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "one.mp4").write_bytes(mp4())
    (tmp_path / "secret.png").write_bytes(png())
    return MediaReader([folder])


@pytest.mark.parametrize(
    "value",
    [
        png(),
        {"bytes": png(), "path": "x.png"},
        {"bytes": base64.b64encode(png()).decode(), "path": None},
        base64.b64encode(png()).decode(),
        "data:image/png;base64," + base64.b64encode(png()).decode(),
    ],
    ids=["bytes", "struct", "struct in JSON", "base64", "data URL"],
)
def test_an_image_in_any_form_is_the_same_file(reader: MediaReader, value: Any) -> None:
    read = reader.read(value, Modality.IMAGE)
    assert (read.data, read.mime_type) == (png(), "image/png")


def test_samples_and_their_rate_become_a_wav_file(reader: MediaReader) -> None:
    read = reader.read({"array": tone(seconds=0.25), "sampling_rate": 16000}, Modality.AUDIO)
    samples, rate = read_audio(read.data)
    assert (rate, seconds_of(read.data)) == (16000, 0.25)
    assert np.abs(samples - tone(seconds=0.25)).max() < 1e-4


def test_channels_are_mixed_down(reader: MediaReader) -> None:
    both = np.stack([tone(), -tone()])
    samples, _ = read_audio(reader.read({"array": both, "sampling_rate": 16000}, Modality.AUDIO).data)
    assert np.abs(samples).max() == 0.0


@pytest.mark.parametrize("path", ["videos/one.mp4", "./videos/one.mp4", "videos/../videos/one.mp4"])
def test_a_path_begins_at_a_media_folder(reader: MediaReader, path: str) -> None:
    assert reader.read(path, Modality.VIDEO).data == mp4()
    assert reader.read({"path": path, "bytes": None}, Modality.VIDEO).data == mp4()


@pytest.mark.parametrize("path", ["../secret.png", "videos/../../secret.png", "{outside}", "/etc/hostname", "a\0b"])
def test_no_file_outside_of_the_media_folders_is_opened(reader: MediaReader, tmp_path: Path, path: str) -> None:
    named = path.replace("{outside}", str(tmp_path / "secret.png"))
    with pytest.raises(MediaError, match="in none of the media folders"):
        reader.read(named, Modality.IMAGE)


def test_a_link_is_followed_where_it_leads_into_a_media_folder(reader: MediaReader, tmp_path: Path) -> None:
    (tmp_path / "data" / "again.mp4").symlink_to("videos/one.mp4")
    assert reader.read("again.mp4", Modality.VIDEO).data == mp4()
    (tmp_path / "data" / "linked.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    for name in ("linked.png", "up/secret.png"):
        with pytest.raises(MediaError, match="leads out of the media folders"):
            reader.read(name, Modality.IMAGE)
    wider = MediaReader([tmp_path / "data", tmp_path])
    assert wider.read("linked.png", Modality.IMAGE).data == png()


def test_what_is_too_large_is_not_even_read(
    reader: MediaReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "data" / "big.png").open("wb") as file:
        file.truncate(2**40)
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    for value in ("big.png", "A" * 12 * 2**20, "data:image/png;base64," + "A" * 12 * 2**20):
        with pytest.raises(MediaError, match="the limit is"):
            reader.read(value, Modality.IMAGE)


@pytest.mark.parametrize(
    ("value", "modality", "sentence"),
    [
        ("https://example.org/a.png", Modality.IMAGE, "download the media first"),
        ("videos/two.mp4", Modality.VIDEO, "unpack the archive"),
        (wav(), Modality.IMAGE, "this is a audio/wav file, not image"),
        (b"no medium at all", Modality.IMAGE, "none of the formats"),
        ({"array": tone()}, Modality.AUDIO, "sampling rate is None"),
        ({"array": [], "sampling_rate": 8000}, Modality.AUDIO, "are no sound"),
        ({"array": [[1, 2], [3]], "sampling_rate": 8000}, Modality.AUDIO, "are no array of numbers"),
        (None, Modality.AUDIO, "nothing is no audio"),
        (7, Modality.AUDIO, "a int is no audio"),
        ("data:image/png;base64,@@", Modality.IMAGE, "neither a file's path nor base64"),
    ],
    ids=[
        "url",
        "not there",
        "other modality",
        "garbage",
        "no rate",
        "no samples",
        "ragged",
        "nothing",
        "number",
        "bad base64",
    ],
)
def test_what_cannot_be_had_is_refused_with_a_way_out(
    reader: MediaReader, value: Any, modality: Modality, sentence: str
) -> None:
    with pytest.raises(MediaError, match=sentence):
        reader.read(value, modality)


def test_a_medium_over_its_limit_is_refused(tmp_path: Path) -> None:
    small = MediaReader([tmp_path], MediaLimits(max_image_bytes=10))
    with pytest.raises(MediaError, match="the limit is 10"):
        small.read(png(), Modality.IMAGE)
