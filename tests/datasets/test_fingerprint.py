import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anyloop.datasets.fingerprint import fingerprint

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


@settings(max_examples=100, deadline=None)
@given(RECORDS)
def test_neither_the_order_of_the_keys_nor_empty_ones_matter(record: dict) -> None:
    turned = dict(reversed(record.items()))
    assert fingerprint(turned | {"not there in the other file": None}) == fingerprint(record)


@settings(max_examples=100, deadline=None)
@given(RECORDS, st.text(min_size=1, max_size=3))
def test_another_text_is_another_record(record: dict, text: str) -> None:
    assert fingerprint(record | {"x": text}) != fingerprint(record | {"x": text + "."})


def test_numbers_are_the_same_from_json_and_from_arrow() -> None:
    assert fingerprint({"rate": 3, "array": [0.25, 1]}) == fingerprint({"rate": 3.0, "array": np.array([0.25, 1.0])})
    assert fingerprint({"rate": 3}) != fingerprint({"rate": "3"})
    assert fingerprint({"rate": float("nan")}) == fingerprint({"rate": float("nan")})


def test_values_do_not_run_into_each_other() -> None:
    assert fingerprint({"a": "bc", "d": ""}) != fingerprint({"a": "b", "d": "c"})
    assert fingerprint({"a": ["b", "c"]}) != fingerprint({"a": ["bc"]})
    assert fingerprint({"a": {"b": "c"}}) != fingerprint({"a": "b", "c": "c"})
