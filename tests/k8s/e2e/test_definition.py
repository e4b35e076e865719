"""The PolicyRollout definition as a real API server understands it."""

import urllib.error

import pytest

from bench.rollout.rollouts import Rollouts
from tests.k8s.controlplane.cluster import ControlPlane

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def rollouts(control_plane: ControlPlane) -> Rollouts:
    return Rollouts(control_plane)


def test_what_is_left_out_is_filled_in(rollouts: Rollouts) -> None:
    spec = rollouts.create("filled")["spec"]
    assert spec["strategy"] == {"type": "AllAtOnce"}
    assert (spec["maxSwapping"], spec["maxUnreachable"], spec["paused"]) == (1, "10%", False)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"strategy": {"type": "Canary"}}, "a canary needs steps"),
        ({"target": {"channel": "approved", "version": "policy-000001"}}, "name either a version or a channel"),
        ({"selector": {}}, "an empty selector would take every pod"),
        ({"strategy": {"type": "Canary", "steps": [{"replicas": "0%"}]}}, "a share from 1% to 100%"),
        ({"strategy": {"type": "Canary", "steps": [{"replicas": 1, "pause": "soon"}]}}, "a duration such as 90s"),
        ({"analysis": {"metrics": [{"name": "errors"}]}}, "a metric is exactly one of"),
        ({"analysis": {"metrics": [{"name": "errors", "errorRate": {}}]}}, "errorRate needs max"),
        ({"maxSwaping": 3}, "unknown field"),
    ],
    ids=["no steps", "two targets", "every pod", "share", "pause", "metric", "bound", "typing error"],
)
def test_a_spec_that_cannot_be_meant_is_refused_with_what_to_do(
    rollouts: Rollouts, spec: dict[str, object], says: str
) -> None:
    with pytest.raises(urllib.error.HTTPError, match="HTTP Error 4") as refused:
        rollouts.create("refused", **spec)
    assert says in str(refused.value.__notes__)


def test_the_lineage_cannot_change(rollouts: Rollouts) -> None:
    rollouts.create("fixed")
    with pytest.raises(urllib.error.HTTPError, match="422") as refused:
        rollouts.change("fixed", {"lineage": "critique"})
    assert "lineage cannot change" in str(refused.value.__notes__)


def test_a_table_of_it_tells_where_a_rollout_is(rollouts: Rollouts) -> None:
    path = f"/apis/anyloop.dev/v1alpha1/namespaces/{rollouts.namespace}/policyrollouts"
    rollouts.create("shown")
    rollouts.plane.request(
        "PATCH",
        f"{path}/shown/status",
        {"status": {"phase": "AwaitingAdvance", "stableVersion": "policy-000001", "targetVersion": "policy-000002"}},
        "application/merge-patch+json",
    )
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    table = rollouts.plane.request("GET", f"{path}/shown", accept=accept)
    names = [column["name"] for column in table["columnDefinitions"]]
    row = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert (row["Phase"], row["Stable"], row["Target"]) == ("AwaitingAdvance", "policy-000001", "policy-000002")
