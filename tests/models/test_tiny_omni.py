"""The shipped reference model is what its card says: small, safe to load, able to see, draw, repair and compare."""

import json

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from anyloop.config import TINY_OMNI
from anyloop.media.fit import fit_for_codec, render
from anyloop.modality import MEDIA_MODALITIES
from anyloop.sequence import Sequencer
from anyloop.world import SUBTASKS, tasks
from anyloop.world.pretrain.codecs import KIND, from_codec, load_codecs, to_codec
from anyloop.world.pretrain.skills import Skills


@pytest.fixture(scope="module")
def skills():
    model = Qwen3ForCausalLM.from_pretrained(TINY_OMNI).eval()
    return Skills(model, Sequencer.from_pretrained(TINY_OMNI), load_codecs(TINY_OMNI))


def test_it_ships_safetensors_alone_within_twelve_megabytes():
    files = [path for path in TINY_OMNI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert {path.parent.name for path in files if path.suffix == ".safetensors"} == {
        "tiny_omni",
        *map(str, MEDIA_MODALITIES),
    }


def test_its_card_states_data_time_and_success_per_subtask():
    card = (TINY_OMNI / "README.md").read_text()
    measured = json.loads((TINY_OMNI / "skills.json").read_text())
    for needed in ("**Data.**", "**Training.**", "minutes on", "held-out", *SUBTASKS):
        assert needed in card
    assert set(SUBTASKS) <= set(measured["success_heldout"])


@pytest.mark.parametrize("modality", MEDIA_MODALITIES, ids=str)
def test_its_codecs_carry_every_scene_of_the_world_past_the_judge(skills, modality):
    """Held-out combinations too, although the codecs were fitted to the train split alone."""
    rng = np.random.default_rng(0)
    codec = skills.codecs[modality]
    subtask = {"image": "T2I", "audio": "T2A", "video": "T2V"}[modality]
    for scene in KIND[modality].every():
        media = tasks.render(scene, rng)
        decoded = from_codec(modality, codec.decode(codec.encode(to_codec(modality, media[None])))[0])
        answer = tasks.Answer(**{str(modality): decoded})
        assert tasks.judge(tasks.Task(subtask, "", scene), answer).ok, scene


def test_it_leaves_room_for_alignment_on_combinations_it_never_saw(skills):
    success = skills.success("heldout", 25, seed=5)
    assert 0.40 <= success["mean"] <= 0.70
    assert min(success.values()) > 0.15


def test_it_repairs_what_is_criticised_rightly(skills):
    repaired = skills.repair("heldout", 20, seed=6, temperature=0)
    assert repaired["mean"] >= 0.85


@pytest.mark.parametrize("modality", MEDIA_MODALITIES, ids=str)
def test_a_file_has_the_codes_of_the_medium_it_was_made_from(skills, modality):
    """PNG, 16-bit WAV and lossy MP4 alike: the model reads what it was trained on."""
    rng = np.random.default_rng(1)
    codec = skills.codecs[modality]
    for scene in KIND[modality].every()[::5]:
        floats = to_codec(modality, tasks.render(scene, rng)[None])
        data, _ = render(floats[0].numpy(), modality, codec.config.rate)
        fitted = fit_for_codec(data, modality, tuple(codec.config.input_shape), codec.config.rate)
        assert codec.encode(torch.from_numpy(fitted)[None]).tolist() == codec.encode(floats).tolist(), scene
