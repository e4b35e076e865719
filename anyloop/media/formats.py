"""Media files to arrays and back: PNG, JPEG, WebP and GIF by Pillow, sound and video containers by PyAV.

Readers trust nothing in a file. The container is chosen by the bytes, never probed for (a probe may open playlists that
name other files), sizes are checked before pixels are decoded, and every failure is a MediaError.
Writers give what browsers play: PNG, WAV (PCM 16), MP4 (H.264, yuv420p, index before the data).
"""

import io
import re
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from anyloop.media.limits import MediaError, MediaLimits
from anyloop.modality import Modality

LIMITS = MediaLimits()
MIME_TYPES = {Modality.IMAGE: "image/png", Modality.AUDIO: "audio/wav", Modality.VIDEO: "video/mp4"}

_PILLOW = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
_DEMUXERS = {
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "audio/mpeg": "mp3",
    "audio/mp4": "mov",
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "audio/webm": "matroska",
    "video/webm": "matroska",
}
# JPEG: a marker is 0xFF and a byte that is neither stuffing, nor fill, nor one without a length (RSTn, TEM, SOI).
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MOST_SCANS = 100  # encoders write up to some tens
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")


def sniff(data: bytes) -> str:
    """The MIME type that the bytes themselves show. Raises MediaError when they are none of the supported formats."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "audio/wav"
    if data.startswith(b"fLaC"):
        return "audio/flac"
    if data.startswith(b"OggS"):
        return "audio/ogg"
    if data.startswith(b"ID3") or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2):
        return "audio/mpeg"
    if data[4:8] == b"ftyp" and data[8:12] not in _STILL_BRANDS:
        return _audio_or_video(data, "mp4")
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return _audio_or_video(data, "webm")
    raise MediaError(
        "the file is none of the formats read here: send PNG, JPEG, WebP or GIF images, "
        "WAV, FLAC, MP3, Ogg or M4A sound, MP4 or WebM video"
    )


def _audio_or_video(data: bytes, subtype: str) -> str:
    """Both containers carry either; the streams decide. One that does not open counts as video; its reader refuses."""
    try:
        with av.open(io.BytesIO(data), format=_DEMUXERS[f"video/{subtype}"]) as container:
            only_sound = not container.streams.video and bool(container.streams.audio)
    except Exception:  # PyAV raises many kinds on broken files
        only_sound = False
    return f"audio/{subtype}" if only_sound else f"video/{subtype}"


@contextmanager
def _reading(modality: Modality) -> Iterator[None]:
    """Makes one MediaError of whatever a decoder raises on hostile bytes."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise MediaError(f"the {modality} file is broken or cut short and cannot be decoded ({reason})") from error


def _container(data: bytes, modality: Modality) -> Any:
    kind = sniff(data)
    if kind not in _DEMUXERS:
        raise MediaError(f"this is a {kind} file, not {modality}: send it as the modality it is")
    return av.open(io.BytesIO(data), format=_DEMUXERS[kind])


def _check_scans(data: bytes) -> None:
    """A progressive JPEG may repeat scans of some bytes, each of which costs a pass over all pixels. Raises MediaError.

    Only the segments of the first picture count: thumbnails and further pictures lie inside or behind it.
    """
    at, scans = 2, 0
    while found := _MARKER.search(data, at):
        marker, at = found.group()[1], found.end()
        if marker == _END_OF_IMAGE:
            return
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > _MOST_SCANS:
                raise MediaError(f"the image has more than {_MOST_SCANS} scans: save it again as an ordinary JPEG")
        at += int.from_bytes(data[at : at + 2], "big")


def read_image(data: bytes, limits: MediaLimits = LIMITS) -> np.ndarray:
    """uint8 `[height, width, 3]`: upright, first frame, transparency on white."""
    limits.check_size(data, Modality.IMAGE)
    kind = sniff(data)
    if kind not in _PILLOW:
        raise MediaError(f"this is a {kind} file, not an image: send it as the modality it is")
    if kind == "image/jpeg":
        _check_scans(data)
    with _reading(Modality.IMAGE), Image.open(io.BytesIO(data), formats=[_PILLOW[kind]]) as image:
        if image.width * image.height > limits.max_pixels:
            raise MediaError(
                f"the image has {image.width}x{image.height} pixels; the limit is {limits.max_pixels}: scale it down"
            )
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.asarray(upright.convert("RGB"), dtype=np.uint8)


def read_audio(data: bytes, limits: MediaLimits = LIMITS) -> tuple[np.ndarray, int]:
    """float32 `[time]` in [-1, 1], mixed down to one channel, and its rate in Hz."""
    limits.check_size(data, Modality.AUDIO)
    pieces: list[np.ndarray] = []
    length = 0
    with _reading(Modality.AUDIO), _container(data, Modality.AUDIO) as container:
        if not container.streams.audio:
            raise MediaError("the file holds no sound: send WAV, FLAC, MP3, Ogg or M4A")
        rate = int(container.streams.audio[0].rate)
        if not 1000 <= rate <= 384_000:
            raise MediaError(f"the sound has a rate of {rate} Hz; rates from 1000 to 384000 are read")
        mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in container.decode(audio=0):
            for piece in mono.resample(frame):
                samples = piece.to_ndarray().reshape(-1)
                pieces.append(samples)
                length += len(samples)
            if length > limits.max_seconds * rate or length * 4 > limits.max_decoded_bytes:
                raise MediaError(f"the sound is longer than {limits.max_seconds:g} seconds: cut it")
        pieces.extend(piece.to_ndarray().reshape(-1) for piece in mono.resample(None))
    if not length:
        raise MediaError("the file holds no samples: send a sound that is not empty")
    samples = np.concatenate(pieces).astype(np.float32)
    return np.clip(np.nan_to_num(samples), -1.0, 1.0), rate


def read_video(data: bytes, limits: MediaLimits = LIMITS, frames: int | None = None) -> tuple[np.ndarray, float]:
    """uint8 `[frames, height, width, 3]` and frames per second.

    With `frames`, that many, the middle ones of equal parts of the duration: only they are held in memory.
    """
    limits.check_size(data, Modality.VIDEO)
    with _reading(Modality.VIDEO):
        count, seconds = _measure(data, limits)
        picked: list[np.ndarray] = []
        moments = [(i + 0.5) * seconds / frames for i in range(frames)] if frames else []
        with _container(data, Modality.VIDEO) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(limits.max_frame_pixels)}
            begin: float | None = None
            shown: Any = None
            for index, frame in enumerate(container.decode(stream)):
                _check_frame(frame.width, frame.height, limits)
                if index >= limits.max_frames:
                    raise MediaError(f"the video has more than {limits.max_frames} frames: cut it")
                if frames is None:
                    picked.append(_pixels(frame, picked, limits))
                    continue
                at = frame.time if frame.time is not None else index * seconds / count
                begin = at if begin is None else begin
                while len(picked) < frames and shown is not None and begin + moments[len(picked)] < at:
                    picked.append(_pixels(shown, picked, limits))
                shown = frame
            while shown is not None and len(picked) < (frames or 0):
                picked.append(_pixels(shown, picked, limits))
    if not picked:
        raise MediaError("the file holds no frames: send a video that is not empty")
    return np.stack(picked), len(picked) / seconds


def _measure(data: bytes, limits: MediaLimits) -> tuple[int, float]:
    """Frames and seconds of a video, from its packets: nothing is decoded, and headers are not believed."""
    with _container(data, Modality.VIDEO) as container:
        if not container.streams.video:
            raise MediaError("the file holds no video: send MP4 (H.264) or WebM")
        stream = container.streams.video[0]
        _check_frame(stream.codec_context.width, stream.codec_context.height, limits)
        count = 0
        first: int | None = None
        last, ending = 0, 0
        for packet in container.demux(stream):
            if packet.pts is None or not packet.size:
                continue
            count += 1
            if count > limits.max_frames:
                raise MediaError(f"the video has more than {limits.max_frames} frames: cut it")
            first = packet.pts if first is None else min(first, packet.pts)
            last = max(last, packet.pts)
            ending = max(ending, packet.pts + (packet.duration or 0))
        if not count or first is None:
            raise MediaError("the file holds no frames: send a video that is not empty")
        if ending == last:  # WebM may leave the duration of the last frame out
            ending = last + ((last - first) // (count - 1) if count > 1 else 0)
        seconds = float((ending - first) * (stream.time_base or Fraction(1)))
        if seconds <= 0:
            seconds = count / float(stream.average_rate or 1)
        if seconds > limits.max_seconds:
            raise MediaError(f"the video lasts {seconds:.0f} seconds; the limit is {limits.max_seconds:g}: cut it")
        return count, seconds


def _check_frame(width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.max_frame_pixels:
        raise MediaError(
            f"the video has {width}x{height} pixels a frame; the limit is {limits.max_frame_pixels}: scale it down"
        )


def _pixels(frame: Any, picked: list[np.ndarray], limits: MediaLimits) -> np.ndarray:
    """uint8 `[height, width, 3]`, of the first frame's size (a stream may change it), within the memory limit."""
    height, width = picked[0].shape[:2] if picked else (frame.height, frame.width)
    if (len(picked) + 1) * height * width * 3 > limits.max_decoded_bytes:
        raise MediaError("the video is too large to decode whole: make it shorter or scale it down")
    return np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height))


def write_image(array: np.ndarray) -> bytes:
    """PNG of uint8 `[height, width, 3]`. Equal arrays give equal bytes, here and in the other writers."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8), "RGB").save(out, "PNG")
    return out.getvalue()


def write_audio(samples: np.ndarray, rate: int) -> bytes:
    """WAV (PCM 16, mono) of float32 `[time]` in [-1, 1]."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes())
    return out.getvalue()


def write_video(frames: np.ndarray, fps: float) -> bytes:
    """MP4 (H.264, yuv420p, no B-frames) of uint8 `[frames, height, width, 3]`, sides even."""
    out = io.BytesIO()
    # `+faststart` reopens the file by its name, which memory has not; room kept at the front puts the index there too.
    options = {"moov_size": str(4096 + 64 * len(frames)), "fflags": "+bitexact"}
    with av.open(out, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"crf": "18", "preset": "veryfast", "bf": "0", "flags": "+bitexact"}
        stream.codec_context.thread_count = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels, dtype=np.uint8), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()
