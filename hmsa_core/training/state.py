"""Training state on disk: all data that a run needs to continue exactly from where it stopped.

    state/step-00000120/model.safetensors        weights and batch norm statistics
                        optimiser.safetensors    momentum and the like, by parameter name
                        ema.safetensors          running average, where there is one
                        state.json               commit point: step, digests of the files and of itself, figures so far

Files are written through `hmsa_core.io.atomic`, `state.json` last; readers ignore a folder without
`state.json`. At least two states are kept, and an older state is removed only after the newer one is durable. Random
numbers are not stored: they are a function of (seed, step, pass), see `seeds`. The loader's state is not stored:
the order of samples is a function of (seed, epoch), see `data.plan`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmsa_core.io import atomic, sealed
from hmsa_core.io.atomic import remove_tree, sha256_bytes, sweep_temps, write_bytes
from hmsa_core.io.errors import ConfigError, HmsaError, IntegrityError

_log = logging.getLogger(__name__)
_FORMAT, _VERSION = "hmsa-train-state", 1
_COMMIT = "state.json"


class Snapshot(NamedTuple):
    """One saved state."""

    step: int  # optimiser steps done
    groups: dict[str, dict[str, Tensor]]  # "model", "optimiser", "ema" -> name -> tensor on the CPU
    record: dict[str, Any]  # the JSON object that was given to `save`
    folder: Path


class StateStore:
    """The newest `keep` states of one run, at least 2: a disk fault may damage the newest.

    `key` is the digest of all inputs that determine the result; a state of another key is refused.
    """

    def __init__(self, folder: Path, *, key: str, keep: int = 2) -> None:
        self.folder, self.key, self.keep = folder, key, keep

    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps durably, then remove what is no longer kept.

        Raises:
            OSError: the disk is full or broken; the earlier states are intact.
        """
        from safetensors.torch import save as to_bytes

        target = self.folder / f"step-{step:08d}"
        self._retract(target)  # an unfinished or damaged state of the same step
        files = {}
        for name, tensors in groups.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            files[f"{name}.safetensors"] = write_bytes(target / f"{name}.safetensors", to_bytes(plain))
        meta = {"format": _FORMAT, "version": _VERSION, "key": self.key, "step": step, "files": files}
        sealed.write(target / _COMMIT, {**meta, "record": dict(record)})
        self._prune(step)
        return target

    def steps(self) -> list[int]:
        """Steps of the finished states, ascending."""
        return [int(path.parent.name[5:]) for path in sorted(self.folder.glob(f"step-*/{_COMMIT}"))]

    def latest(self) -> Snapshot | None:
        """Read the newest state whose bytes match its digests; the log names damaged states.

        Raises:
            IntegrityError: states exist and all are damaged.
            ConfigError: the folder belongs to a run with other settings or data.
        """
        damaged: list[HmsaError] = []
        for step in reversed(self.steps()):
            try:
                return self._read(step)
            except (IntegrityError, OSError) as error:
                fault = error if isinstance(error, HmsaError) else IntegrityError(str(error))
                _log.warning("%s", fault.message)
                damaged.append(fault)
        if damaged:
            raise IntegrityError(
                f"{self.folder}: none of {len(damaged)} training states can be read: {damaged[0].message}",
                hint="remove the folder to train from the start",
            )
        return None

    def sweep(self) -> None:
        """Remove leftovers of dead writers: temporary files and states without their commit point."""
        sweep_temps(self.folder)
        for path in self.folder.glob("step-*"):
            if not (path / _COMMIT).exists():
                remove_tree(path)

    def _read(self, step: int) -> Snapshot:
        folder = self.folder / f"step-{step:08d}"
        where = folder / _COMMIT
        meta = sealed.read(where)
        if [meta.get(field) for field in ("format", "version", "step")] != [_FORMAT, _VERSION, step]:
            raise IntegrityError(f"{where}: not a training state of this version and step")
        if meta["key"] != self.key:
            raise ConfigError(
                f"{folder}: belongs to a run with other settings or data (key {meta['key'][:12]}, now {self.key[:12]})",
                hint="use another work folder, or remove this one to train from the start",
            )
        groups = {name.removesuffix(".safetensors"): t for name, t in _read_files(folder, meta["files"])}
        return Snapshot(step, groups, dict(meta["record"]), folder)

    def _prune(self, newest: int) -> None:
        # States after `newest` are outdated: the resumed run computes these steps again.
        finished = self.steps()
        kept = [step for step in finished if step <= newest][-self.keep :]
        for step in finished:
            if step not in kept:
                with contextlib.suppress(OSError):  # a remaining old state does no harm
                    self._retract(self.folder / f"step-{step:08d}")

    @staticmethod
    def _retract(target: Path) -> None:
        # The commit point first: files that a kill leaves behind are then no state.
        if (target / _COMMIT).exists():
            atomic.ops.unlink(target / _COMMIT)
        remove_tree(target)


def _read_files(folder: Path, files: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    for name, sha256 in files.items():
        data = (folder / name).read_bytes()
        found = sha256_bytes(data)
        if found != sha256:
            raise IntegrityError(f"{folder / name}: SHA-256 is {found[:16]}..., recorded was {sha256[:16]}...")
        try:
            yield name, load(data)
        except SafetensorError as error:
            raise IntegrityError(f"{folder / name}: {error}") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """State of each parameter as `PARAMETER/STATE`: the optimiser's tensors themselves, to save or to copy into."""
    return {
        f"{names[parameter]}/{name}": tensor
        for group in optimiser.param_groups
        for parameter in group["params"]
        for name, tensor in optimiser.state[parameter].items()
    }
