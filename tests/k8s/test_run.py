from dataclasses import replace

from k8s.run import Run

RUN = Run.begin("v2", "v1", 3, 7, now=1000.0)


def test_a_controller_that_takes_over_reads_what_was_written() -> None:
    full = replace(
        RUN.at_step(1, 1010.0),
        reached=1020.0,
        short=1030.0,
        paused=1040.0,
        absent=1035.0,
        peak=4,
        failures=2,
        lost=("a",),
    )
    for run in (RUN, full, full.rolling_back("RolledBack", "errors", 1050.0)):
        assert Run.from_status(run.to_status()) == run


def test_a_run_that_an_older_controller_began_is_read() -> None:
    status = RUN.to_status()
    del status["logOffset"], status["stepStartedAt"]
    assert Run.from_status(status) == replace(RUN, log_offset=None)


def test_a_pause_moves_the_clocks_and_not_the_begin_of_the_step() -> None:
    paused = replace(RUN.at_step(1, 1010.0), reached=1020.0, short=1050.0, paused=1060.0)
    run = paused.resumed(1160.0)
    assert (run.progress, run.reached, run.short, run.paused) == (1110.0, 1120.0, 1150.0, None)
    assert run.step_began == 1010.0


def test_no_clock_is_moved_beyond_the_present() -> None:
    gone = replace(RUN, absent=1000.0, paused=1000.0, progress=1000.0)
    run = gone.resumed(1100.0).looked_at(3, (), (), 1100.0)
    assert (run.progress, run.absent) == (1100.0, None)
