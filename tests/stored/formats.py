"""Write one file of each format, and say in plain values what is in such files.

`python -m tests.stored.formats` writes `stored.tar.gz` and `stored.json` anew, after a change of a format on purpose.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmsa_core import models
from hmsa_core.data.index import Index, QuarantineRow, read_quarantine, write_quarantine
from hmsa_core.data.sampling import Centroids, find_centroids
from hmsa_core.labels import LabelStore, LabelStoreWriter, ThresholdPolicy
from hmsa_core.labels.calibration import choose_policy
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.merge import MergeRules
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.settings import CalibrateConfig, MergeConfig, PairRule
from hmsa_core.lineage import LearnedImage, Lineage
from hmsa_core.taxonomy import IGNORE, cityscapes
from hmsa_core.training.state import StateStore
from pipeline.review.audit import Audit
from pipeline.review.spot_check import SpotFile
from pipeline.review.stats import parse_thresholds
from pipeline.review.view import StoreView
from tests.support.label_maps import coarse_of, maps, toy_classes
from tests.support.label_worlds import world
from tests.support.training import sample

ARCHIVE = Path(__file__).parent / "stored.tar.gz"
CLASSES = toy_classes()
LINEAGE = {"teacher": "ab" * 32, "scales": [0.5, 1.0, 2.0], "flip": True, "class_table": CLASSES.to_json()}
KEY = "c" * 64
_FILES = {"image": "leftImg8bit/a.png", "image_sha256": "1" * 64, "label": "gtFine/a.png", "label_sha256": "2" * 64}
_PLACE = {"city": "aachen", "sequence": "000000", "frame": 19, "block": "aachen_0", "height": 96, "width": 128}
SAMPLE = sample("aachen_000000_000019", **_FILES, **_PLACE, phash="0123456789abcdef")


def _patterned(model: models.MultiScaleModel) -> models.MultiScaleModel:
    """Weights that repeat: they make different logits, and pack well."""
    with torch.no_grad():
        for place, tensor in enumerate(t for t in model.state_dict().values() if t.is_floating_point()):
            steps = (torch.arange(tensor.numel()) * 5 + place) % 13 - 6
            tensor.copy_((steps / 32).reshape(tensor.shape))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.fill_(1.0)  # type: ignore[union-attr]
                module.weight.add_(1.0)
    return model


def _human(row: Mapping[str, Any]) -> np.ndarray:
    human = coarse_of(maps(int(row["name"][-1]), num_classes=5)[0], 1)
    return np.where(human == IGNORE, human, human % 5)


def _write_stores(folder: Path, policy: ThresholdPolicy, rules: MergeRules) -> None:
    with LabelStoreWriter(folder / "raw", LINEAGE, 2) as writer:
        for i in range(3):
            label, confidence = maps(i, num_classes=5)
            writer.add(f"city_{i}", label, confidence, city="city", image_path=f"img/city_{i}.png")
    raw = LabelStore.open(folder / "raw", strict=True)
    finalise(raw, Recipe(policy, rules, _human), folder / "final")
    with LabelStoreWriter(folder / "webp", {}, codec="webp") as writer:
        writer.add("bonn_0", *maps(7))
    view = StoreView(folder / "raw")
    audit = Audit.draw(view, parse_thresholds(view.classes, "0.70"), per_class=3, seed=1)
    file = SpotFile(Audit, view, folder / "audit.json")
    file.start(audit)
    file.answer(audit.id, 0, "right")


def write(folder: Path) -> None:
    """One file or folder of each format."""
    curves = Curves.measure(world(8, 2, seed=3, shape=(32, 48)), CLASSES, lineage=LINEAGE)
    curves.save(folder / "curves.json")
    policy = choose_policy(curves, CalibrateConfig(min_blocks=5, min_components=5, target=0.9))
    policy.save(folder / "policy.json")
    hand = PairRule(human=CLASSES.classes[0], teacher=CLASSES.classes[1], action="teacher")
    rules = MergeRules.default(CLASSES, MergeConfig(rules=(hand,)))
    _write_stores(folder, policy, rules)
    Index.write(folder / "index.parquet", [SAMPLE], cityscapes(), "target", licences={"target": "none"})
    refused = QuarantineRow("x", "x.png", "image", "train", "truncated", "ends early", "target")
    write_quarantine(folder / "quarantine.parquet", [refused])
    label = maps(1, num_classes=5)[0]
    Centroids.collect([("city_1", find_centroids(label, 5, 16))]).write(folder / "centroids.parquet", tile=16)
    image = LearnedImage("1" * 64, "aachen_000000_000019", "target", "0123456789abcdef", "000000", 19, "fine")
    Lineage({image.sha256: image}, ("ab" * 32,), ("a parent without a list",)).save(folder / "lineage.json")
    model = _patterned(models.build("hierarchical", trunk="hrnet_micro", num_classes=5, head="released"))
    models.save(model, folder / "model", class_table=CLASSES.to_json(), lineage={}, inference={"scales": [0.5, 1.0]})
    groups = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "optimiser": {"0.momentum": torch.ones(2)}}
    StateStore(folder / "state", key=KEY).save(7, groups, {"epoch": 1, "sampler": 14})


def _sha(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(f"{a.dtype}{a.shape}".encode() + a.tobytes() for a in arrays)).hexdigest()


def _store(path: Path) -> Any:
    store = LabelStore.open(path, strict=True)
    rows = [{k: row[k] for k in ("name", "city", "image_path")} for row in store.rows()]
    for row in rows:
        source = [store.read_source(row["name"])] if store.kind == "thresholded" else []
        row["maps"] = _sha(*store.read(row["name"]), *source)
    return {
        "kind": store.kind,
        "classes": store.classes.classes,
        "lineage": store.lineage,
        "rows": rows,
        "digest": store.digest,
    }


def _audit(folder: Path) -> Any:
    audit = SpotFile(Audit, StoreView(folder / "raw"), folder / "audit.json").current
    assert audit is not None
    return [audit.id, audit.overall(), [[i["name"], i["rank"], i["verdict"]] for i in audit.value["items"]]]


def _logits(path: Path) -> Any:
    model = models.load(path)
    image = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(1, 3, 32, 32) % 17 / 8 - 1
    with torch.no_grad():
        logits = model.predict(image).logits.flatten()
    return {"logits": logits[:: len(logits) // 40].tolist(), "inference": model.meta["inference"]}


def _policy(path: Path) -> Any:
    policy = ThresholdPolicy.load(path)
    assert policy.table is not None
    entries = [[e.name, e.code, e.threshold, e.status] for e in policy.entries]
    return {"entries": entries, "binding": policy.binding, "table": _sha(policy.table)}


def _curves(path: Path) -> Any:
    curves = Curves.load(path)
    sums = {name: [int(counts.sum()), _sha(counts)] for name, counts in curves.counts.items()}
    return {"blocks": curves.blocks, "counts": sums, "truth": curves.truth.tolist()}


def _state(path: Path) -> Any:
    state = StateStore(path, key=KEY).latest()
    assert state is not None
    groups = {g: {k: t.tolist() for k, t in tensors.items()} for g, tensors in state.groups.items()}
    return {"step": state.step, "groups": groups, "record": state.record}


def _index(path: Path) -> Any:
    index = Index.load(path)
    return [[vars(s) for s in index.samples], index.root, index.extra, index.classes.classes]


READERS: dict[str, Callable[[Path], Any]] = {  # the file that names format and version -> what is in it
    "raw/manifest.json": lambda f: _store(f / "raw"),
    "final/manifest.json": lambda f: _store(f / "final"),
    "webp/manifest.json": lambda f: _store(f / "webp"),
    "policy.json": lambda f: _policy(f / "policy.json"),
    "curves.json": lambda f: _curves(f / "curves.json"),
    "index.parquet": lambda f: _index(f / "index.parquet"),
    "quarantine.parquet": lambda f: [vars(r) for r in read_quarantine(f / "quarantine.parquet")],
    "centroids.parquet": lambda f: Centroids.load(f / "centroids.parquet").values.tolist(),
    "lineage.json": lambda f: asdict(Lineage.load(f / "lineage.json")),
    "model/model.json": lambda f: _logits(f / "model"),
    "state/step-00000007/state.json": lambda f: _state(f / "state"),
    "audit.json": _audit,
}


def pack(folder: Path) -> bytes:
    """A tar of all files but locks, the same bytes on any day."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return gzip.compress(data.getvalue(), 9, mtime=0)


def unpack(folder: Path) -> None:
    """Lay the stored files into a folder."""
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        found = {file: read(Path(name)) for file, read in READERS.items()}
        ARCHIVE.write_bytes(pack(Path(name)))
    lines = ",\n".join(f"{json.dumps(file)}: {json.dumps(value, sort_keys=True)}" for file, value in found.items())
    (ARCHIVE.parent / "stored.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
