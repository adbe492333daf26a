"""Training states on disk: whatever happens while saving or afterwards, a whole one is found or a clear error."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hmsa_core.io import sealed
from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import ConfigError, IntegrityError
from hmsa_core.training.state import Snapshot, StateStore, optimiser_tensors
from tests.support.damage import flip
from tests.support.faults import every_exit, every_fault
from tests.support.training import folder_bytes

ERRORS = [errno.EIO, errno.ENOSPC, errno.EACCES]


def groups(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    return {"model": {"conv.weight": weights, "bn.count": torch.tensor(step)}, "optimiser": {"conv.weight": -weights}}


def store(folder: Path) -> StateStore:
    return StateStore(folder / "state", key="k" * 64)


def assert_is(found: object, step: int) -> None:
    assert isinstance(found, Snapshot)
    assert found.step == step
    assert found.record == {"figure": 0.1 * step}
    for name, tensors in groups(step).items():
        for key, tensor in tensors.items():
            assert torch.equal(found.groups[name][key], tensor), (name, key)


def save(states: StateStore, step: int) -> None:
    states.save(step, groups(step), {"figure": 0.1 * step})


def two_saved_states(folder: Path) -> Callable[[], None]:
    """Save states 1 and 2; the result brings the folder back to that (copied: no syncs)."""
    save(store(folder), 1)
    save(store(folder), 2)
    shutil.copytree(folder / "state", folder / "template")

    def reset() -> None:
        shutil.rmtree(folder / "state")
        shutil.copytree(folder / "template", folder / "state")

    return reset


def assert_old_or_new(folder: Path, whole: dict[str, bytes]) -> None:
    """After a failed save of state 3: state 2 or 3 is found whole, and the run that goes on ends with the same bytes."""
    states = store(folder)
    states.sweep()
    found = states.latest()
    assert found is not None
    assert_is(found, found.step)
    assert found.step in (2, 3)
    assert len(states.steps()) >= 2
    assert not list((folder / "state").rglob("*.tmp"))
    assert whole_after_the_third(folder) == whole, "the run that goes on ends with the same bytes"


def whole_after_the_third(folder: Path) -> dict[str, bytes]:
    """Save state 3 (again) without a fault; all bytes that are there then."""
    save(store(folder), 3)
    return folder_bytes(folder / "state")


def test_a_saved_state_comes_back_bit_for_bit_and_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert store(tmp_path).latest() is None
    save(store(tmp_path), 7)
    assert_is(store(tmp_path).latest(), 7)


def test_the_last_two_states_are_kept_and_the_newest_is_used(tmp_path: Path) -> None:
    states = store(tmp_path)
    for step in (1, 2, 3, 4):
        save(states, step)
    assert states.steps() == [3, 4]
    assert_is(states.latest(), 4)
    assert not list((tmp_path / "state").glob("step-00000001/*"))


def damage_a_tensor(folder: Path) -> str:
    flip(folder / "optimiser.safetensors", -1)
    return "optimiser.safetensors: SHA-256"


def edit_the_record(folder: Path) -> str:
    meta = folder / "state.json"
    meta.write_bytes(meta.read_bytes().replace(b'"step":2', b'"step":3'))
    return "state.json: damaged or edited (digest is"


def take_the_digest_away(folder: Path) -> str:
    meta = folder / "state.json"
    meta.write_bytes(b"{" + meta.read_bytes().partition(b"\n")[2])
    return "state.json: not one of our files"


def move_another_there(folder: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step-00000001", folder)
    return "state.json"


def change_the_version(folder: Path) -> str:
    meta = folder / "state.json"
    sealed.write(meta, {key: value for key, value in read_json(meta).items() if key != "digest"} | {"version": 99})
    return "state.json"


@pytest.mark.parametrize(
    "change", [damage_a_tensor, edit_the_record, take_the_digest_away, move_another_there, change_the_version]
)
def test_a_newest_state_that_is_not_as_it_was_saved_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], str]
) -> None:
    states = store(tmp_path)
    save(states, 1)
    save(states, 2)
    reported = change(tmp_path / "state" / "step-00000002")
    with caplog.at_level(logging.WARNING):
        assert_is(states.latest(), 1)
    assert f"step-00000002/{reported}" in caplog.text


def test_only_damaged_states_and_those_of_other_settings_are_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    states = store(tmp_path)
    save(states, 1)
    with pytest.raises(ConfigError, match="other settings or data"):
        StateStore(tmp_path / "state", key="other").latest()
    (tmp_path / "state" / "step-00000001" / "model.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match="none of 1 training states"):
        states.latest()


def test_saving_an_earlier_step_again_drops_the_future_it_left(tmp_path: Path) -> None:
    states = store(tmp_path)
    for step in (2, 4):
        save(states, step)
    save(states, 3)
    assert states.steps() == [2, 3]


@pytest.mark.fault
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("error", ERRORS)
def test_a_fault_at_any_file_operation_leaves_the_old_or_the_new_state(
    tmp_path: Path, error: int, persistent: bool
) -> None:
    points = 0
    reset = two_saved_states(tmp_path)
    whole = whole_after_the_third(tmp_path)
    reset()
    for _ in every_fault(lambda: save(store(tmp_path), 3), error, persistent=persistent):
        points += 1
        assert_old_or_new(tmp_path, whole)
        reset()
    assert points >= 15
    assert store(tmp_path).steps() == [2, 3]


@pytest.mark.fault
def test_an_exit_at_any_file_operation_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    reset = two_saved_states(tmp_path)
    whole = whole_after_the_third(tmp_path)
    reset()
    for _ in every_exit(lambda: save(store(tmp_path), 3)):
        assert_old_or_new(tmp_path, whole)
        reset()
    states = store(tmp_path)
    assert states.steps() == [2, 3]
    assert not list((tmp_path / "state").rglob("*.tmp"))


def test_momentum_is_found_by_parameter_name() -> None:
    layer = torch.nn.Conv2d(2, 2, 1)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2, 3, 3)).sum().backward()
    optimiser.step()
    found = optimiser_tensors(optimiser, {p: name for name, p in layer.named_parameters()})
    assert set(found) == {"weight/momentum_buffer", "bias/momentum_buffer"}
    assert torch.equal(found["bias/momentum_buffer"], layer.bias.grad)
