import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from anyloop.telemetry import logs


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_one_object_with_service_time_level_and_extra_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("policy")
    logging.getLogger("x").info("answered %s\nin ü", "r1", extra={"response_id": "r1", "seconds": 0.5})
    (line,) = lines(capsys)
    moment = datetime.fromisoformat(line.pop("time"))
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert line == {
        "level": "info",
        "service": "policy",
        "logger": "x",
        "message": "answered r1\nin ü",
        "response_id": "r1",
        "seconds": 0.5,
    }


def test_an_exception_carries_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("gate")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    (line,) = lines(capsys)
    assert line["level"] == "error"
    assert line["exception"].endswith("RuntimeError: broken")


def test_the_level_holds_and_configuring_twice_does_not_double_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("trainer", "warning")
    logs.configure("trainer", "warning")
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert [line["message"] for line in lines(capsys)] == ["loud"]


def test_values_that_are_not_json_are_shown_as_text_and_never_override_standard_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("policy")
    logging.getLogger("x").info("m", extra={"path": {1, 2}, "service": "forged"})
    (line,) = lines(capsys)
    assert line["path"] == "{1, 2}"
    assert line["service"] == "policy"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError):
        logs.configure("policy", "loudest")
