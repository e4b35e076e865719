"""Codes become files that play, files become codes, and bad input is told what is wrong with it."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from anyloop.media.formats import read_audio, read_image, read_video, write_audio, write_image, write_video
from anyloop.media.store import MediaStore, to_proto
from protos.anyloop.v1 import decoder_pb2, types_pb2
from protos.anyloop.v1.decoder_pb2_grpc import DecoderServiceStub
from services.decoders.program import DecoderProgram
from services.decoders.server import DecoderServer
from services.hosts.interface import HostError
from tests.services.running_replica import decoders, settings_for

IMAGE, AUDIO, VIDEO = types_pb2.MODALITY_IMAGE, types_pb2.MODALITY_AUDIO, types_pb2.MODALITY_VIDEO


@pytest.fixture
def store(tmp_path: Path) -> MediaStore:
    return MediaStore(f"file://{tmp_path / 'media'}")


@pytest.fixture
async def stub(tmp_path: Path, random_omni: Path, store: MediaStore) -> AsyncIterator[DecoderServiceStub]:
    async with decoders(settings_for(tmp_path, random_omni), store) as (stub, _):
        yield stub


async def decode(stub: DecoderServiceStub, modality: int, codes: list[int]) -> types_pb2.MediaRef:
    return (await stub.Decode(decoder_pb2.DecodeRequest(modality=modality, codes=codes))).media


async def test_codes_become_media_that_browsers_play(stub: DecoderServiceStub, store: MediaStore) -> None:
    image = await decode(stub, IMAGE, list(range(16)))
    assert (image.mime_type, image.modality) == ("image/png", IMAGE)
    assert read_image(store.get(image.sha256)).shape == (256, 256, 3)
    audio = await decode(stub, AUDIO, list(range(12)))
    assert audio.mime_type == "audio/wav"
    samples, rate = read_audio(store.get(audio.sha256))
    assert (samples.shape, rate) == ((6144,), 8000)
    video = await decode(stub, VIDEO, list(range(16)))
    assert video.mime_type == "video/mp4"
    frames, fps = read_video(store.get(video.sha256))
    assert (frames.shape, fps) == ((8, 256, 256, 3), 8.0)


async def test_equal_codes_are_stored_once(stub: DecoderServiceStub) -> None:
    assert await decode(stub, VIDEO, [3] * 16) == await decode(stub, VIDEO, [3] * 16)


async def test_stored_and_inline_media_of_any_size_are_encoded_alike(
    stub: DecoderServiceStub, store: MediaStore
) -> None:
    rng = np.random.default_rng(0)
    files = {
        IMAGE: (write_image(rng.integers(0, 255, (100, 180, 3), dtype=np.uint8)), "image/png", 16),
        AUDIO: (write_audio(rng.uniform(-1, 1, 30_000).astype(np.float32), 22050), "audio/wav", 12),
        VIDEO: (write_video(rng.integers(0, 255, (12, 96, 128, 3), dtype=np.uint8), 12), "video/mp4", 16),
    }
    for modality, (data, mime_type, length) in files.items():
        inline = types_pb2.InlineMedia(mime_type=mime_type, data=data)
        stored = to_proto(store.put(data, mime_type))
        answers = [
            await stub.Encode(decoder_pb2.EncodeRequest(modality=modality, inline_media=inline)),
            await stub.Encode(decoder_pb2.EncodeRequest(modality=modality, media=stored)),
        ]
        assert answers[0] == answers[1]
        assert len(answers[0].codes) == length
        assert len(answers[0].codec_digest) == 64


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), str(caught.value.details())


async def test_bad_requests_are_told_what_to_do(stub: DecoderServiceStub) -> None:
    text = types_pb2.InlineMedia(mime_type="image/png", data=b"not a picture")
    code, details = await refusal(stub.Encode(decoder_pb2.EncodeRequest(modality=IMAGE, inline_media=text)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "send PNG, JPEG, WebP or GIF" in details
    code, details = await refusal(stub.Encode(decoder_pb2.EncodeRequest(modality=IMAGE)))
    assert (code, "inline_media" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    missing = types_pb2.MediaRef(sha256="0" * 64)
    code, details = await refusal(stub.Encode(decoder_pb2.EncodeRequest(modality=IMAGE, media=missing)))
    assert (code, "upload it first" in details) == (grpc.StatusCode.NOT_FOUND, True)
    code, details = await refusal(stub.Decode(decoder_pb2.DecodeRequest(modality=9, codes=[1])))
    assert (code, "modality 9 is unknown" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, details = await refusal(stub.Decode(decoder_pb2.DecodeRequest(modality=IMAGE, codes=[1, 2])))
    assert (code, "takes 16 whole numbers, not 2" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, details = await refusal(stub.Decode(decoder_pb2.DecodeRequest(modality=IMAGE, codes=[128] * 16)))
    assert (code, "[0, 128)" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_a_modality_that_this_replica_lacks_is_unimplemented(store: MediaStore) -> None:
    server = DecoderServer(None, store, {})  # type: ignore[arg-type]
    with pytest.raises(Exception, match="not image: ask another one"):
        await server.Decode(decoder_pb2.DecodeRequest(modality=IMAGE), None)  # type: ignore[arg-type]


def test_the_program_encodes_what_it_decoded_to_the_same_codes(random_omni: Path) -> None:
    program = DecoderProgram(random_omni / "codecs" / "audio")
    status = program.handle({"op": "status"})
    assert (status["modality"], status["shape"], status["code_length"]) == ("audio", [6144], 12)
    array = program.handle({"op": "decode", "codes": list(range(12))})["data"]
    assert array.shape == (6144,)
    as_bytes = program.handle({"op": "encode", "data": array.tobytes()})
    assert as_bytes == program.handle({"op": "encode", "data": array})
    for bad in ({"op": "encode", "data": b"abc"}, {"op": "encode"}, {"op": "sing"}, {"op": "decode", "codes": ["a"]}):
        with pytest.raises(HostError, match="INVALID_ARGUMENT"):
            program.handle(bad)
