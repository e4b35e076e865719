from pathlib import Path

from trainer.join_store import JoinStore


def traceparent(number: int, span: int = 1) -> str:
    return f"00-{number:032x}-{span:016x}-01"


def test_traces_survive_a_restart_and_each_is_named_once(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.traces.keep({"r1": traceparent(1), "f1": traceparent(2), "f2": traceparent(1, span=7)}, now=10.0)
    store.traces.keep({"r1": traceparent(9)}, now=11.0)  # delivered again: the first stands
    store.close()
    store = JoinStore(tmp_path / "state.db")
    assert store.traces.of(["r1", "f1", "f2", "unknown"]) == [traceparent(1), traceparent(2)]
    store.close()


def test_a_span_gets_as_many_links_as_it_can_hold(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.traces.keep({f"r{n}": traceparent(n) for n in range(1, 200)}, now=10.0)
    assert len(store.traces.of(f"r{n}" for n in range(1, 200))) == 128
    store.close()


def test_old_ones_are_forgotten(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.traces.keep({"old": traceparent(1)}, now=10.0)
    store.traces.keep({"new": traceparent(2)}, now=20.0)
    store.traces.forget(arrived_before=15.0)
    assert store.traces.of(["old", "new"]) == [traceparent(2)]
    store.close()
