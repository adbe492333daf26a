"""Errors of ours keep what they say on the way out of a worker process."""

from __future__ import annotations

import pickle

import pytest

from hmsa_core.io.errors import DecodeError, HmsaError, InputError, NoSpaceError


@pytest.mark.parametrize(
    "error",
    [
        DecodeError("a.png: ends early", reason="truncated", hint="copy it again"),
        InputError("x: not there", hint="look"),
        NoSpaceError("full"),
    ],
)
def test_an_error_survives_the_way_out_of_a_worker(error: HmsaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.message, again.hint, again.exit_code) == (error.message, error.hint, error.exit_code)
    assert vars(again) == vars(error)
