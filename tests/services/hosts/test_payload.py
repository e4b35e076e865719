"""Requests and answers survive the way through bytes; broken bytes are refused."""

from __future__ import annotations

import numpy as np
import pytest

from services.hosts.payload import pack, unpack


def test_nested_values_arrays_and_bytes_survive() -> None:
    message = {
        "op": "encode",
        "data": np.arange(6, dtype=np.float32).reshape(2, 3),
        "nested": [{"raw": b"\x00\xff", "mask": np.array([True, False])}],
        "tokens": [1, 2, 3],
        "none": None,
        "text": "größer",
    }
    back = unpack(pack(message))
    assert back["data"].dtype == np.float32
    assert back["data"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert back["nested"][0]["raw"] == b"\x00\xff"
    assert back["nested"][0]["mask"].tolist() == [True, False]
    assert (back["tokens"], back["none"], back["text"]) == ([1, 2, 3], None, "größer")


def test_numpy_numbers_travel_as_numbers() -> None:
    assert unpack(pack({"codes": [np.int64(4)], "rate": np.float32(0.5)})) == {"codes": [4], "rate": 0.5}


@pytest.mark.parametrize("value", [object(), np.array(["a"]), {1, 2}])
def test_what_cannot_travel_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="travel"):
        pack({"value": value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\xff\xff\xff\xff{}",
        pack({"a": np.zeros(100)})[:-1],
        b"\x02\x00\x00\x00[]",
        b"\x02\x00\x00\x00\xff\xfe",
        pack({"a": {"$array": [0, 8, "object", [1]]}}) + b"12345678",
        pack({"a": {"$array": [0, 8, "float64", [7]]}}) + b"12345678",
    ],
)
def test_broken_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a payload"):
        unpack(data)
