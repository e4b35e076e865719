"""What a medium may cost to open, and the error for one that may not be opened."""

from dataclasses import dataclass

from anyloop.modality import Modality


class MediaError(ValueError):
    """The bytes are not a usable medium. The message is written for the person who sent them: it says what to do."""


@dataclass(frozen=True)
class MediaLimits:
    """Checked before and while decoding, so that a small file cannot become a large array."""

    max_image_bytes: int = 8 * 2**20
    max_audio_bytes: int = 16 * 2**20
    max_video_bytes: int = 32 * 2**20
    max_pixels: int = 4096 * 4096  # of a picture
    max_frame_pixels: int = 1920 * 1088  # of one video frame
    max_seconds: float = 60.0  # of sound or video
    max_frames: int = 1800
    max_decoded_bytes: int = 256 * 2**20  # of the array that a reader returns

    def max_bytes(self, modality: Modality) -> int:
        sizes = {
            Modality.IMAGE: self.max_image_bytes,
            Modality.AUDIO: self.max_audio_bytes,
            Modality.VIDEO: self.max_video_bytes,
        }
        return sizes[modality]

    def check_size(self, data: bytes, modality: Modality) -> None:
        """Raises MediaError when the file is empty or larger than its modality allows."""
        if not data:
            raise MediaError(f"the {modality} file is empty")
        if len(data) > self.max_bytes(modality):
            raise MediaError(
                f"the {modality} file has {len(data)} bytes; the limit is {self.max_bytes(modality)}: "
                "send a smaller one"
            )
