"""gRPC passes over an option that it does not know, without a word: a slip of the pen in its name turns it off."""

import re
from pathlib import Path

from grpc._cython import cygrpc

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r'\(\s*"(grpc\.[a-z0-9_.]+)",')


def test_the_library_knows_every_option_that_is_set() -> None:
    sources = [path for folder in ("anyloop", "services", "trainer", "k8s") for path in (ROOT / folder).rglob("*.py")]
    names = {name for path in sources for name in OPTION.findall(path.read_text(encoding="utf-8"))}
    assert {"grpc.keepalive_time_ms", "grpc.http2.min_ping_interval_without_data_ms"} <= names
    library = Path(cygrpc.__file__).read_bytes()
    assert [name for name in sorted(names) if name.encode() + b"\0" not in library] == []
