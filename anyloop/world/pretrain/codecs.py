"""Fits the three codecs to the world: k-means over patches, the codebook kept in their principal subspace."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from anyloop.modality import Modality
from anyloop.models.codec import PatchVQ, PatchVQConfig
from anyloop.world import tasks
from anyloop.world.render.clip import FPS, FRAMES
from anyloop.world.render.picture import SIDE
from anyloop.world.render.sound import LENGTH, RATE
from anyloop.world.scenes import Clip, Picture, Scene, Sound

# Entries per codec. A video code tells shape, colour, size, and in which frames it stands in the cell: 144 of them.
CODEBOOK = {Modality.IMAGE: 128, Modality.AUDIO: 128, Modality.VIDEO: 192}
_OUT_OF_REACH = 1e4
_FRAME = 512  # samples of one audio code


def codec_config(modality: Modality) -> PatchVQConfig:
    if modality is Modality.IMAGE:
        return PatchVQConfig("image", (SIDE, SIDE, 3), (16, 16, 3), CODEBOOK[modality])
    if modality is Modality.AUDIO:
        return PatchVQConfig("audio", (LENGTH,), (_FRAME,), CODEBOOK[modality], rate=RATE)
    return PatchVQConfig(
        "video", (FRAMES, SIDE, SIDE, 3), (FRAMES, 16, 16, 3), CODEBOOK[modality], embed_dim=80, rate=FPS
    )


KIND = {Modality.IMAGE: Picture, Modality.AUDIO: Sound, Modality.VIDEO: Clip}


def to_codec(modality: Modality, media: np.ndarray) -> torch.Tensor:
    """World arrays (uint8 pixels or float samples) to the floats that the codec takes."""
    tensor = torch.from_numpy(np.ascontiguousarray(media)).float()
    return tensor if modality is Modality.AUDIO else tensor / 255


def from_codec(modality: Modality, media: torch.Tensor) -> np.ndarray:
    """The inverse of `to_codec`."""
    array = media.numpy()
    return array if modality is Modality.AUDIO else (array * 255).round().astype(np.uint8)


def fit_codec(modality: Modality, rng: np.random.Generator, progress: Callable[[str], None]) -> PatchVQ:
    """A codec fitted to media of the train split alone, a third of the pictures with jitter.

    Sounds and videos have none: detuned notes have every phase, shifted clips every offset, and a small codebook that
    tries to hold them blurs the world it is for.
    """
    kind: type[Scene] = KIND[modality]
    model = PatchVQ(codec_config(modality))
    jitters = (0.0, 0.0, 0.6) if modality is Modality.IMAGE else (0.0, 0.0)
    media = [tasks.render(scene, rng, jitter) for scene in kind.of_split("train") for jitter in jitters]
    patches = model.patches(to_codec(modality, np.stack(media))).flatten(0, 1)
    # Centre and keep the directions of largest variance: k-means there costs a tenth and loses nothing.
    mean = patches.mean(0)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    subset = patches[torch.randperm(len(patches), generator=generator)[:6000]] - mean
    _, _, directions = torch.linalg.svd(subset, full_matrices=False)
    basis = directions[: model.config.embed_dim]
    codebook = _kmeans((patches - mean) @ basis.T, CODEBOOK[modality], generator)
    with torch.no_grad():
        model.embed.weight.copy_(basis)
        model.mean.copy_(mean)
        model.codebook.weight.copy_(codebook)
    error = model.decode(model.encode(to_codec(modality, np.stack(media[:64])))) - to_codec(
        modality, np.stack(media[:64])
    )
    clean = np.stack([tasks.render(scene, rng) for scene in kind.of_split("train") for _ in range(4)])
    retire_unused(model, to_codec(modality, clean))
    progress(f"{modality} codec: {len(patches)} patches, RMS error {error.square().mean().sqrt():.4f}")
    return model.eval()


@torch.no_grad()
def retire_unused(model: PatchVQ, media: torch.Tensor) -> int:
    """Moves the entries that none of `media` uses out of reach, and returns how many stay.

    Spare entries are twins of used ones: the least noise of a compressed file would choose a twin, a code that the
    language model has never seen.
    """
    used = torch.bincount(model.encode(media).flatten(), minlength=model.config.codebook_size) > 0
    model.codebook.weight[~used] = _OUT_OF_REACH
    return int(used.sum())


def _kmeans(points: torch.Tensor, clusters: int, generator: torch.Generator, steps: int = 25) -> torch.Tensor:
    """Lloyd's iterations from a k-means++ start; `[clusters, dim]` centres."""
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    nearest = (points - centres[0]).square().sum(1)
    while len(centres) < clusters:
        total = nearest.sum()
        weights = nearest if total > 1e-6 else torch.ones_like(nearest)
        # float64 sums: multinomial refuses more than 2**24 categories, and rounding must not decide ties
        chosen = torch.multinomial((weights / weights.sum()).double(), 1, generator=generator)
        centres = torch.cat([centres, points[chosen]])
        nearest = torch.minimum(nearest, (points - centres[-1]).square().sum(1))
    for _ in range(steps):
        assigned = torch.cat([torch.cdist(part, centres).argmin(1) for part in points.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
        counts = torch.bincount(assigned, minlength=clusters)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def load_codecs(directory: Path) -> dict[Modality, PatchVQ]:
    """The codecs of a model directory."""
    return {
        modality: PatchVQ.from_pretrained(directory / "codecs" / str(modality)).eval()
        for modality in KIND
        if (directory / "codecs" / str(modality)).is_dir()
    }
