"""The four modalities, by the names used in prompts, file layouts, metrics and REST."""

from enum import StrEnum


class Modality(StrEnum):
    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


MEDIA_MODALITIES = (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)
