import sys
from pathlib import Path
from subprocess import run

REPOSITORY = Path(__file__).parents[2]
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def test_generated_code_is_what_protoc_makes_of_the_protos(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("protos/anyloop/v1/*.proto"))
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "grpc_python_out", "pyi_out")]
    run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *protos], cwd=REPOSITORY, check=True)

    fresh = _files(tmp_path / "protos" / "anyloop" / "v1")
    assert fresh, "protoc wrote nothing"
    checked_in = _files(REPOSITORY / "protos" / "anyloop" / "v1")
    stale = sorted(name for name in fresh.keys() | checked_in.keys() if fresh.get(name) != checked_in.get(name))
    assert stale == [], "run `make protos` and commit the result"


def _files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for pattern in GENERATED for path in folder.glob(pattern)}
