import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

from anyloop.cli.demo.curve import learning_curve
from anyloop.cli.demo.figures import figures
from anyloop.cli.demo.page import page
from anyloop.cli.demo.results import Results
from anyloop.world import SUBTASKS

_VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Tags in order, with every opened one closed, and what `src` and `href` point to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _outline(html: str) -> Outline:
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    return outline


def test_the_figures_are_json_without_nan(results: Results) -> None:
    document = json.loads(json.dumps(figures(results), allow_nan=False))
    summary = document["summary"]
    assert summary["mean_before"] == 0.0
    assert summary["mean_after"] == 0.5
    assert summary["points_gained"] == 50.0
    assert summary["subtasks_improved"] == list(SUBTASKS)
    assert (summary["feedback_events"], summary["feedback_events_used"]) == (32, 31)
    assert [r["feedback_events_used"] for r in document["rounds"]] == [16, 15]
    assert summary["promoted"] == ["policy-000001"]
    assert (summary["requests_served_in_swaps"], summary["requests_failed_in_swaps"]) == (9, 0)
    assert summary["longest_swap_stall_seconds"] == 0.0031
    assert document["rounds"][1]["decision"] == "rejected"
    assert document["rounds"][1]["swap"] is None
    assert document["rounds"][1]["seconds"]["learn"] is None
    assert document["criticised_prompts_asked_again"]["T2V"] == {"asked": 2, "right_now": 1}


def test_the_page_says_what_was_learned_from_not_what_was_posted(results: Results) -> None:
    html = page(results)
    assert "<b>31 of 32</b><span>critiques learned from" in html
    assert "<td>16</td>" in html
    assert "<td>15 of 16</td>" in html


def test_the_page_needs_nothing_from_elsewhere(results: Results) -> None:
    outline = _outline(page(results))
    assert outline.links
    assert all(link.startswith("data:") for link in outline.links)
    assert "script" not in outline.tags


def test_the_page_shows_pictures_and_plays_sounds_and_videos(results: Results) -> None:
    tags = _outline(page(results)).tags
    # Of each subtask two pairs: T2I shows 4 pictures, TI2TI 4 and 2 sources, TI2T 2 sources; likewise for the others.
    assert (tags.count("img"), tags.count("audio"), tags.count("video")) == (12, 6, 6)


def test_words_of_people_and_models_are_escaped(results: Results) -> None:
    html = page(results)
    assert "Make it &lt;red&gt;." in html
    assert "T2A fell &lt;b&gt;" in html


def test_repaired_answers_are_shown_first_and_the_count_is_honest(results: Results) -> None:
    html = page(results)
    assert html.count("1 of 2 criticised answers asked again are right now") == len(SUBTASKS)
    first = html.index('<p class="verdict up">')
    assert first < html.index('<p class="verdict down">', first)


def test_the_curve_is_well_formed_and_ends_at_the_rates(results: Results) -> None:
    svg = ElementTree.fromstring(learning_curve(results.evaluations))
    lines = svg.findall("polyline")
    assert len(lines) == len(SUBTASKS) + 1
    ends = [line.attrib["points"].split()[-1].split(",")[1] for line in lines]
    assert len(set(ends)) == 1, "all subtasks and their mean end at one half"


def test_labels_of_the_curve_do_not_cover_each_other(results: Results) -> None:
    svg = learning_curve(results.evaluations)
    at = [float(y) for y, name in re.findall(r' y="([\d.]+)" [^>]*>([^<]+)</text>', svg) if name in (*SUBTASKS, "mean")]
    assert len(at) == 9
    assert min(b - a for a, b in zip(sorted(at), sorted(at)[1:], strict=False)) >= 13.9


def test_a_single_evaluation_makes_a_curve_too(results: Results) -> None:
    ElementTree.fromstring(learning_curve(results.evaluations[:1]))
