"""The HEALTHCHECK of the images: `healthcheck.py http PORT PATH` or `healthcheck.py grpc PORT`. Exit 0 is healthy."""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 3.0


def http(port: int, path: str) -> str:
    """Empty when `path` answers 200, else what is wrong."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return str(error)


def grpc_health(port: int) -> str:
    """Empty when grpc.health.v1 on `port` says SERVING, else what is wrong."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.details())
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(arguments: list[str]) -> int:
    match arguments:
        case ["http", port, path]:
            problem = http(int(port), path)
        case ["grpc", port]:
            problem = grpc_health(int(port))
        case _:
            problem = __doc__ or ""
    print(problem or "healthy")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
