"""Each kind of file that a result depends on: 200 flipped bits, 50 more in its head, 100 truncations; none is used.

Shards, their side tables and receipts: tests/unit/hmsa_core/labels/test_verify.py; indexes and centroids:
tests/unit/hmsa_core/data/test_data_prepare.py and test_data_sampling.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
import torch

from hmsa_core.data.decode import read_image
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import HmsaError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.thresholds.policy import ThresholdPolicy, from_threshold
from hmsa_core.models.checkpoint import read_meta, read_weights, write_checkpoint
from hmsa_core.training.state import StateStore
from tests.support.label_maps import toy_classes, write_store
from tests.support.training import NO_MODEL, picture

pytestmark = pytest.mark.fault

FLIPS, IN_THE_HEAD, CUTS = 200, 50, 100
HEAD = 128  # bytes: headers, first lines
DIGESTS = re.compile(r"(?:digest|SHA-256) is ([0-9a-f]{16,64})\W.*(?:recorded|recorded was|says) ([^\s.)]{16,64})")


def _weights(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    tensors = {"a": torch.randn(9, 9, generator=generator), "b": torch.randn(40, generator=generator)}
    write_checkpoint(folder, tensors, NO_MODEL)
    return folder / "model.safetensors"


def _state(folder: Path) -> Path:
    tensors = torch.randn(60, generator=torch.Generator().manual_seed(2))
    StateStore(folder, key="k").save(7, {"model": {"w": tensors}}, {"best": 0.5, "seen": 12345})
    return folder / "step-00000007" / "state.json"


def _last_state(file: Path) -> object:
    found = StateStore(file.parents[1], key="k").latest()
    assert found is not None
    return found


def _policy(folder: Path) -> Path:
    from_threshold(0.9, toy_classes()).save(folder / "policy.json")
    return folder / "policy.json"


def _manifest(folder: Path) -> Path:
    write_store(folder / "store", 2)
    return folder / "store" / "manifest.json"


def _image(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"image{suffix}"
        assert cv2.imwrite(str(path), picture(3, 4, (24, 32))[0])
        path.with_suffix(".sha256").write_text(sha256_file(path))  # what the index of an ingest holds
        return path

    return make


def _labelled(path: Path) -> object:
    return read_image(path, sha256=path.with_suffix(".sha256").read_text())


# How the file is made (returns its path), and how a program uses it.
KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "weights": (_weights, lambda file: read_weights(file.parent, read_meta(file))),
    "training state": (_state, _last_state),
    "tensors of a training state": (lambda folder: _state(folder).with_name("model.safetensors"), _last_state),
    "policy": (_policy, ThresholdPolicy.load),
    "manifest": (_manifest, lambda file: LabelStore.open(file.parent)),
    "input PNG": (_image(".png"), _labelled),
    "input JPEG": (_image(".jpg"), _labelled),
}


def _damaged(original: bytes) -> Iterator[tuple[str, bytes]]:
    draw = random.Random(len(original))
    places = [draw.randrange(len(original)) for _ in range(FLIPS)]
    places += [draw.randrange(min(HEAD, len(original))) for _ in range(IN_THE_HEAD)]
    for place in places:
        data, bit = bytearray(original), draw.randrange(8)
        data[place] ^= 1 << bit
        yield f"bit {bit} of byte {place}", bytes(data)
    for i in range(CUTS):
        length = len(original) * i // CUTS
        yield f"cut to {length} bytes", original[:length]


def _refusal(use: Callable[[Path], object], file: Path) -> str:
    """The message, or nothing when the file was used."""
    try:
        use(file)
    except HmsaError as error:
        return error.message
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_goes_unnoticed_and_the_message_names_the_file(tmp_path: Path, kind: str) -> None:
    make, use = KINDS[kind]
    file = make(tmp_path)
    original = file.read_bytes()
    assert use(file) is not None
    digests = 0
    for words, data in _damaged(original):
        file.write_bytes(data)
        said = _refusal(use, file)
        assert said, f"{kind} was used with {words}"
        assert file.name in said, (words, said)
        assert "\n" not in said, words
        reported = DIGESTS.search(said)
        assert reported is None or reported[1] != reported[2], (words, said)
        digests += reported is not None
        file.write_bytes(original)
    assert use(file) is not None
    # The others were refused before a digest was asked: cut, no JSON, another first line.
    assert digests > 100, "few messages say which digest was found and which was recorded"
