"""Errors of ours keep what they say on the way out of a worker process."""

from __future__ import annotations

import importlib
import pickle

import pytest

from hmsa_core.io.errors import ConfigError, DecodeError, HmsaError, InputError, NoSpaceError, needs_extra


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


def test_a_missing_optional_package_is_one_line_with_the_command_that_installs_it() -> None:
    with pytest.raises(ConfigError, match=r"no_such_package is not installed.*\[ui\]") as error, needs_extra("ui"):
        importlib.import_module("no_such_package")
    assert error.value.hint == "pip install 'hmsa-autolabel[ui]'"
    with pytest.raises(ModuleNotFoundError), needs_extra("ui"):  # a mistake of ours is not the user's
        importlib.import_module("hmsa_core.no_such_module")
