"""The patch codec: shapes, exact patching, and a digest that names the weights."""

import pytest
import torch

from anyloop.models.codec import PatchVQ, PatchVQConfig
from anyloop.models.digest import weights_digest


def small_video_codec():
    torch.manual_seed(0)
    return PatchVQ(PatchVQConfig("video", (4, 8, 8, 3), (2, 4, 4, 3), codebook_size=7, embed_dim=5))


def test_patches_are_cut_and_put_back_exactly():
    codec, media = small_video_codec(), torch.rand(3, 4, 8, 8, 3)
    assert codec.patches(media).shape == (3, 8, 96)
    assert torch.equal(codec.unpatch(codec.patches(media)), media)


def test_the_first_patch_is_the_first_corner():
    codec, media = small_video_codec(), torch.rand(1, 4, 8, 8, 3)
    assert torch.equal(codec.patches(media)[0, 0], media[0, :2, :4, :4].reshape(-1))


def test_codes_are_stable_under_decode_and_encode():
    codec = small_video_codec()
    with torch.no_grad():  # an orthonormal embedding makes decoding its inverse
        codec.embed.weight.copy_(torch.linalg.qr(codec.embed.weight.T)[0].T)
        codec.mean.fill_(0.5)
        codec.codebook.weight.mul_(0.1)
    codes = torch.randint(7, (5, 8))
    assert torch.equal(codec.encode(codec.decode(codes)), codes)


def test_a_wrong_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\[4, 8, 8, 3\]"):
        small_video_codec().encode(torch.rand(1, 4, 8, 9, 3))


def test_a_codec_saves_and_loads(tmp_path):
    codec = small_video_codec()
    codec.save_pretrained(tmp_path)
    again = PatchVQ.from_pretrained(tmp_path)
    assert weights_digest(again.state_dict()) == weights_digest(codec.state_dict())
    assert again.config.code_length == 8


def test_the_digest_sees_one_bit_and_one_name():
    weights = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    digest = weights_digest(weights)
    assert digest == weights_digest(dict(reversed(weights.items())))
    assert digest != weights_digest({**weights, "a": torch.tensor([0.0, 0.0, 1e-30])})
    assert digest != weights_digest({"a2": weights["a"], "b": weights["b"]})
    assert digest != weights_digest({**weights, "a": torch.zeros(3, 1)})
