"""The model repository: what Triton reads, and nothing that ties it to one machine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from services.hosts.placement import triton_model
from services.triton.__main__ import main
from services.triton.repository import build_repository


def _config(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(), ModelConfig())


def test_the_repository_holds_policy_critique_and_the_codecs_in_one_process(tmp_path: Path) -> None:
    repository = build_repository(tmp_path)
    assert sorted(path.name for path in repository.iterdir()) == ["critique", "decoders", "policy"]
    programs = {
        path.parent.name: _config(path).parameters["programs"].string_value
        for path in repository.glob("*/config.pbtxt")
    }
    assert programs == {
        "policy": "policy",
        "critique": "critique",
        "decoders": "decoder_image,decoder_audio,decoder_video",
    }


def test_every_config_is_valid_decoupled_and_named_like_its_folder(tmp_path: Path) -> None:
    for path in build_repository(tmp_path).glob("*/config.pbtxt"):
        config = _config(path)
        assert config.name == path.parent.name
        assert config.backend == "python"
        assert config.model_transaction_policy.decoupled
        assert [(t.name, t.data_type, list(t.dims)) for t in [*config.input, *config.output]] == [
            ("PAYLOAD", DataType.TYPE_UINT8, [-1])
        ] * 2
        ast.parse((path.parent / "1" / "model.py").read_text())


def test_a_subset_of_the_codecs_can_be_served(tmp_path: Path) -> None:
    repository = build_repository(tmp_path, ["decoder_audio"])
    assert [path.name for path in repository.iterdir()] == ["decoders"]
    assert _config(repository / "decoders" / "config.pbtxt").parameters["programs"].string_value == "decoder_audio"


def test_no_file_names_a_folder_of_this_machine(tmp_path: Path) -> None:
    repository = build_repository(tmp_path)
    for path in repository.rglob("*.*"):
        if path.is_file():
            assert str(tmp_path) not in path.read_text()
            assert str(Path.cwd()) not in path.read_text()


def test_building_again_changes_nothing(tmp_path: Path) -> None:
    def files() -> dict[str, str]:
        return {str(path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}

    build_repository(tmp_path)
    before = files()
    build_repository(tmp_path)
    assert files() == before


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no such model: decoder_smell"):
        triton_model("decoder_smell")


def test_the_command_builds_without_starting_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--build-only", "--directory", str(tmp_path), "--model", "policy"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "models")
    assert (tmp_path / "models" / "policy" / "1" / "model.py").exists()
