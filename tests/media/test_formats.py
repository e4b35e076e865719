"""Files that browsers play come out, any usual file comes in, and hostile ones are refused with a sentence."""

import io
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from anyloop.media.fit import fit_audio, fit_for_codec, render
from anyloop.media.formats import (
    read_audio,
    read_image,
    read_video,
    sniff,
    write_audio,
    write_image,
    write_video,
)
from anyloop.media.limits import MediaError, MediaLimits
from anyloop.modality import Modality


def picture(height: int = 64, width: int = 64) -> np.ndarray:
    pixels = np.full((height, width, 3), 240, dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (200, 30, 30)
    return pixels


def moving_square(frames: int = 8, side: int = 256) -> np.ndarray:
    clip = np.full((frames, side, side, 3), 30, dtype=np.uint8)
    for index in range(frames):
        left = index * side // (2 * frames) // 4 * 4
        clip[index, side // 4 : side // 2, left : left + side // 4] = (40, 200, 60)
    return clip


def tone(hertz: float = 440.0, seconds: float = 0.768, rate: int = 8000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, container: str, codec: str, layout: str = "mono") -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.rate = rate
        for piece in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return out.getvalue()


def webm(clip: np.ndarray, fps: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="webm") as file:
        stream = file.add_stream("libvpx", rate=fps)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        for pixels in clip:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def png_header_of(width: int, height: int) -> bytes:
    """A few bytes that promise a vast picture."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def boxes(data: bytes) -> list[bytes]:
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big")
    return names


def test_a_png_written_is_read_back_exactly() -> None:
    data = write_image(picture(40, 60))
    assert sniff(data) == "image/png"
    assert np.array_equal(read_image(data), picture(40, 60))


@pytest.mark.parametrize(("kind", "mime"), [("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")])
def test_other_image_formats_are_read(kind: str, mime: str) -> None:
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, kind)
    assert sniff(out.getvalue()) == mime
    assert np.abs(read_image(out.getvalue()).astype(int) - picture()).mean() < 6


def test_a_turned_photograph_is_set_upright_and_transparency_becomes_white() -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(40, 60)).save(turned, "PNG", exif=exif)
    assert read_image(turned.getvalue()).shape == (60, 40, 3)
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 10, 10, 0)).save(clear, "PNG")
    assert (read_image(clear.getvalue()) == 255).all()


def test_an_image_bomb_is_refused_before_its_pixels_are_decoded() -> None:
    for side in (6000, 60_000):
        with pytest.raises(MediaError, match="image"):
            read_image(png_header_of(side, side))
    with pytest.raises(MediaError, match="5000x4000 pixels; the limit is 16777216"):
        read_image(png_header_of(5000, 4000))


def test_a_jpeg_of_endless_scans_is_refused_before_it_costs_a_pass_over_the_pixels_for_each() -> None:
    out = io.BytesIO()
    Image.fromarray(picture(512, 512)).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    assert read_image(whole).shape == (512, 512, 3)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    with pytest.raises(MediaError, match="more than 100 scans"):
        read_image(whole[:-2] + last * 5000 + b"\xff\xd9")


def test_a_thumbnail_inside_a_jpeg_is_no_scan_of_it() -> None:
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "JPEG")
    whole = out.getvalue()
    comment = (b"\xff\xda\x00\x02" * 200)[: 2**16 - 3]
    inside = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    assert read_image(whole[:2] + inside + whole[2:]).shape == (64, 64, 3)


def test_a_wav_keeps_its_samples() -> None:
    data = write_audio(tone(), 8000)
    assert sniff(data) == "audio/wav"
    samples, rate = read_audio(data)
    assert rate == 8000
    assert np.abs(samples - tone()).max() < 1e-4


@pytest.mark.parametrize(
    ("container", "codec", "layout", "mime"),
    [
        ("flac", "flac", "mono", "audio/flac"),
        ("ogg", "libopus", "stereo", "audio/ogg"),
        ("mp3", "libmp3lame", "mono", "audio/mpeg"),
        ("mp4", "aac", "stereo", "audio/mp4"),
        ("webm", "libopus", "mono", "audio/webm"),
    ],
)
def test_other_sound_formats_are_heard_at_the_codecs_rate(container: str, codec: str, layout: str, mime: str) -> None:
    data = encoded(tone(600, 1.0, 48000), 48000, container, codec, layout)
    assert sniff(data) == mime
    heard = fit_for_codec(data, Modality.AUDIO, (6144,), 8000.0)
    assert heard.shape == (6144,)
    assert heard.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(heard[1000:5000]))
    assert abs(np.argmax(spectrum) * 8000 / 4000 - 600) < 4


def test_a_short_sound_is_filled_with_silence_and_a_long_one_cut() -> None:
    assert fit_audio(tone(seconds=0.5), 8000, 6144, 8000)[4000:].max() == 0
    assert len(fit_audio(tone(seconds=2.0), 8000, 6144, 8000)) == 6144


def test_resampling_keeps_pitch_and_loudness() -> None:
    heard = fit_audio(tone(500, 1.0, 48000), 48000, 6144, 8000)
    assert np.abs(heard[500:5500] - tone(500)[500:5500]).max() < 0.02


def test_a_video_is_h264_that_browsers_play_with_its_index_in_front() -> None:
    clip = moving_square()
    data = write_video(clip, 8)
    assert sniff(data) == "video/mp4"
    assert boxes(data).index(b"moov") < boxes(data).index(b"mdat")
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == 1.0
    frames, fps = read_video(data)
    assert frames.shape == clip.shape
    assert fps == pytest.approx(8)
    assert np.abs(frames.astype(int) - clip).mean() < 2


def test_equal_frames_give_equal_files() -> None:
    assert write_video(moving_square(), 8) == write_video(moving_square(), 8)


def test_frames_are_sampled_evenly_over_the_duration_of_a_longer_video() -> None:
    clip = np.stack([np.full((64, 64, 3), 10 * index, dtype=np.uint8) for index in range(24)])
    for data in (write_video(clip, 24), webm(clip, 24)):
        frames, _ = read_video(data, frames=8)
        assert [round(float(frame.mean()) / 10) for frame in frames] == [1, 4, 7, 10, 13, 16, 19, 22]


def test_what_a_codec_drew_comes_back_to_it() -> None:
    image = picture().astype(np.float32) / 255
    data, mime = render(image, Modality.IMAGE)
    assert mime == "image/png"
    assert read_image(data).shape == (256, 256, 3)
    assert np.abs(fit_for_codec(data, Modality.IMAGE, image.shape) - image).max() < 1e-6
    clip = moving_square(side=64).astype(np.float32) / 255
    data, mime = render(clip, Modality.VIDEO, 8.0)
    assert mime == "video/mp4"
    assert np.abs(fit_for_codec(data, Modality.VIDEO, clip.shape) - clip).mean() < 0.01
    data, mime = render(tone(), Modality.AUDIO, 8000.0)
    assert mime == "audio/wav"
    assert np.abs(fit_for_codec(data, Modality.AUDIO, (6144,), 8000.0) - tone()).max() < 1e-4


def test_sizes_lengths_and_frames_over_the_limit_are_named_with_the_limit() -> None:
    small = MediaLimits(
        max_image_bytes=10, max_seconds=0.5, max_frames=4, max_frame_pixels=64 * 64, max_decoded_bytes=2 * 64 * 64 * 3
    )
    with pytest.raises(MediaError, match="the limit is 10"):
        read_image(write_image(picture()), small)
    with pytest.raises(MediaError, match=r"longer than 0\.5 seconds"):
        read_audio(write_audio(tone(), 8000), small)
    with pytest.raises(MediaError, match="256x256 pixels a frame; the limit is 4096"):
        read_video(write_video(moving_square(), 8), small)
    with pytest.raises(MediaError, match="more than 4 frames"):
        read_video(write_video(moving_square(side=64), 8), small)
    with pytest.raises(MediaError, match=r"lasts 1 seconds; the limit is 0\.5"):
        read_video(write_video(moving_square(3, 64), 3), small)
    with pytest.raises(MediaError, match="too large to decode whole"):
        read_video(write_video(moving_square(3, 64), 30), small)


def test_broken_empty_and_foreign_files_are_refused() -> None:
    whole = write_video(moving_square(), 8)
    with pytest.raises(MediaError):
        read_video(whole[: len(whole) // 3])
    with pytest.raises(MediaError, match="cut short"):
        read_image(write_image(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[:2000])
    with pytest.raises(MediaError, match="empty"):
        read_audio(b"")
    with pytest.raises(MediaError, match="no samples"):
        read_audio(write_audio(np.zeros(0, dtype=np.float32), 8000))
    with pytest.raises(MediaError, match="none of the formats"):
        sniff(b"#EXTM3U\nfile:///etc/passwd\n")
    with pytest.raises(MediaError, match="image/png file, not audio"):
        read_audio(write_image(picture()))
    with pytest.raises(MediaError, match="audio/wav file, not an image"):
        read_image(write_audio(tone(), 8000))
    with pytest.raises(MediaError, match="no sound"):
        read_audio(whole)
    with pytest.raises(MediaError, match="no video"):
        read_video(encoded(tone(), 8000, "mp4", "aac"))


def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(7)
    readers = [(write_image(picture()), read_image), (write_audio(tone(), 8000), read_audio)]
    for data, reader in [*readers, (write_video(moving_square(side=64), 8), read_video)]:
        for _ in range(60):
            damaged = bytearray(data)
            for at in rng.integers(0, min(len(data), 1200), 6):
                damaged[at] = rng.integers(0, 256)
            try:
                reader(bytes(damaged))  # type: ignore[operator]
            except MediaError:
                continue
