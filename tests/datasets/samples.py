"""Small data sets as align-anything has them: real PNG, WAV and MP4 files, in all the forms that records hold."""

import functools
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

from anyloop.media.formats import write_audio, write_image, write_video


def png(shade: int = 200) -> bytes:
    pixels = np.full((32, 32, 3), 20, np.uint8)
    pixels[8:24, 8:24] = (shade, 30, 30)
    return write_image(pixels)


def tone(hertz: float = 440.0, seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    at = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * at)).astype(np.float32)


def wav(hertz: float = 440.0) -> bytes:
    return write_audio(tone(hertz), 16000)


@functools.cache  # the encoder's bytes are not always the same for frames as small as these
def mp4(shade: int = 200) -> bytes:
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:16, index : index + 8] = shade
    return write_video(frames, 8.0)


def seconds_of(data: bytes) -> float:
    with wave.open(io.BytesIO(data)) as file:
        return file.getnframes() / file.getframerate()


def said(**more: Any) -> dict[str, Any]:
    """What people say of a pair, as the records of the text subtasks hold it."""
    return {
        "overall_response": 1,
        "overall_textfeedback": "The first is short and right.",
        "text_critique_1": "Right.",
        "text_critique_2": "The colour is wrong.",
        "prompt_following_rate_1": 3,
        "prompt_following_rate_2": 1,
        "p_response": 1,
        **more,
    }


def records() -> dict[str, dict[str, Any]]:
    """One record of each subtask, under the name of its folder."""
    image, sound = {"bytes": png(), "path": None}, {"array": tone(), "sampling_rate": 16000}
    words = {"response_1": "a red square", "response_2": "a blue square"}
    return {
        "text-to-text": {"question": "Name a shape.", **words, **said()},
        "text-image-to-text": {"question": "What is it?", "image": image, **words, **said()},
        "text-image-to-text-image": {
            "question": "Make it blue.",
            "image": image,
            **words,
            "output_image_1": {"bytes": png(90), "path": None},
            "output_image_2": {"bytes": png(40), "path": None},
            **said(),
        },
        "text-to-image": {
            "prompt": "Draw a square.",
            "image_1": {"bytes": png(60), "path": None},
            "image_2": {"bytes": png(250), "path": None},
            "image_1_model": "sd",
            "image_2_model": "flux",
            "overall_image": 2,
            "prompt_following_rate_1": 0,
            "prompt_following_rate_2": 2,
        },
        "text-audio-to-text": {"prompt": "What is heard?", "audio_path": sound, **words, **said()},
        "text-to-audio": {
            "prompt": "Play a tone.",
            "response_1": {"bytes": wav(300), "path": "a.wav"},
            "response_2": {"bytes": wav(600), "path": "b.wav"},
            "res_1_from": "audioldm",
            "res_2_from": "tango",
            "text_1_feedback": "Too low.",
            "text_2_feedback": "Good.",
            "overall_audio": 2,
            "audio_quality_rate_1": 1,
            "audio_quality_rate_2": 3,
            "o_audio": 2,
            "refine_prompt": "Play a clear tone.",
            "reasoning": "it was vague",
        },
        "text-to-video": {
            "prompt": "Show a moving square.",
            "video_1": {"bytes": mp4(200), "path": None},
            "video_2": {"bytes": mp4(100), "path": None},
            "overall_video": 1,
            "temporal_consistency_rate_1": 3,
            "temporal_consistency_rate_2": 0,
        },
        "text-video-to-text": {
            "prompt": "<video> What moves?",
            "video_path": "./videos/one.mp4",
            "model_1": "a",
            "model_2": "b",
            **words,
            **said(),
        },
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Bytes as base64 in the struct that `datasets` has for media, arrays as lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(_plain(row)) + "\n" for row in rows))
    return path


def write_all(folder: Path) -> Path:
    """Each subtask's record as a JSONL file in a folder of its name, and the video that one of them names."""
    for name, row in records().items():
        write_jsonl(folder / name / "train.jsonl", [row])
    videos = folder / "text-video-to-text" / "videos"
    videos.mkdir()
    (videos / "one.mp4").write_bytes(mp4())
    return folder


def _plain(value: Any) -> Any:
    import base64

    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.tolist() if isinstance(value, np.ndarray) else value
