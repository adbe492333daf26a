"""The inference job: right labels, the same bytes however it is run, and nothing labelled from a damaged file."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from hmsa_core import models
from hmsa_core.config import RuntimeConfig
from hmsa_core.data.decode import read_image
from hmsa_core.data.index import Index
from hmsa_core.inference.folder import infer_job
from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.inference.teachers import teacher
from hmsa_core.inference.teachers.teacher import NetworkTeacher
from hmsa_core.io.atomic import read_json, sha256_file
from hmsa_core.io.engine import read_ahead
from hmsa_core.io.errors import ConfigError, IntegrityError, InterruptedRunError
from hmsa_core.labels import ConfidenceCode, LabelStore, StoreStatistics
from hmsa_core.runtime.progress import read_log
from hmsa_core.runtime.ranks import Ranks, start_ranks
from tests.support.damage import flip
from tests.support.inference import StopAfter, infer_spec, job_context, save_model, small_model
from tests.support.ranks import on_ranks, run_ranks
from tests.support.training import folder_bytes, write_data
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long

SIZE = (40, 56)
IMAGES = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, images=IMAGES, size=SIZE)
    save_model(folder / "model")
    return folder


@pytest.fixture
def data_copy(data: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of an undisturbed run by one rank."""
    work = tmp_path_factory.mktemp("finished")
    run(data, work)
    return work


@pytest.fixture
def work_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may go on with."""
    return Path(shutil.copytree(finished, tmp_path / "work"))


def run(data: Path, work: Path, stop=None, ranks=None, **changes) -> dict[str, Any]:
    return infer_job.run(infer_spec(data, work, data / "model", **changes), job_context(work, ranks, stop))


def store_bytes(work: Path) -> dict[str, bytes]:
    return folder_bytes(work / "store", (".lock",))


def rewrite_index(data: Path, change) -> None:
    """Pass the samples through `change` (list -> list) and write the index again."""
    path = data / "toy.parquet"
    index = Index.load(path)
    Index.write(path, change(list(index.samples)), index.classes, index.root)


def test_the_store_holds_what_label_image_gives_with_paths_and_lineage(data, finished):
    store = LabelStore.open(finished / "store", strict=True)
    predictor = Predictor(small_model())
    assert store.names() == [f"toy_{i:03d}" for i in range(IMAGES)]
    for name in store.names()[:3]:
        label, code = store.read(name)
        expected, confidence = label_image(predictor, read_image(data / f"toy/{name}.png"), (0.5, 1.0), True)
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(code, ConfidenceCode().encode(confidence))
    row = store.row("toy_001")
    assert (row["city"], row["image_path"]) == ("toytown", "toy/toy_001.png")
    assert row["image_sha256"] == sha256_file(data / "toy/toy_001.png")
    lineage = store.lineage
    assert lineage["teacher"] == read_json(data / "model" / "model.json")["weights_sha256"]
    assert (lineage["scales"], lineage["flip"], lineage["precision"]) == ([0.5, 1.0], True, "fp32")
    assert lineage["licences"] == {"toy": "none"}
    assert lineage["parameters"]["threads"] == 1
    summary = read_json(finished / "summary.json")
    assert summary["images"] == IMAGES
    assert summary["model_share"] > 0.5, "reading and writing overlap with the model"
    assert [line["event"] for line in read_log(finished / "log.jsonl")].count("shard") == 4


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_writes_the_same_bytes(data, finished, tmp_path, world):
    on_ranks(world, lambda ranks: run(data, tmp_path, ranks=ranks))
    assert store_bytes(tmp_path) == store_bytes(finished)


@pytest.fixture(scope="module")
def more_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images, so eight shards."""
    folder = tmp_path_factory.mktemp("more")
    write_data(folder, images=16, size=SIZE)
    save_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def more_finished(more_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("more_finished")
    run(more_data, work)
    return work


def before_each_image(then) -> None:
    """Call `then(n)` before the n-th image; in a fork of the test process."""
    count, inner = itertools.count(), NetworkTeacher.begin
    NetworkTeacher.begin = lambda self, name, image: (then(next(count)), inner(self, name, image))[1]


def test_a_rank_that_is_slow_labels_fewer_shards(more_data, more_finished, tmp_path):
    def job(ranks: Ranks) -> None:
        if not ranks.is_main:  # waits at its first image until nothing is left to claim
            before_each_image(
                lambda n: n or wait_for("five shards", lambda: len(list(tmp_path.glob("store/shard-*.parquet"))) >= 5)
            )
        run(more_data, tmp_path, ranks=ranks)

    on_ranks(2, job)
    assert store_bytes(tmp_path) == store_bytes(more_finished)
    by_main = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "shard"]
    assert len(by_main) >= 5, "static dealing would give it four of the eight"


def test_the_shards_of_a_rank_that_is_killed_are_labelled_by_the_other(more_data, more_finished, tmp_path):
    flag = tmp_path / "killed"

    def main(rank: int) -> None:
        def die(n: int) -> None:
            if n == 1:
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        before_each_image(die if rank else lambda n: n or wait_for("the flag", flag.exists))
        run(more_data, tmp_path / "work", ranks=start_ranks(RuntimeConfig(device="cpu", precision="fp32", threads=1)))

    # The other labels all that is left; then it misses the lost one, as torchrun's agent would.
    assert run_ranks(2, main) == [3, -signal.SIGKILL]
    assert len(list((tmp_path / "work/store").glob("shard-*.parquet"))) == 8
    summary = run(more_data, tmp_path / "work")
    assert (summary["images"], summary["resumed"]) == (0, 16)
    assert store_bytes(tmp_path / "work") == store_bytes(more_finished)


def test_tiles_that_lack_of_memory_forced_are_reported_in_receipt_and_summary(tmp_path, monkeypatch):
    write_data(tmp_path, images=3, size=(64, 600))
    save_model(tmp_path / "model")

    class Greedy(Predictor):
        images = 0

        def run(self, images, attention):
            self.images += images.shape[3] > 300
            if self.images == 2:  # the first image fits as a whole
                self.images = 1
                raise torch.OutOfMemoryError("no room")
            return super().run(images, attention)

    monkeypatch.setattr(teacher, "load_predictor", lambda path, _: Greedy(models.load(path)))
    summary = run(tmp_path, tmp_path / "work", scales=(1.0,), flip=False)
    assert summary["tiled"] == {"toy_001": 288, "toy_002": 288}
    assert read_json(tmp_path / "work/summary.json")["tiled"] == summary["tiled"]
    receipts = [read_json(path) for path in sorted((tmp_path / "work/store/receipts").glob("*.json"))]
    assert [one["notes"] for one in receipts] == [{"tiled": {"toy_001": 288}}, {"tiled": {"toy_002": 288}}]
    monkeypatch.undo()
    assert run(tmp_path, tmp_path / "work", scales=(1.0,), flip=False)["tiled"] == summary["tiled"], "by an earlier run"


def test_each_rank_reads_its_share_of_the_finished_shards_and_a_changed_one_is_found(data, finished, work_copy):
    flip(work_copy / "store" / "shard-00001.parquet")  # of the same size

    def job(ranks: Ranks) -> None:
        read, inner = [], infer_job.shard_done
        infer_job.shard_done = lambda store, plan: (read.append(plan.index), inner(store, plan))[1]  # in this fork
        run(data, work_copy, ranks=ranks)
        assert sorted(read) == [ranks.rank, ranks.rank + 2]

    on_ranks(2, job)
    assert store_bytes(work_copy) == store_bytes(finished)
    summary = read_json(work_copy / "summary.json")
    assert (summary["images"], summary["resumed"]) == (2, IMAGES - 2)


def test_how_many_images_a_shard_holds_changes_no_label(data, finished, tmp_path):
    run(data, tmp_path, images_per_shard=3)
    small, large = (LabelStore.open(work / "store", strict=True) for work in (finished, tmp_path))
    assert [len(list(work.glob("store/*.parquet"))) for work in (finished, tmp_path)] == [4, 3]
    for name in small.names():
        for one, other in zip(small.read(name), large.read(name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_order_of_the_index_the_place_of_the_data_and_a_clock_that_jumps_change_no_byte(
    data_copy, finished, tmp_path, monkeypatch
):
    rewrite_index(data_copy, lambda samples: samples[::-1])
    for image in data_copy.rglob("*.png"):
        os.utime(image, (1e9, 1e9))
    day, real = itertools.cycle([0, 86_400, -86_400, 7 * 86_400]), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(day))
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + next(day)) * 1e9))
    run(data_copy, tmp_path / "work")
    assert store_bytes(tmp_path / "work") == store_bytes(finished)
    summaries = [read_json(work / "summary.json") for work in (tmp_path / "work", finished)]
    assert len({str([one[key] for key in ("images", "resumed", "skipped")]) for one in summaries}) == 1
    written = [line["time"] for line in read_log(tmp_path / "work/log.jsonl")]
    assert max(written) - min(written) > 86_400, "the job has seen the clock jump"


def test_a_stopped_run_keeps_its_finished_shards_and_goes_on_to_the_same_bytes(data, finished, tmp_path):
    with pytest.raises(InterruptedRunError) as stopped:
        run(data, tmp_path, stop=StopAfter(5))
    assert stopped.value.exit_code == 143
    assert sorted(p.name for p in (tmp_path / "store").glob("*.parquet")) == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    assert not (tmp_path / "store" / "manifest.json").exists(), "an unfinished store is no store"
    inodes = {p.name: p.stat().st_ino for p in (tmp_path / "store").glob("*.parquet")}
    summary = run(data, tmp_path)
    assert (summary["images"], summary["resumed"]) == (IMAGES - 4, 4)
    assert store_bytes(tmp_path) == store_bytes(finished)
    for name, inode in inodes.items():
        assert (tmp_path / "store" / name).stat().st_ino == inode, "finished shards are not written again"
    summary = run(data, tmp_path)
    assert (summary["images"], summary["resumed"]) == (0, IMAGES)
    assert store_bytes(tmp_path) == store_bytes(finished)


def test_new_images_are_appended_and_nothing_that_was_there_changes(data_copy, tmp_path):
    few = {"names": tuple(f"toy_{i:03d}" for i in (1, 2, 5))}
    run(data_copy, tmp_path / "work", selection=few)
    before = {k: v for k, v in store_bytes(tmp_path / "work").items() if k.startswith("shard-")}
    summary = run(data_copy, tmp_path / "work")
    after = store_bytes(tmp_path / "work")
    assert (summary["images"], summary["resumed"]) == (IMAGES - 3, 3)
    assert before.items() <= after.items()
    names = LabelStore.open(tmp_path / "work" / "store", strict=True).names()
    assert names == [f"toy_{i:03d}" for i in (1, 2, 5, 0, 3, 4, 6)]


def test_an_unfinished_shard_whose_images_left_the_index_is_given_up(data_copy, tmp_path):
    with pytest.raises(InterruptedRunError):
        run(data_copy, tmp_path / "work", stop=StopAfter(3))
    rewrite_index(data_copy, lambda samples: [s for s in samples if s.name != "toy_003"])
    run(data_copy, tmp_path / "work")
    names = LabelStore.open(tmp_path / "work" / "store", strict=True).names()
    assert sorted(names) == [f"toy_{i:03d}" for i in range(IMAGES) if i != 3]


@pytest.mark.parametrize("change", [{"scales": (1.0,)}, {"flip": False}, {"codec": "webp"}])
def test_labels_of_other_parameters_are_never_mixed(data, work_copy, change):
    with pytest.raises(ConfigError, match="holds labels of another teacher, scales, flip, precision"):
        run(data, work_copy, **change)


def test_an_image_damaged_after_indexing_is_left_out_named_and_taken_in_once_restored(data_copy, tmp_path, finished):
    image = data_copy / "toy/toy_002.png"
    good = image.read_bytes()
    flip(image)
    summary = run(data_copy, tmp_path / "work")
    assert summary["images"] == IMAGES - 1
    assert [row["name"] for row in summary["skipped"]] == ["toy_002"]
    assert summary["skipped"][0]["reason"].startswith(f"changed: {image}: SHA-256 is")
    store = LabelStore.open(tmp_path / "work" / "store", strict=True)
    assert "toy_002" not in store
    assert len(store) == IMAGES - 1
    again = run(data_copy, tmp_path / "work")
    assert again["images"] == 0, "as long as it is damaged nothing is done again"
    assert [row["name"] for row in again["skipped"]] == ["toy_002"]
    image.write_bytes(good)
    assert run(data_copy, tmp_path / "work")["skipped"] == []
    assert store_bytes(tmp_path / "work") == store_bytes(finished)


def test_labels_of_images_that_are_gone_stay_when_one_next_to_them_is_restored(data_copy, tmp_path):
    image = data_copy / "toy/toy_002.png"
    good = image.read_bytes()
    flip(image)
    run(data_copy, tmp_path / "work")
    shards = read_json(tmp_path / "work" / "plan.json")["shards"]
    (shard,) = [s["names"] for s in shards if "toy_002" in s["names"]]
    gone = next(name for name in shard if name != "toy_002")
    before = LabelStore.open(tmp_path / "work" / "store").names()
    image.write_bytes(good)
    rewrite_index(data_copy, lambda samples: [s for s in samples if s.name != gone])
    summary = run(data_copy, tmp_path / "work")
    assert LabelStore.open(tmp_path / "work" / "store", strict=True).names() == before
    (row,) = summary["skipped"]
    assert row["name"] == "toy_002"
    assert row["reason"].endswith("label it into another store")


def test_too_many_damaged_images_end_the_run(data_copy, tmp_path):
    for i in (1, 4):
        (data_copy / f"toy/toy_{i:03d}.png").unlink()
    with pytest.raises(IntegrityError, match="2 images cannot be labelled, more than 1; the first: toy_001") as caught:
        run(data_copy, tmp_path / "work")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "work" / "store" / "manifest.json").exists()


def test_damaged_images_of_all_ranks_are_counted_together(data_copy, tmp_path):
    for i in (0, 2):  # one image in a shard of each rank
        (data_copy / f"toy/toy_{i:03d}.png").unlink()

    def of_its_parity(rank: int):
        inner = infer_job.claim_shard
        return lambda store, plan, **k: inner(store, plan, **k) if plan.index % 2 == rank else None

    def job(ranks: Ranks) -> None:
        infer_job.claim_shard = of_its_parity(ranks.rank)  # in this fork
        error = pytest.raises(IntegrityError, match="2 of 7 images cannot be labelled, more than 1")
        with error if ranks.is_main else nullcontext():
            run(data_copy, tmp_path / "work", ranks=ranks)

    on_ranks(2, job)


def test_conflicts_with_human_coarse_labels_are_counted(data_copy, tmp_path):
    coarse = np.full(SIZE, 255, np.uint8)
    coarse[10:20, 10:30] = 2
    cv2.imwrite(str(data_copy / "toy/coarse.png"), coarse)
    sha256 = sha256_file(data_copy / "toy/coarse.png")
    rewrite_index(
        data_copy,
        lambda samples: [
            dataclasses.replace(s, coarse="toy/coarse.png", coarse_sha256=sha256) if s.name == "toy_001" else s
            for s in samples
        ],
    )
    run(data_copy, tmp_path / "work")
    store = LabelStore.open(tmp_path / "work" / "store", strict=True)
    assert store.row("toy_001")["coarse_path"] == "toy/coarse.png"
    assert np.asarray(StoreStatistics.open(tmp_path / "work" / "store").pairs())[:-1].sum() > 0


def test_a_checkpoint_with_another_number_of_classes_is_refused(data, tmp_path):
    save_model(tmp_path / "model", small_model(classes=6))
    spec = infer_spec(data, tmp_path / "work", tmp_path / "model")
    with pytest.raises(ConfigError, match="6 classes, but the index has 4"):
        infer_job.run(spec, job_context(tmp_path / "work"))


def test_the_precision_that_was_really_used_is_recorded(data, tmp_path, monkeypatch):
    monkeypatch.setattr("hmsa_core.inference.network.optimised.cpu_has_bf16", lambda: False)
    runtime = RuntimeConfig(device="cpu", precision="bf16")
    spec = infer_spec(data, tmp_path, data / "model", runtime=runtime)
    infer_job.run(spec, dataclasses.replace(job_context(tmp_path), runtime=runtime))
    assert LabelStore.open(tmp_path / "store").lineage["precision"] == "fp32"


@pytest.mark.parametrize("threads", [1, 3])
def test_read_ahead_keeps_the_order_and_passes_errors_on(threads):
    assert list(read_ahead(range(7), lambda x: x * x, threads)) == [x * x for x in range(7)]
    assert list(read_ahead([3], str, threads)) == ["3"]
    assert list(read_ahead([], str, threads)) == []
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 0], lambda x: 1 // x, threads))
