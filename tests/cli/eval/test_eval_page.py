import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from anyloop.cli.demo.asking import File
from anyloop.cli.eval.bars import bars
from anyloop.cli.media_tags import media_tag
from anyloop.evaluation.intervals import UNMEASURED, Estimate
from anyloop.modality import Modality
from anyloop.world import SUBTASKS
from tests.cli.eval.conftest import Evaluate
from tests.cli.eval.gateway import WorldGateway

_VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; collects what is on the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> tuple[str, Balanced]:
    text = path.read_text()
    page = Balanced()
    page.feed(text)
    assert page.open == []
    return text, page


def test_the_page_shows_everything_and_needs_nothing_else(
    evaluate: Evaluate, gateway: WorldGateway, tmp_path: Path
) -> None:
    gateway.is_right = lambda version, prompt, seed: version == "policy-000001"
    arguments = ["--prompts", 3, "--amu", 2, "--amg", 2, "--version", "policy-000001", "--against", "policy-000002"]
    assert evaluate(*arguments, "--out", tmp_path).exit_code == 0
    text, page = read(tmp_path / "eval.html")
    sources = [attributes["src"] for tag, attributes in page.tags if tag in ("img", "audio", "video")]
    assert {str(source).split(";")[0] for source in sources} == {"data:image/png", "data:audio/wav", "data:video/mp4"}
    assert "http" not in re.sub(r"base64,[^\"]*", "", text), "nothing is fetched from elsewhere"
    for subtask in SUBTASKS:
        assert f"<h3>{subtask} <small>3 / 0 of 3 without a fault" in text
    for words in ("Win rate of policy-000001 over policy-000002", "AMU", "AMG", "T2I · image colour", "selection α"):
        assert words in text


def test_words_of_a_model_are_no_markup(evaluate: Evaluate, gateway: WorldGateway, tmp_path: Path) -> None:
    gateway.other = "<script>alert(1)</script>"
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "<b>Hello</b>", "group": "<i>"}))
    assert evaluate("--prompts", path, "--out", tmp_path).exit_code == 0
    text, page = read(tmp_path / "eval.html")
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert "<b>Hello" not in text
    assert "&lt;script&gt;" in text
    assert "It should be red." in text, "what the critic said stands beside the answer"


def test_a_media_type_is_no_markup() -> None:
    for modality in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO):
        page = Balanced()
        page.feed(media_tag(File(modality, 'image/png"><script>alert(1)</script>', b"x")))
        ((_, attributes),) = page.tags
        assert str(attributes["src"]).startswith('data:image/png"><script>')


def test_bars_are_as_long_as_their_values_and_whiskers_as_their_intervals() -> None:
    svg = ElementTree.fromstring(bars({"a": [Estimate(0.5, 0.25, 0.75)], "b": [Estimate(1.0, 1.0, 1.0)]}, "x"))
    half, whole = (float(one.attrib["width"]) for one in svg.iter("rect"))
    assert whole == 2 * half
    assert [one.text for one in svg.iter("text")][-3:] == ["50% [25%, 75%]", "b", "100% [100%, 100%]"]
    assert svg.attrib["aria-label"] == "x"


def test_what_was_not_measured_has_no_bar_and_an_unsure_value_no_whisker() -> None:
    unsure = Estimate(5.0, UNMEASURED.low, UNMEASURED.high)
    svg = ElementTree.fromstring(bars({"a & b": [UNMEASURED, unsure]}, "x", most=10, form=".1f"))
    assert len(list(svg.iter("rect"))) == 1
    assert list(svg.iter("path")) == []
    assert [one.text for one in svg.iter("text")][-2:] == ["a & b", "5.0"]
