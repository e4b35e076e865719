import pytest

from tests.faults.__main__ import main


def test_a_fault_that_the_quick_run_does_not_have_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--quick", "--only", "gateway"])
    assert ended.value.code == 2
    assert "--quick has only broker, policy; leave it out for gateway" in capsys.readouterr().err
