"""Codecs: media arrays to codes and back.

`PatchVQ` is the codec of the reference model. The vector-quantised autoencoders of transformers were tried first: their
32-group norms force 32 channels at full resolution, some 36 GFLOP per 64x64x8 training video, hours on two cores, while
the reference world needs a codebook of a hundred patches. So this is the smallest module with the same
`encode`/`decode` shape: non-overlapping patches, a linear embedding, the nearest codebook entry, and the same embedding
transposed to decode.
It is a `PreTrainedModel`, so it saves, loads and ships like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

# Array layouts, by modality: image [height, width, 3], audio [time], video [frames, height, width, 3]; floats in
# [0, 1] for pixels and [-1, 1] for samples.


class PatchVQConfig(PretrainedConfig):
    """`input_shape` is the array of one medium; `patch_shape`, which divides it, is what one code stands for."""

    model_type = "anyloop_patch_vq"

    def __init__(
        self,
        modality: str = "image",
        input_shape: tuple[int, ...] = (64, 64, 3),
        patch_shape: tuple[int, ...] = (16, 16, 3),
        codebook_size: int = 128,
        embed_dim: int = 48,
        rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.modality = modality
        self.input_shape = list(input_shape)
        self.patch_shape = list(patch_shape)
        self.codebook_size = codebook_size
        self.embed_dim = embed_dim
        self.rate = rate  # samples per second (audio) or frames per second (video)
        super().__init__(**kwargs)

    @property
    def grid(self) -> list[int]:
        return [size // patch for size, patch in zip(self.input_shape, self.patch_shape, strict=True)]

    @property
    def code_length(self) -> int:
        length = 1
        for cells in self.grid:
            length *= cells
        return length


class PatchVQ(PreTrainedModel):
    config_class = PatchVQConfig
    config: PatchVQConfig
    main_input_name = "media"

    def __init__(self, config: PatchVQConfig) -> None:
        super().__init__(config)
        patch = 1
        for size in config.patch_shape:
            patch *= size
        self.mean = torch.nn.Parameter(torch.zeros(patch))
        self.embed = torch.nn.Linear(patch, config.embed_dim, bias=False)  # orthonormal rows: decoding is its transpose
        self.codebook = torch.nn.Embedding(config.codebook_size, config.embed_dim)
        self.post_init()

    def patches(self, media: torch.Tensor) -> torch.Tensor:
        """`[batch, *input_shape]` to `[batch, code_length, patch]`. Raises ValueError on another shape."""
        if list(media.shape[1:]) != self.config.input_shape:
            raise ValueError(f"this codec takes {self.config.input_shape} arrays, not {list(media.shape[1:])}")
        axes = len(self.config.input_shape)
        split = [media.shape[0]]
        for cells, size in zip(self.config.grid, self.config.patch_shape, strict=True):
            split += [cells, size]
        order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
        return media.reshape(split).permute(order).reshape(media.shape[0], self.config.code_length, -1)

    def unpatch(self, patches: torch.Tensor) -> torch.Tensor:
        """The inverse of `patches`."""
        axes = len(self.config.input_shape)
        folded = patches.reshape(patches.shape[0], *self.config.grid, *self.config.patch_shape)
        order = [0]
        for axis in range(axes):
            order += [1 + axis, 1 + axes + axis]
        return folded.permute(order).reshape(patches.shape[0], *self.config.input_shape)

    @torch.no_grad()
    def encode(self, media: torch.Tensor) -> torch.Tensor:
        """`[batch, *input_shape]` floats to `[batch, code_length]` codes."""
        hidden = self.embed(self.patches(media) - self.mean)
        distance = torch.cdist(hidden, self.codebook.weight[None].expand(hidden.shape[0], -1, -1))
        return distance.argmin(-1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """`[batch, code_length]` codes to `[batch, *input_shape]` floats, clipped to the range of the medium."""
        low = -1.0 if self.config.modality == "audio" else 0.0
        return self.unpatch(self.codebook(codes) @ self.embed.weight + self.mean).clamp(low, 1.0)
