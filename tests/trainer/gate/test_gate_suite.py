import pytest

from trainer.gate.suite import SuiteError, load_suite


class Tiny:
    def prompts(self) -> list:
        return []

    def judge(self, prompt_id: str, message: object, media: object) -> None:
        return None


ready = Tiny()


def test_a_suite_is_loaded_by_name_whether_ready_or_made_by_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tiny_suites", sys.modules[__name__])
    assert load_suite("tiny_suites:ready") is ready
    assert isinstance(load_suite("tiny_suites:Tiny"), Tiny)


@pytest.mark.parametrize("name", ["", "json", "no.such.module:suite", "json:missing", "json:dumps_nothing"])
def test_a_setting_that_leads_nowhere_says_so(name: str) -> None:
    with pytest.raises(SuiteError, match="ANYLOOP_GATE_SUITE"):
        load_suite(name)


def test_something_else_is_not_taken_for_a_suite() -> None:
    with pytest.raises(SuiteError, match="no prompts"):
        load_suite("collections:Counter")
