"""Many images in one run: memory and open files stay flat, damaged images are told, the rest is labelled."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hmsa_core.inference.folder import infer_job
from hmsa_core.io.atomic import read_json
from hmsa_core.labels import LabelStore
from tests.support.inference import infer_spec, job_context, save_model
from tests.support.training import write_data

pytestmark = [pytest.mark.chain, pytest.mark.slow, pytest.mark.timeout(3600)]

IMAGES = 5000
DAMAGED = 10
WARM = 1000  # images after which caches and allocators are full


def _memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _counting(seen: list[tuple[float, int]], real: Callable[..., None]) -> Callable[..., None]:
    def run(self: object, plans: list[object], *, advance: Callable[[], None], **others: object) -> None:
        def step() -> None:
            advance()
            seen.append((_memory_mb(), len(os.listdir("/proc/self/fd"))))

        real(self, plans, advance=step, **others)

    return run


def test_five_thousand_images_cost_no_more_memory_than_one_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path, images=IMAGES, size=(32, 48))
    rng = random.Random(23)
    for number in rng.sample(range(IMAGES), DAMAGED):
        path = tmp_path / f"toy/toy_{number:03d}.png"
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    seen: list[tuple[float, int]] = []
    monkeypatch.setattr(infer_job.Pipeline, "run", _counting(seen, infer_job.Pipeline.run))
    spec = infer_spec(tmp_path, tmp_path / "work", save_model(tmp_path / "model"), scales=(1.0,), images_per_shard=100)
    begin = time.monotonic()
    infer_job.run(spec, job_context(spec.work))
    seconds = time.monotonic() - begin

    assert len(seen) == IMAGES
    growth = (seen[-1][0] - seen[WARM][0]) / (IMAGES - WARM) * 1000
    assert growth < 1.0, f"{growth:.2f} MB for each 1,000 images"
    assert seen[-1][1] <= seen[WARM][1] + 2, "files stay open"
    summary = read_json(spec.work / "summary.json")
    assert summary["seconds"] == pytest.approx(seconds, rel=0.01), "what a night is charged"
    # The rest is what is done once (loading the model, opening the index, the manifest) and what this test looks at.
    assert 0.75 * summary["seconds"] < sum(summary["timing"].values()) <= summary["seconds"]
    assert len(summary["skipped"]) == DAMAGED
    assert all("changed" in row["reason"] for row in summary["skipped"])
    assert len(LabelStore.open(spec.work / "store", strict=True).names()) == IMAGES - DAMAGED
