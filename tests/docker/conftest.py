import os
from typing import Any

import pytest

from tests.docker.compose_project import DOCKER, ComposeCheckMissing, load


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """docker/compose.yaml with every profile. Its reader is built by Go, once for each machine: half a minute."""
    try:
        return load(DOCKER / "compose.yaml")
    except ComposeCheckMissing as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI needs Go for the compose files: {error}", pytrace=False)
        pytest.skip(f"COMPOSE FILES ARE NOT CHECKED: {error}")
