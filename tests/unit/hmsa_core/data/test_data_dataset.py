from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hmsa_core.config import AugmentConfig, PseudoConfig
from hmsa_core.data import dataset as module
from hmsa_core.data.dataset import CropDataset, init_worker
from hmsa_core.data.index import Index
from hmsa_core.data.plan import EpochPlan
from hmsa_core.data.prepare import build
from hmsa_core.data.sampling import Centroids
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.io.errors import InputError, IntegrityError
from hmsa_core.training.data import Timeline

from .conftest import SIZE, CityTree, blocks

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's advice for two cores
CROP = (32, 40)


class Store:
    """Stands in for a thresholded label store."""

    opened = 0

    def __init__(self, size: tuple[int, int] = SIZE) -> None:
        type(self).opened += 1
        self.size = size

    def read_label(self, name: str) -> np.ndarray:
        return blocks(sum(name.encode()), (2, 8, 255), self.size)

    def read_human(self, name: str) -> np.ndarray:
        return np.zeros(self.size, np.uint8)


class MergedStore(Store):
    """The same labels; those of class 8 were given by people."""

    def read_human(self, name: str) -> np.ndarray:
        return (self.read_label(name) == 8).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Index, Centroids]:
    folder = tmp_path_factory.mktemp("data")
    tree = CityTree(folder / "cityscapes").standard()
    build(SourceSpec(root=str(tree.root)), RolesSpec(learn_splits=("train",)), folder / "index", tile=16)
    return (
        tree.root,
        Index.load(folder / "index/target.parquet"),
        Centroids.load(folder / "index/centroids-target.parquet"),
    )


def make_plan(data, length: int = 24, epochs: int = 2, **options) -> EpochPlan:
    _, index, centroids = data
    pseudo, learn = index.select(roles=["unlabelled"]), index.select(roles=["learn"])
    options = {"seed": 3, "epochs": epochs, "epoch_samples": length, "pseudo": pseudo, **options}
    return EpochPlan(learn, centroids, num_classes=19, **options)


def crops(data, plan: EpochPlan, **options) -> CropDataset:
    root, index, _ = data
    options = {"open_store": Store, **options}
    return CropDataset(plan, root=root, classes=index.classes, crop=CROP, **options)


def same(a: dict, b: dict) -> bool:
    return all(a[k] == b[k] for k in ("name", "source")) and all(torch.equal(a[k], b[k]) for k in ("image", "label"))


def test_items_are_what_training_needs(data):
    plan = make_plan(data)
    items = crops(data, plan)
    assert len(items) == 48, "two epochs, one after the other"
    for i, request in enumerate([*plan.crops(0), *plan.crops(1)]):
        item = items[i]
        assert (item["image"].shape, item["image"].dtype) == ((*CROP, 3), torch.uint8)
        assert (item["label"].shape, item["label"].dtype) == (CROP, torch.uint8)
        assert (item["name"], item["source"]) == (request.sample.name, request.source)
        assert set(item["label"].unique().tolist()) <= (set(range(19)) if request.source == "fine" else {2, 8}) | {255}


def test_crops_show_the_class_they_were_chosen_for(data):
    plan = make_plan(data, length=60, pseudo=[])
    items = crops(data, plan, augment=AugmentConfig(scale_min=1, scale_max=1))
    chosen = [i for i, c in enumerate(plan.crops(0)) if c.class_id >= 0]
    shown = [int(plan.crops(0)[i].class_id in items[i]["label"]) for i in chosen]
    # A centre of mass may lie outside its class, but the crop is far larger than the tile.
    assert np.mean(shown) > 0.95


def test_cache_and_order_change_nothing(data, monkeypatch):
    plan = make_plan(data)
    plain, cached = crops(data, plan), crops(data, plan, cache_bytes=1 << 30)
    expected = [plain[i] for i in range(24)]
    order = np.random.default_rng(1).permutation(24)
    assert all(same(cached[int(i)], expected[i]) for i in order)
    monkeypatch.setattr(module, "read_image", lambda *a, **k: pytest.fail("decoded again"))
    monkeypatch.setattr(module, "read_label", lambda *a, **k: pytest.fail("decoded again"))
    assert all(same(cached[i], expected[i]) for i in range(24))


def test_cache_keeps_within_its_bytes(data):
    limit = 3 * SIZE[0] * SIZE[1] * 4
    cached = crops(data, make_plan(data), cache_bytes=limit)
    for i in range(24):
        cached[i]
    assert 0 < sum(a.nbytes for a in cached._cache._kept.values()) <= limit


class Names(torch.utils.data.Dataset):
    """The plan without pictures: order is what is tested."""

    def __init__(self, plan: EpochPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, position: int) -> tuple[int, str, int]:
        crop = self.plan.at(position)
        return position, crop.sample.name, crop.seed


@pytest.mark.parametrize(("world", "workers"), [(1, 4), (2, 1), (4, 0), (8, 0)])
def test_ranks_and_loader_processes_never_change_the_global_sequence(data, world, workers):
    """Three epochs of 117 crops, 8 a step; each rank has its own loader."""
    plan = make_plan(data, length=117, epochs=3)
    timeline = Timeline(plan, 8)
    expected = [(p, plan.at(p).sample.name, plan.at(p).seed) for p in range(timeline.total_steps * 8)]
    per_rank = [
        DataLoader(
            Names(plan),
            batch_sampler=list(timeline.batches(0, rank=rank, world=world, batch=1)),
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=init_worker if workers else None,
        )
        for rank in range(world)
    ]
    merged = [item for parts in zip(*per_rank, strict=True) for part in parts for item in part]
    assert merged == expected


def test_loader_processes_give_the_same_pixels(data):
    plan = make_plan(data, epochs=1)
    expected = [crops(data, plan)[i] for i in range(24)]
    for workers in (1, 3):
        # OpenCV's thread pool does not survive a fork, and this process has used it: nothing may wait for it.
        options = {"num_workers": workers, "worker_init_fn": init_worker, "timeout": 60}
        loader = DataLoader(crops(data, plan), batch_size=4, **options)
        for first, batch in zip(range(0, 24, 4), loader, strict=True):
            assert batch["name"] == [e["name"] for e in expected[first : first + 4]]
            assert torch.equal(batch["image"], torch.stack([e["image"] for e in expected[first : first + 4]]))
            assert torch.equal(batch["label"], torch.stack([e["label"] for e in expected[first : first + 4]]))


def test_each_process_opens_the_store_for_itself(data):
    items = crops(data, make_plan(data))
    before = Store.opened
    for i in range(24):
        items[i]
    assert Store.opened == before + 1
    items._opened = (os.getpid() + 1, items._opened[1])  # as after a fork
    items.arrays(next(c for c in items.plan.crops(0) if c.source == "pseudo"))
    assert Store.opened == before + 2


@pytest.mark.parametrize("kind", ["classmix", "cutmix"])
def test_mixing_happens_on_auto_labelled_crops_only(data, kind):
    plan, mixed = make_plan(data), make_plan(data, pseudo_config=PseudoConfig(mix=kind))
    plain_items, mixed_items = crops(data, plan), crops(data, mixed)
    changed = {"fine": 0, "pseudo": 0}
    for i, request in enumerate(plan.crops(0)):
        changed[request.source] += not same(plain_items[i], mixed_items[i])
        assert same(mixed_items[i], crops(data, mixed)[i])
    assert changed["fine"] == 0
    assert changed["pseudo"] >= 10


@pytest.mark.parametrize("kind", ["classmix", "cutmix"])
def test_nothing_is_pasted_over_pixels_that_a_human_labelled(data, kind):
    plan, mixed = make_plan(data), make_plan(data, pseudo_config=PseudoConfig(mix=kind, human_weight=2.0))
    plain, free = crops(data, plan), crops(data, mixed)
    merged = crops(data, mixed, open_store=MergedStore)
    covered = 0
    for i, request in enumerate(plan.crops(0)):
        (image, label, _), (mixed_image, mixed_label, human) = plain.arrays(request), merged.arrays(request)
        by_people = (label == 8) & (request.source == "pseudo")
        assert np.array_equal(mixed_image[by_people], image[by_people])
        assert np.array_equal(mixed_label[by_people], label[by_people])
        assert np.array_equal(human, by_people)
        assert np.array_equal(merged[i]["human"].numpy(), human)
        covered += int((free.arrays(request)[1][by_people] != 8).sum())
    assert covered, "without people's labels these pixels are pasted over"


def test_auto_labelled_crops_may_have_stronger_colour(data):
    strong = make_plan(data, pseudo_config=PseudoConfig(colour=1.0))
    plain_items, strong_items = crops(data, make_plan(data)), crops(data, strong)
    for i, request in enumerate(strong.crops(0)):
        assert same(plain_items[i], strong_items[i]) == (request.source == "fine")
        assert torch.equal(plain_items[i]["label"], strong_items[i]["label"])


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_changed_file_is_caught_by_its_digest(tmp_path, what):
    tree = CityTree(tmp_path / "c").standard()
    build(SourceSpec(root=str(tree.root)), RolesSpec(), tmp_path / "index", tile=16)
    index = Index.load(tmp_path / "index/target.parquet")
    (sample, *_) = index.select(roles=["learn"], splits=["train"])
    plan = EpochPlan([sample], Centroids(), num_classes=19, seed=1, epochs=1)
    items = CropDataset(plan, root=tree.root, classes=index.classes, crop=CROP)
    assert items[0]["label"].dtype == torch.uint8
    if what == "image":
        tree.image("train", sample.name, 255 - np.asarray(module.read_image(tree.root / sample.image)))
    else:
        tree.label("train", sample.name, blocks(77))
    with pytest.raises(IntegrityError, match="recorded was"):
        items[0]


def test_missing_store_and_labels_of_other_sizes_are_named(data):
    root, index, _ = data
    plan = make_plan(data)
    at = next(i for i, c in enumerate(plan.crops(0)) if c.source == "pseudo")
    bare = CropDataset(plan, root=root, classes=index.classes, crop=CROP)
    with pytest.raises(InputError, match="no label store is given"):
        bare[at]
    wrong = CropDataset(plan, root=root, classes=index.classes, crop=CROP, open_store=partial(Store, (8, 8)))
    with pytest.raises(InputError, match="the pseudo label is 8x8, the image 96x48"):
        wrong[at]


class Slow(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        time.sleep(0.005)
        return os.getpid()


def test_a_signal_for_the_group_leaves_loader_processes_alive():
    loader = DataLoader(Slow(), batch_size=1, num_workers=2, worker_init_fn=init_worker)
    batches = iter(loader)
    workers = {int(next(batches)) for _ in range(6)}
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert {int(next(batches)) for _ in range(20)} == workers
    del batches
