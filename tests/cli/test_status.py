import json
import socket
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.checkpoint_state import Remembered
from anyloop.cli.exits import ExitCode
from anyloop.cli.log_state import log_state, outboxes
from anyloop.config import Settings
from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, dlq, open_log
from anyloop.log.spool_segments import encode
from anyloop.log.spool_state import DrainState, StateFile
from anyloop.registry import announce, announcements
from protos.anyloop.v1 import events_pb2


def _event(number: int) -> Event:
    return Event.wrap(events_pb2.FeedbackEvent(feedback_id=f"f{number}"), key=f"k{number}", source="tests")


def _filled(url: str) -> None:
    """Three events of feedback, one of them read by the trainer, and one dead letter."""
    with open_log(url) as log:
        log.ensure_topics()
        log.append_many(FEEDBACK, [_event(number) for number in range(3)])
        log.append(dlq(FEEDBACK), _event(9))
        with log.consumer("anyloop.trainer", [FEEDBACK]) as consumer:
            deadline = time.monotonic() + 20
            while not (records := consumer.poll(max_records=1, timeout=0.5)):
                assert time.monotonic() < deadline
            consumer.commit({(FEEDBACK, records[0].partition): records[0].offset + 1})


def test_the_state_of_the_embedded_log(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/log.db"
    _filled(url)
    state = log_state(url)
    assert state.error == ""
    assert state.events[FEEDBACK] == 3
    assert state.lag == {RESPONSES: 0, FEEDBACK: 2}
    assert state.dead_letters[dlq(FEEDBACK)] == 1


def test_the_state_of_a_log_on_kafka(kafka_url: str) -> None:
    _filled(kafka_url)
    state = log_state(kafka_url)
    assert (state.error, state.events[FEEDBACK], state.lag, state.dead_letters[dlq(FEEDBACK)]) == (
        "",
        3,
        {RESPONSES: 0, FEEDBACK: 2},
        1,
    )


def test_a_log_without_topics_says_how_to_get_them(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/log.db"
    open_log(url).close()
    assert "anyloop topics apply" in log_state(url).error


def test_a_log_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    assert "does not exist yet" in log_state(f"sqlite://{tmp_path}/log.db").error
    assert not (tmp_path / "log.db").exists()


def test_with_the_broker_away_the_status_comes_within_three_seconds_and_says_so(
    home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, answers nothing
        monkeypatch.setenv("ANYLOOP_LOG_URL", f"kafka://127.0.0.1:{mute.getsockname()[1]}")
        log_state(Settings().log_url)  # what is imported at the first use is not counted
        begun = time.monotonic()
        result = runner.invoke(app, ["status", "--url", "http://127.0.0.1:9", "--json"])
        took = time.monotonic() - begun
    assert result.exit_code == ExitCode.UNREACHABLE
    report = json.loads(result.stdout)
    assert "no answer in time" in report["log"]["error"]
    assert report["log"]["events"] == {}
    assert took < 3.0
    assert not home.exists()


def test_the_status_shows_lag_dead_letters_and_outboxes(
    home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _filled(Settings().effective_log_url)
    (home / "spool" / "policy").mkdir(parents=True)
    (home / "spool" / "policy" / "000000000000.segment").write_bytes(encode(RESPONSES, _event(1)))
    shown = runner.invoke(app, ["status", "--url", "http://127.0.0.1:9"]).stdout
    assert "anyloop.feedback.v1" in shown
    assert "the trainer is 2 behind" in shown
    assert "dead letters" in shown
    assert "outbox of policy" in shown


def test_an_outbox_holds_what_is_behind_its_cursor(tmp_path: Path) -> None:
    folder = tmp_path / "spool" / "policy"
    folder.mkdir(parents=True)
    first, second = encode(RESPONSES, _event(1)), encode(RESPONSES, _event(2))
    (folder / "000000000000.segment").write_bytes(first + second)
    (folder / "000000000001.segment").write_bytes(second)
    assert outboxes(tmp_path) == {"policy": len(first) + 2 * len(second)}
    state = StateFile(folder / "state")
    state.save(DrainState("000000000000.segment", len(first)))
    state.close()
    assert outboxes(tmp_path) == {"policy": 2 * len(second)}
    assert outboxes(tmp_path / "nowhere") == {}


def test_who_watches_reads_of_the_checkpoints_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, other = f"sqlite://{tmp_path}/log.db", f"sqlite://{tmp_path}/other.db"
    for one, version in ((url, "policy-000000"), (other, "policy-000007")):
        with open_log(one) as log:
            log.ensure_topics()
            announce(log, "policy", version, "promoted", decided_by="base")
    offsets, events = [], announcements.checkpoint_events

    def counted(log: EventLog, *, offset: int) -> object:
        offsets.append(offset)
        return events(log, offset=offset)

    monkeypatch.setattr(announcements, "checkpoint_events", counted)
    remembered = Remembered()
    assert log_state(url, remembered).checkpoints["policy"]["serving"]["version"] == "policy-000000"
    log_state(url, remembered)
    with open_log(url) as log:
        announce(log, "policy", "policy-000001", "promoted", decided_by="gate")
    assert log_state(url, remembered).checkpoints["policy"]["serving"]["version"] == "policy-000001"
    assert offsets == [0, 1], "the second look found nothing new, the third one announcement"
    assert log_state(other, remembered).checkpoints["policy"]["serving"]["version"] == "policy-000007"
