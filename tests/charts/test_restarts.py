"""What a change of values starts anew, and what it leaves alone."""

from typing import Any

from tests.charts.rendering import of_kind, render


def checksums(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for each in of_kind(objects, "Deployment", "StatefulSet")
        if each["metadata"]["name"] != "anyloop-kafka"
    }


def test_a_change_of_settings_starts_the_pods_that_read_them_and_no_others() -> None:
    before = checksums(render())
    assert checksums(render()) == before
    after = checksums(render({"policy": {"settings": {"ANYLOOP_ENGINE_SLOTS": "64"}}}))
    assert {name for name in before if before[name] != after[name]} == {"anyloop-policy"}
    after = checksums(render({"logLevel": "DEBUG"}))
    assert all(before[name] != after[name] for name in before)


def test_a_changed_bootstrap_is_a_new_job_and_an_unchanged_one_the_same() -> None:
    def job(values: dict[str, Any]) -> str:
        (found,) = of_kind(render(values), "Job")
        return str(found["metadata"]["name"])

    assert job({}) == job({"logLevel": "INFO"}) == job({"gateway": {"replicas": 5}})
    assert job({}) != job({"kafka": {"topics": {"partitions": 8}}})
    assert job({}) != job({"images": {"tag": "9.9.9"}})
