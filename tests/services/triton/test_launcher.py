"""How the wheel's binary is laid out, called and watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from services.triton import launcher
from services.triton.__main__ import main
from services.triton.launcher import TritonError, TritonPorts, TritonServer


def test_the_backend_folder_holds_the_backend_and_the_stub_of_this_python(tmp_path: Path) -> None:
    folder = launcher.backend_directory(tmp_path) / "python"
    stub = folder / "triton_python_backend_stub"
    assert os.access(stub, os.X_OK)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    original = launcher.server_directory() / "python_backend_stubs" / version / stub.name
    assert stub.stat().st_size == original.stat().st_size
    assert (folder / "libtriton_python.so").exists()
    assert (folder / "triton_python_backend_utils.py").exists()
    launcher.backend_directory(tmp_path)  # again, over itself


def test_the_environment_finds_libpython_the_wheel_and_this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = launcher.server_environment({"ANYLOOP_MODEL_DIR": "/model"})
    libraries = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert libraries[0] == sysconfig.get_config_var("LIBDIR")
    assert libraries[1].endswith("nvidia_pytriton.libs")
    assert libraries[-1] == "/mine"
    paths = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(paths[0]) / "services" / "triton" / "launcher.py").exists()
    assert environment["PATH"].split(os.pathsep)[0] == sysconfig.get_path("scripts")
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["ANYLOOP_MODEL_DIR"] == "/model"


def test_models_are_loaded_by_name_under_explicit_control() -> None:
    command = launcher.server_command(
        Path("/r"), Path("/b"), TritonPorts(1, 2, 3), "127.0.0.1", ["policy", "decoder_image", "decoder_audio"]
    )
    assert command[0].endswith("bin/tritonserver")
    assert {"--model-control-mode=explicit", "--disable-auto-complete-config", "--grpc-port=2"} <= set(command)
    assert [flag for flag in command if flag.startswith("--load-model")] == [
        "--load-model=policy",
        "--load-model=decoders",
    ]


def test_without_the_wheel_the_server_of_nvidias_image_is_taken_with_its_own_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").touch()
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(launcher, "_IMAGE_SERVER", tmp_path)
    assert launcher.server_directory() == tmp_path
    assert launcher.backend_directory(tmp_path / "unused") == tmp_path / "backends"
    assert not (tmp_path / "unused").exists()


def test_metrics_may_be_read_from_further_away_than_the_models_may_be_asked() -> None:
    arguments = (Path("/r"), Path("/b"), TritonPorts(), "127.0.0.1", ["policy"])
    wide = launcher.server_command(*arguments, "0.0.0.0")
    assert {"--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--metrics-address=0.0.0.0"} <= set(wide)
    assert "--metrics-address=127.0.0.1" in launcher.server_command(*arguments)


def test_a_missing_wheel_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(launcher, "_IMAGE_SERVER", tmp_path)
    with pytest.raises(TritonError, match="ANYLOOP_HOST=inprocess"):
        launcher.server_directory()


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "server_command", lambda *_: ["/bin/sh", "-c", "echo the disk is full; exit 3"])
    server = TritonServer(tmp_path, ["policy"])
    with pytest.raises(TritonError, match=r"status 3(.|\n)*the disk is full"), server:
        pytest.fail("it cannot have become ready")


@pytest.mark.parametrize("flags", [["--log-to-stdout"], []], ids=["stdout", "file"])
def test_the_log_goes_where_a_container_is_read_or_into_a_file(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "echo the disk is full; echo and said so >&2; exit 3"
    monkeypatch.setattr(launcher, "server_command", lambda *_: ["/bin/sh", "-c", script])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own SIGTERM
    assert main(["--model=policy", f"--directory={tmp_path}", *flags]) == 1
    said = capfd.readouterr()
    assert "status 3" in said.err
    if flags:
        assert said.out.splitlines() == ["the disk is full", "and said so"]
        assert not (tmp_path / "triton.log").exists()
    else:
        assert said.out == ""
        assert (tmp_path / "triton.log").read_text() == "the disk is full\nand said so\n"


def test_a_server_ends_with_a_launcher_that_was_killed(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal
from services.triton import launcher
launcher.server_command = lambda *_: ["/bin/sleep", "60"]
server = launcher.TritonServer(pathlib.Path({str(tmp_path)!r}), ["policy"], ends_with_caller=True)
server.start()
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = launcher.server_environment()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == -9
    until = time.monotonic() + 5.0
    while _runs(int(done.stdout)):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_stop_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server that ignores SIGTERM, with a child of its own.
    script = "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"
    monkeypatch.setattr(launcher, "server_command", lambda *_: ["/bin/sh", "-c", script])
    server = TritonServer(tmp_path, ["policy"])
    server.start()
    while not server.log_tail().strip():
        time.sleep(0.01)
    child = int(server.log_tail())
    server.stop(timeout=0.1)
    patience = time.monotonic() + 5.0  # the signal is sent; a grandchild is not ours to wait for
    while _runs(child) and time.monotonic() < patience:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
