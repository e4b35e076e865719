"""What is exported trains where it should: TRL's DPOTrainer takes the preferences, its SFTTrainer the critiques."""

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.sequence import Sequencer
from tests.datasets.samples import png, said, write_jsonl

CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pairs of text, imported and exported."""
    monkeypatch.setenv("ANYLOOP_HOME", str(tmp_path / "home"))
    rows = [{"question": f"Shape {n}?", "response_1": "a red square", "response_2": "blue", **said()} for n in range(8)]
    write_jsonl(tmp_path / "data" / "t2t.jsonl", rows)
    runner = CliRunner()
    assert runner.invoke(app, ["import", "align-anything", str(tmp_path / "data")]).exit_code == 0
    result = runner.invoke(app, ["export", "--format", "trl", "--to", str(tmp_path / "out"), "--json"])
    assert json.loads(result.stdout)["rows"] == {"preference": 8, "critique": 16}
    return tmp_path / "out"


def tiny(model: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Sequencer.from_pretrained(model).tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<eos>"})
    tokenizer.chat_template = CHAT
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def options(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }


@pytest.mark.parametrize(("kind", "name"), [("dpo", "preference"), ("sft", "critique")])
def test_trl_trains_on_what_was_exported(exported: Path, model: Path, tmp_path: Path, kind: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL and what it imports
        from datasets import disable_progress_bars, load_dataset
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

        disable_progress_bars()
        rows = load_dataset(str(exported), name, split="train", cache_dir=str(tmp_path / "cache"))
        policy, tokenizer = tiny(model)
        settings = options(tmp_path / "trained")
        common = {"model": policy, "train_dataset": rows, "processing_class": tokenizer}
        if kind == "dpo":
            trainer = DPOTrainer(ref_model=copy.deepcopy(policy), args=DPOConfig(**settings), **common)
        else:
            trainer = SFTTrainer(args=SFTConfig(**settings), **common)
        trained = trainer.train()
    assert trained.global_step == 2
    assert math.isfinite(trained.training_loss)
    if kind == "dpo":  # reference and policy are still the same: -log sigmoid(0)
        assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("files", ["jsonl", "parquet"])
def test_images_of_a_prompt_are_where_trl_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    monkeypatch.setenv("ANYLOOP_HOME", str(tmp_path / "home"))
    row = {"question": "What is it?", "image": {"bytes": png()}, "response_1": "red", "response_2": "blue", **said()}
    write_jsonl(tmp_path / "data" / "ti2t.jsonl", [row])
    runner = CliRunner()
    assert runner.invoke(app, ["import", "align-anything", str(tmp_path / "data")]).exit_code == 0
    assert runner.invoke(app, ["export", "--to", str(tmp_path / "out"), "--files", files]).exit_code == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Image, List, disable_progress_bars, load_dataset
        from trl.data_utils import prepare_multimodal_messages

        disable_progress_bars()
        cache = str(tmp_path / "cache")
        rows = load_dataset(str(tmp_path / "out"), "preference_images", split="train", cache_dir=cache)
        (example,) = rows.cast_column("images", List(Image()))
        (message,) = prepare_multimodal_messages(example["prompt"], images=example["images"])
    image, text = message["content"]
    assert image["image"].size == (32, 32)
    assert text["text"] == "What is it?"
