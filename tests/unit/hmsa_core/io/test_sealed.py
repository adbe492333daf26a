from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hmsa_core.io import sealed
from hmsa_core.io.errors import StoreError

VALUE = {"a": [{"x": 1}, {"x": 2}], "text": "ü", "none": None, "numbers": [1, 2.5]}


def test_a_sealed_file_is_plain_json_with_its_digest(tmp_path: Path) -> None:
    digest = sealed.write(tmp_path / "f.json", VALUE)
    assert json.loads((tmp_path / "f.json").read_text("utf-8")) == {**VALUE, "digest": digest}
    assert sealed.read(tmp_path / "f.json") == {**VALUE, "digest": digest}


def test_equal_values_have_equal_bytes_in_any_order_and_version_of_python() -> None:
    body = '"a":[\n{"x":1,"y":[1,2.5]},\n{"x":2}],\n"b":{"a":"\u00fc","z":null}}\n'.encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    for value in (
        {"b": {"z": None, "a": "\u00fc"}, "a": [{"y": [1, 2.5], "x": 1}, {"x": 2}]},
        {"a": [{"x": 1, "y": [1, 2.5]}, {"x": 2}], "b": {"a": "\u00fc", "z": None}},
    ):
        assert sealed.dump(value) == b'{"digest":"' + digest + b'",\n' + body


def test_what_is_no_number_is_refused_and_a_damaged_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        sealed.dump({"a": float("nan")})
    (tmp_path / "f.json").write_bytes(sealed.dump(VALUE)[:-1])
    with pytest.raises(StoreError) as caught:
        sealed.read(tmp_path / "f.json")
    assert caught.value.message.startswith(f"{tmp_path / 'f.json'}: damaged or edited")
    with pytest.raises(StoreError, match=r"gone\.json: missing"):
        sealed.read(tmp_path / "gone.json")


def test_every_single_changed_bit_and_every_truncation_is_found() -> None:
    data = sealed.dump(VALUE)
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(StoreError):
            sealed.parse(bytes(changed), "f.json")
    for length in range(len(data)):
        with pytest.raises(StoreError):
            sealed.parse(data[:length], "f.json")


def test_nothing_can_take_the_place_of_the_digest() -> None:
    with pytest.raises(ValueError, match="digest"):
        sealed.dump({"digest": "x"})
    assert sealed.dump({**VALUE, "digest": "x"}) == sealed.dump(VALUE)


@pytest.mark.parametrize(("body", "message"), [(b'"a":}\n', "not valid JSON"), (b"\xff}\n", "not valid JSON")])
def test_a_right_digest_over_what_is_no_json_is_refused(body: bytes, message: str) -> None:
    head = b'{"digest":"' + hashlib.sha256(body).hexdigest().encode() + b'",\n'
    with pytest.raises(StoreError, match=message):
        sealed.parse(head + body, "f.json")
