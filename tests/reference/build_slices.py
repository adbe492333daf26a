"""Make this folder's model and loss files from the full set: `python -m tests.reference.build_slices`.

Needs the full set next to the checkout (README.md). JSON files are kept whole (without white space), arrays thinned.
"""

from __future__ import annotations

import gzip
import json

import numpy as np

from tests.reference.golden import FULL, HERE, thin

JSON_FILES = {
    "model_forward": "model_forward",
    "model_loss_frozen_bn": "model_loss_frozen_bn",
    "model_train_step": "model_train_step",
    "model_fill_check": "fill_check",
    "model_sensitivity": "sensitivity",
    "loss_rmi": "rmi",
    "loss_weighted": "losses",
}
WHOLE = {"eval_argmax", "avgpool_argmax", "gts"}  # integers, compared exactly
BY_FORMULA = {"main/logits", "main/labels"}  # made again from the seed; the JSON has sums to check


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def main() -> None:
    for ours, theirs in JSON_FILES.items():
        content = json.loads((FULL / f"{theirs}.json").read_text())
        (HERE / f"{ours}.json").write_text(compact(content) + "\n")
    keys = compact(json.loads((FULL / "hrnet_ocr_mscale_keys.json").read_text())).encode()
    (HERE / "model_keys.json.gz").write_bytes(gzip.compress(keys, 9, mtime=0))
    for ours, theirs in {"model_forward": "model_forward", "loss_rmi": "rmi"}.items():
        with np.load(FULL / f"{theirs}.npz") as file:
            kept = {key: file[key] if key in WHOLE else thin(file[key]) for key in file.files if key not in BY_FORMULA}
        np.savez_compressed(HERE / f"{ours}.npz", **kept)


if __name__ == "__main__":
    main()
