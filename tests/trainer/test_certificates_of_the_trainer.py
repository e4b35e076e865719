"""Learner and gate say at their start what is wrong with their certificates."""

import logging

import pytest

from trainer.__main__ import BAD_SETTINGS
from trainer.__main__ import main as learn
from trainer.gate.__main__ import main as judge


@pytest.mark.parametrize(("main", "code"), [(lambda: learn([]), BAD_SETTINGS), (judge, 2)], ids=["learner", "gate"])
def test_half_of_the_tls_settings_ends_the_start_with_the_reason(
    main: object, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: object
) -> None:
    monkeypatch.setenv("ANYLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("ANYLOOP_TLS_CERT", "tls.crt")
    monkeypatch.setattr("trainer.__main__.begin", lambda *_: None)  # it would send the log elsewhere
    monkeypatch.setattr("trainer.gate.__main__.begin", lambda *_: None)
    with caplog.at_level(logging.ERROR):
        assert callable(main)
        assert main() == code
    assert "ANYLOOP_TLS_KEY" in caplog.text
