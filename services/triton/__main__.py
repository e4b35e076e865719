"""`python -m services.triton`: builds the model repository and runs Triton on it until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from anyloop.config import Settings
from services.hosts.interface import MODELS
from services.triton.launcher import TritonError, TritonPorts, TritonServer
from services.triton.repository import build_repository


def main(arguments: list[str] | None = None) -> int:
    settings = Settings()
    parser = argparse.ArgumentParser(prog="python -m services.triton", description=__doc__)
    parser.add_argument("--model", action="append", choices=MODELS, help="serve only these (default: all five)")
    parser.add_argument("--directory", type=Path, default=settings.home / "triton", help="working folder of the server")
    parser.add_argument("--address", default=settings.bind, help="address to listen on")
    parser.add_argument("--metrics-address", help="the same of the metrics port (default: --address)")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=int(settings.triton_url.rsplit(":", 1)[-1]))
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument(
        "--log-to-stdout", action="store_true", help="Triton's own log goes here instead of into triton.log"
    )
    parser.add_argument("--build-only", action="store_true", help="write the model repository and exit")
    options = parser.parse_args(arguments)
    models = tuple(options.model or MODELS)
    directory = options.directory.absolute()
    if options.build_only:
        print(build_repository(directory / "models", models))
        return 0
    ports = TritonPorts(options.http_port, options.grpc_port, options.metrics_port)
    # The model processes run elsewhere: relative paths of this process must not change their meaning there.
    absolute = {"ANYLOOP_MODEL_DIR": str(settings.model_dir.absolute()), "ANYLOOP_HOME": str(settings.home.absolute())}
    server = TritonServer(
        directory,
        models,
        ports,
        options.address,
        absolute,
        ends_with_caller=True,
        metrics_address=options.metrics_address,
        log_to_stdout=options.log_to_stdout,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with server:
            print(f"triton: ready on {server.grpc_url} with {', '.join(models)}", flush=True)
            while True:
                try:
                    status = server.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    continue
                print(f"triton: exited with status {status}\n{server.log_tail()}".rstrip(), file=sys.stderr)
                return 1
    except TritonError as error:
        print(f"triton: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
