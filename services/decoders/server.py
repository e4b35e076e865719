"""DecoderService: files of three modalities to codes and back. The codecs run in the model host, the file work here."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np

from anyloop.config import Settings
from anyloop.media.fit import fit_for_codec, render
from anyloop.media.limits import MediaLimits
from anyloop.media.store import MediaStore, to_proto
from anyloop.modality import Modality
from protos.anyloop.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2
from services.hosts.interface import ModelHost
from services.rpc.errors import RpcError, invalid

SERVICE = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name
# Opening a file may hold a few hundred MB for a moment: more at once would not be faster, only larger.
FILES_AT_ONCE = 2


@dataclass(frozen=True)
class Codec:
    """What the host says about one codec."""

    model: str
    shape: tuple[int, ...]
    rate: float
    digest: str


def limits_from(settings: Settings) -> MediaLimits:
    return MediaLimits(
        max_image_bytes=settings.max_image_bytes,
        max_audio_bytes=settings.max_audio_bytes,
        max_video_bytes=settings.max_video_bytes,
    )


class DecoderServer(decoder_pb2_grpc.DecoderServiceServicer):
    """Build it with `open`. Serves the modalities whose codecs it was opened with."""

    def __init__(
        self, host: ModelHost, store: MediaStore, codecs: dict[Modality, Codec], limits: MediaLimits | None = None
    ) -> None:
        self._host = host
        self._store = store
        self._codecs = codecs
        self._limits = limits or MediaLimits()
        self._files = asyncio.Semaphore(FILES_AT_ONCE)

    @classmethod
    async def open(
        cls, host: ModelHost, store: MediaStore, modalities: Sequence[Modality], limits: MediaLimits | None = None
    ) -> "DecoderServer":
        """Asks the host for the shape of every codec. Raises HostError while one is not loaded."""
        codecs = {}
        for modality in modalities:
            model = f"decoder_{modality}"
            status = await host.call(model, {"op": "status"})
            codecs[modality] = Codec(model, tuple(status["shape"]), float(status["rate"]), str(status["digest"]))
        return cls(host, store, codecs, limits)

    async def Encode(
        self, request: decoder_pb2.EncodeRequest, context: grpc.aio.ServicerContext
    ) -> decoder_pb2.EncodeResponse:
        modality, codec = self._codec(request.modality)
        source = request.WhichOneof("source")
        if source is None:
            raise invalid("an encode request needs 'media' (a stored object) or 'inline_media' (the bytes)")
        async with self._files:
            if source == "media":
                data = await asyncio.to_thread(self._store.get, request.media.sha256)
            else:
                data = request.inline_media.data
            fit = partial(fit_for_codec, data, modality, codec.shape, codec.rate, self._limits)
            array = await asyncio.to_thread(fit)
        answer = await self._host.call(codec.model, {"op": "encode", "data": array}, timeout=context.time_remaining())
        return decoder_pb2.EncodeResponse(codes=answer["codes"], codec_digest=codec.digest)

    async def Decode(
        self, request: decoder_pb2.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> decoder_pb2.DecodeResponse:
        modality, codec = self._codec(request.modality)
        answer = await self._host.call(
            codec.model, {"op": "decode", "codes": list(request.codes)}, timeout=context.time_remaining()
        )
        stored = await asyncio.to_thread(self._store_file, answer["data"], modality, codec)
        return decoder_pb2.DecodeResponse(media=to_proto(stored), codec_digest=codec.digest)

    def _store_file(self, array: Any, modality: Modality, codec: Codec) -> Any:
        floats = np.frombuffer(array, dtype=np.float32) if isinstance(array, bytes) else np.asarray(array, np.float32)
        return self._store.put(*render(floats.reshape(codec.shape), modality, codec.rate))

    def _codec(self, number: int) -> tuple[Modality, Codec]:
        """Raises RpcError: INVALID_ARGUMENT on an unknown modality, UNIMPLEMENTED on one not served here."""
        names = {value: name for name, value in types_pb2.Modality.items()}
        name = names.get(number, "MODALITY_UNSPECIFIED").removeprefix("MODALITY_").lower()
        if name not in tuple(Modality):
            raise invalid(f"modality {number} is unknown: set IMAGE, AUDIO or VIDEO")
        modality = Modality(name)
        if modality not in self._codecs:
            served = ", ".join(self._codecs)
            raise RpcError(
                grpc.StatusCode.UNIMPLEMENTED, f"this replica decodes {served}, not {modality}: ask another one"
            )
        return modality, self._codecs[modality]
