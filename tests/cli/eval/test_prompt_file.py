import base64
import json
from pathlib import Path
from typing import Any

import pytest

from anyloop.cli.demo.asking import File
from anyloop.cli.eval.prompt_file import OwnPrompt, read_prompts
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.media.formats import write_image
from anyloop.modality import Modality
from tests.evaluation.pictures import DOT

PNG = write_image(DOT)


def read(folder: Path, *records: Any, seed: int = 0) -> list[OwnPrompt]:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in records))
    return read_prompts(path, seed)


def refusal(folder: Path, *records: Any) -> str:
    with pytest.raises(CommandError) as refused:
        read(folder, *records)
    assert refused.value.code == ExitCode.USAGE
    return str(refused.value)


def test_a_prompt_is_a_user_turn_with_its_files_first(tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(PNG)
    one, other = read(
        tmp_path,
        {"prompt": "What is it?", "image": "dot.png", "id": "dot", "group": "eyes", "modalities": ["text"]},
        "",
        {"prompt": "Sing."},
    )
    assert one.question.turns == (("user", (File(Modality.IMAGE, "image/png", PNG), "What is it?")),)
    assert (one.question.name, one.question.group, one.question.modalities) == ("dot", "eyes", (Modality.TEXT,))
    assert (other.question.name, other.question.group, other.question.modalities) == ("line 3", "prompts", ())
    assert one.votes is None


def test_messages_stand_as_rest_takes_them(tmp_path: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "So?"}],
        },
    ]
    (one,) = read(tmp_path, {"messages": messages})
    assert one.question.turns == (
        ("system", ("Be brief.",)),
        ("user", (File(Modality.IMAGE, "image/png", PNG), "So?")),
    )


def test_votes_are_shares_over_sets_of_modalities(tmp_path: Path) -> None:
    (one,) = read(tmp_path, {"prompt": "Draw.", "votes": {"image+text": 0.7, "image": 0.3}})
    assert one.votes == {frozenset({Modality.TEXT, Modality.IMAGE}): 0.7, frozenset({Modality.IMAGE}): 0.3}


def test_sampling_seeds_follow_the_seed_and_the_line(tmp_path: Path) -> None:
    seeds = [[one.question.seed for one in read(tmp_path, {"prompt": "a"}, {"prompt": "b"}, seed=s)] for s in (0, 0, 1)]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 4


def test_a_line_separator_of_unicode_is_no_end_of_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    assert read(tmp_path, json.dumps({"prompt": text}, ensure_ascii=False))[0].question.words == text


def test_of_a_media_type_only_the_bare_type_is_kept(tmp_path: Path) -> None:
    url = f'data:IMAGE/png;a="><script>;base64,{base64.b64encode(PNG).decode()}'
    content = [{"type": "image_url", "image_url": {"url": url}}]
    (one,) = read(tmp_path, {"messages": [{"role": "user", "content": content}]})
    assert one.question.files == (File(Modality.IMAGE, "image/png", PNG),)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "line 1: "),
        ("[1]", "a line is one JSON object"),
        ({"promt": "x"}, "unknown field 'promt'; known are"),
        ({}, "give 'prompt' or 'messages'"),
        ({"prompt": "x", "messages": []}, "give 'prompt' or 'messages'"),
        ({"prompt": "  "}, "says something"),
        ({"prompt": "x", "image": "none.png"}, "cannot read"),
        ({"prompt": "x", "image": "none"}, "no ending"),
        ({"prompt": "x", "audio": 3}, "named by the path"),
        ({"prompt": "x", "modalities": "text"}, "'modalities' is a list of names"),
        ({"prompt": "x", "modalities": ["smell"]}, "'smell' is no modality: use text, image, audio, video"),
        ({"prompt": "x", "votes": {"text": "many"}}, "votes are shares"),
        ({"prompt": "x", "votes": {"text": 0.9, "image": 0.2}}, "add up to 1 at most"),
        ({"messages": []}, "'messages' is a list of JSON objects"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role is one of system"),
        ({"messages": [{"role": "user", "content": ""}]}, "content is a text or a list"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "a content part is"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
                ]
            },
            "is a base64 data: URL",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}],
                    }
                ]
            },
            "is no base64",
        ),
    ],
    ids=range(19),
)
def test_what_is_wrong_is_told_with_the_line(tmp_path: Path, record: Any, said: str) -> None:
    told = refusal(tmp_path, record)
    assert said in told
    assert "line 1: " in told


def test_many_faults_are_told_at_once_but_not_all(tmp_path: Path) -> None:
    told = refusal(tmp_path, *["nonsense"] * 8)
    assert told.count("line ") == 5 + told.count("line 1 column")
    assert "(and 3 more lines)" in told


def test_a_name_that_stands_twice_a_file_of_nothing_and_no_file_are_refused(tmp_path: Path) -> None:
    assert "'a' stands twice" in refusal(tmp_path, {"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a"})
    assert "holds no prompts" in refusal(tmp_path, "", "  ")
    with pytest.raises(CommandError, match=r"Cannot read .*none\.jsonl: No such file"):
        read_prompts(tmp_path / "none.jsonl", 0)
