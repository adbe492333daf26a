from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hmsa_core import taxonomy
from hmsa_core.data import checks
from hmsa_core.data.found import Found
from hmsa_core.data.index import Index, Sample, read_quarantine
from hmsa_core.data.prepare import build, write_empty
from hmsa_core.data.roles import assign_blocks, assign_roles
from hmsa_core.data.sampling import Centroids
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.data.tables import Rows
from hmsa_core.io import engine
from hmsa_core.io.engine import Engine
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError, LayoutError
from tests.support.training import class_file, sample

from .conftest import SIZE, blocks, pair, picture, save

LEARN = RolesSpec(learn_splits=("train",))
ROLES = RolesSpec(calibrate=("ulm",), learn_splits=("train",), report_splits=("val",))


def source(tree, kind: str = "cityscapes", **options) -> SourceSpec:
    return SourceSpec(kind=kind, root=str(tree if isinstance(tree, Path) else tree.root), **{"max_bad": 1.0, **options})


def quarantine(out: Path) -> list[tuple[str, str, str]]:
    return [(r.name, r.part, r.reason) for r in read_quarantine(out / "quarantine.parquet")]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_index_and_centroids_hold_what_the_files_hold_and_progress_counts_every_image(cities, tmp_path):
    tree, seen = cities().standard(), []
    summary = build(source(tree), ROLES, tmp_path / "out", progress=lambda *p: seen.append(p), tile=16, min_pixels=3)
    assert seen == [(i, 15) for i in range(1, 16)]
    index = Index.load(tmp_path / "out/target.parquet")
    assert (index.root, index.classes.name, len(index)) == ("target", "cityscapes", summary.images)
    for row in index.samples:
        assert (row.height, row.width) == SIZE
        assert row.image_sha256 == hashlib.sha256((tree.root / row.image).read_bytes()).hexdigest()
        for path, digest in ((row.label, row.label_sha256), (row.coarse, row.coarse_sha256)):
            assert digest == (hashlib.sha256((tree.root / path).read_bytes()).hexdigest() if path else "")
    roles = Counter((s.split, s.role, s.kind) for s in index.samples)
    assert roles == {
        ("train", "learn", "fine"): 4,
        ("train", "calibrate", "fine"): 4,
        ("val", "report", "fine"): 3,
        ("test", "guard", "unlabelled"): 2,
        ("train_extra", "unlabelled", "coarse"): 2,
    }
    assert {s.city for s in index.select(roles=["calibrate"])} == {"ulm"}
    centroids = Centroids.load(tmp_path / "out/centroids-target.parquet")
    assert set(centroids.names) == {f"aachen_{i:06d}_000019" for i in range(4)}, "of images to learn from alone"
    assert centroids.settings == {"tile": 16, "min_pixels": 3}
    assert sum(summary.centroids.values()) == len(centroids) > 0


def test_every_kind_of_bad_file_becomes_one_row_and_the_run_goes_on(cities, tmp_path):
    tree = cities().standard()
    black = np.zeros(SIZE, np.uint8)
    tree.image("train_extra", "troisdorf_000000_000073", black)
    tree.label("train_extra", "troisdorf_000000_000073", black)
    cut = tree.image("train", "bremen_000000_000019")
    tree.label("train", "bremen_000000_000019")
    cut.write_bytes(cut.read_bytes()[:-60])
    wrong = (np.full(SIZE, 77, np.uint8), blocks(1, size=(SIZE[0], SIZE[1] + 1)), np.zeros(SIZE, np.uint8))
    for i, label in enumerate(wrong, 1):
        tree.image("train", f"bremen_00000{i}_000019")
        tree.label("train", f"bremen_00000{i}_000019", label)
    tree.image("train", "bremen_000004_000019")
    tree.image("train_extra", "bamberg_000000_000019")
    tree.label("train_extra", "bamberg_000000_000019").write_bytes(b"\x89PNG\r\n\x1a\n")
    tree.label("train", "bremen_000005_000019")
    gone = tree.image("train_extra", "bamberg_000002_000019")
    gone.unlink()
    gone.symlink_to(tmp_path / "gone.png")
    twin = tree.image("train_extra", "bamberg_000001_000019")
    shutil.copy(tree.images["train"] / "aachen/aachen_000000_000019_leftImg8bit.png", twin)
    summary = build(source(tree), ROLES, tmp_path / "out")
    build(source(tree), ROLES, tmp_path / "again", previous=tmp_path / "out")
    assert digests(tmp_path / "again") == digests(tmp_path / "out"), "refused again"
    assert quarantine(tmp_path / "out") == [
        ("bremen_000000_000019", "image", "truncated"),
        ("bremen_000001_000019", "label", "ids-out-of-range"),
        ("bremen_000002_000019", "label", "size-mismatch"),
        ("bremen_000003_000019", "label", "empty"),
        ("bremen_000004_000019", "image", "unpaired"),
        ("bremen_000005_000019", "label", "unpaired"),
        ("bamberg_000000_000019", "coarse", "truncated"),
        ("bamberg_000001_000019", "image", "duplicate"),
        ("bamberg_000002_000019", "image", "unreadable"),
        ("troisdorf_000000_000073", "image", "constant"),
    ]
    rows = read_quarantine(tmp_path / "out/quarantine.parquet")
    assert rows[7].detail == "duplicate of aachen_000000_000019"
    assert rows[2].detail == f"label is {SIZE[1] + 1}x{SIZE[0]}, image is {SIZE[1]}x{SIZE[0]}"
    assert all(str(tmp_path) not in row.detail and row.root == "target" for row in rows)
    names = {s.name: s for s in Index.load(tmp_path / "out/target.parquet").samples}
    assert names["bamberg_000000_000019"].kind == "unlabelled"  # its image is fine
    assert names["bamberg_000000_000019"].coarse == ""
    assert "bremen_000004_000019" not in names
    assert summary.refused == Counter(row.reason for row in rows)
    assert summary.refused_images == 7  # a copy, a label without an image and a bad coarse label lose no image


def test_too_many_bad_images_stop_the_run_with_the_reasons(cities, tmp_path):
    tree = cities().standard()
    for path in (tree.images["train"] / "ulm").iterdir():
        path.write_bytes(b"GIF89a" + bytes(50))
    reported = (
        r"4 of 15 images cannot be used \(4 not-an-image\), leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png: "
        r"not-an-image \(not a PNG, .*\); .* \.\.\.; allowed are 5%"
    )
    with pytest.raises(InputError, match=reported) as caught:
        build(source(tree, max_bad=0.05, max_bad_images=3), ROLES, tmp_path / "out")
    assert "quarantine.parquet" in caught.value.hint
    assert "max_bad" in caught.value.hint
    assert [row.reason for row in read_quarantine(tmp_path / "out/quarantine.parquet")] == ["not-an-image"] * 4
    assert not (tmp_path / "out/target.parquet").exists()
    # A few do not stop the run of a small data set.
    assert build(source(tree, max_bad=0.05), ROLES, tmp_path / "out").refused == {"not-an-image": 4}
    with pytest.raises(InputError, match="4 of 15 images cannot be used"):
        build(source(tree, max_bad=0.0), ROLES, tmp_path / "strict")  # who says none means none
    for folder in tree.images.values():
        for path in folder.rglob("*.png"):
            path.write_bytes(b"GIF89a" + bytes(50))
    with pytest.raises(InputError, match="cannot be used") as caught:
        build(source(tree, max_bad=0.05, max_bad_images=100), ROLES, tmp_path / "none left")
    assert "max_bad" not in caught.value.hint, "no share helps where nothing is left"


def test_of_two_images_with_one_name_neither_takes_the_role_of_the_other(tmp_path):
    root = tmp_path / "own"
    class_file(root, "ab")
    for i, split in enumerate(("test", "train")):
        for k in range(4):
            pair(root, f"{split}/{k:06d}", 400 + 10 * i + k)
    roles = RolesSpec(learn_splits=("train",), report_splits=("test",))
    given = {"splits": ("test", "train"), "max_bad": 0.05}
    summary = build(source(root, kind="folder", **given), roles, tmp_path / "out")
    samples = Index.load(tmp_path / "out/target.parquet").samples
    assert {(s.split, s.role) for s in samples} == {("test", "report")}
    assert summary.refused_images == 4, "half of the images are lost"
    with pytest.raises(InputError, match="4 of 8 images cannot be used") as caught:
        build(source(root, kind="folder", max_bad_images=0, **given), roles, tmp_path / "strict")
    assert "set `names: path`" in caught.value.hint
    build(source(root, kind="folder", names="path", **given), roles, tmp_path / "out")
    roles_of = {s.name: s.role for s in Index.load(tmp_path / "out/target.parquet").samples}
    assert roles_of == {
        f"{s}__{k:06d}": {"test": "report", "train": "learn"}[s] for s in ("test", "train") for k in range(4)
    }


def test_results_do_not_depend_on_workers_place_or_clock(cities, tmp_path):
    tree = cities().standard()
    build(source(tree), ROLES, tmp_path / "one", tile=16)
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(tree.root, moved)
    for i, path in enumerate(sorted(moved.rglob("*.png"))):
        os.utime(path, (1e9 - i, 1e9 - i))
    build(source(moved), ROLES, tmp_path / "two", engine=Engine(workers=3), tile=16)
    build(source(moved), ROLES, tmp_path / "three", engine=Engine("threads", 3), tile=16)
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "three")


def test_unchanged_files_are_hashed_but_not_decoded_again(cities, tmp_path, monkeypatch):
    tree = cities().standard()
    build(source(tree), ROLES, tmp_path / "one", tile=16)
    tree.image("train", "aachen_000001_000019", picture(900))
    tree.label("train", "ulm_000001_000019", blocks(901))
    read: list[str] = []
    plain_image, plain_label = checks.read_picture, checks.read_label
    monkeypatch.setattr(checks, "read_picture", lambda p, **k: read.append(p.name) or plain_image(p, **k))
    monkeypatch.setattr(checks, "read_label", lambda p, *a, **k: read.append(p.name) or plain_label(p, *a, **k))
    build(source(tree), ROLES, tmp_path / "two", tile=16, previous=tmp_path / "one")
    assert sorted(read) == [
        "aachen_000001_000019_gtFine_labelIds.png",
        "aachen_000001_000019_leftImg8bit.png",
        "ulm_000001_000019_gtFine_labelIds.png",
    ]
    build(source(tree), ROLES, tmp_path / "fresh", tile=16)
    assert digests(tmp_path / "two") == digests(tmp_path / "fresh")


def test_other_tiles_or_roles_read_labels_again(cities, tmp_path):
    tree = cities().standard()
    build(source(tree), ROLES, tmp_path / "one", tile=16)
    for name, roles, tile in (("tile", ROLES, 24), ("role", RolesSpec(calibrate=("aachen",)), 16)):
        build(source(tree), roles, tmp_path / name, tile=tile, previous=tmp_path / "one")
        build(source(tree), roles, tmp_path / f"{name}-fresh", tile=tile)
        assert digests(tmp_path / name) == digests(tmp_path / f"{name}-fresh")


def test_roots_share_one_quarantine_and_summary(cities, vistas, tmp_path):
    tree, other = cities().standard(), vistas()
    save(other.root / "training/images/lonely.jpg", picture(700))
    tree.image("train", "bremen_000004_000019")
    out = tmp_path / "out"
    build(source(tree), ROLES, out)
    build(source(other, "mapillary", name="pretrain"), RolesSpec(), out)
    build(source(tree), ROLES, out)  # again: replaces its own part only
    assert quarantine(out) == [("lonely", "image", "unpaired"), ("bremen_000004_000019", "image", "unpaired")]
    assert set(json.loads((out / "summary.json").read_text())) == {"target", "pretrain"}
    index = Index.load(out / "pretrain.parquet")
    assert index.root == "pretrain"
    assert [s.name for s in index.samples] == sorted(other.KEYS)
    assert [(s.height, s.width) for s in index.samples if s.name.startswith("--")] == [(60, 80)]
    assert {s.block for s in index.samples} == set(other.KEYS)


def test_no_pretraining_set_leaves_an_empty_index_that_says_so(tmp_path):
    write_empty(tmp_path, "pretrain", taxonomy.mapillary(), "no pretraining set is given")
    index = Index.load(tmp_path / "pretrain.parquet")
    assert len(index) == 0
    assert len(Centroids.load(tmp_path / "centroids-pretrain.parquet")) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["pretrain"]["notes"] == ["no pretraining set is given"]


def test_of_exact_copies_the_judged_one_is_kept_and_near_ones_are_named(cities, tmp_path):
    tree = cities().standard()
    val = tree.images["val"] / "frankfurt/frankfurt_000000_000300_leftImg8bit.png"
    shutil.copy(val, tree.images["train"] / "aachen/aachen_000002_000019_leftImg8bit.png")
    build(source(tree), ROLES, tmp_path / "out")
    assert quarantine(tmp_path / "out") == [("aachen_000002_000019", "image", "duplicate")]
    assert "frankfurt_000000_000300" in Index.load(tmp_path / "out/target.parquet").by_name()
    # Near copies across roles are named first.
    original = picture(55)
    tree.image("train", "aachen_000000_000019", original)
    tree.image("val", "frankfurt_000000_000000", np.clip(original.astype(int) + 3, 0, 255).astype(np.uint8))
    summary = build(source(tree), ROLES, tmp_path / "near")
    assert summary.near_duplicates == {"learn-report": 1}
    assert summary.near_duplicate_examples == [["aachen_000000_000019", "frankfurt_000000_000000"]]


def test_of_exact_copies_without_labels_the_one_with_a_coarse_label_is_kept(tmp_path):
    for split, name in (("bare", "a"), ("drawn", "b")):
        save(tmp_path / f"mine/images/{split}/{name}.png", picture(1))
    save(tmp_path / "mine/coarse/drawn/b.png", blocks(2, (0, 1)))
    class_file(tmp_path / "mine", ("road", "car"))
    spec = source(tmp_path / "mine", "folder", splits=("bare", "drawn"), labels="", coarse="coarse")
    build(spec, RolesSpec(unlabelled_splits=("bare", "drawn")), tmp_path / "out")
    assert [(s.name, s.kind) for s in Index.load(tmp_path / "out/target.parquet").samples] == [("b", "coarse")]


def _die(_work: object) -> None:
    os._exit(9)


# Python 3.11's pool also prints a trace when a worker is started while another's death is handled (3.12 takes a lock).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dying_worker_is_one_clear_error(cities, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_begin", _die)
    with pytest.raises(InputError, match="a process that checks images died"):
        build(source(cities().standard()), ROLES, tmp_path / "out", engine=Engine(workers=2))


def _linger(folder: Path, seconds: float) -> None:
    if seconds:
        (folder / str(os.getpid())).touch()
    time.sleep(seconds)


def test_a_worker_that_dies_with_a_lock_does_not_keep_the_others_waiting(tmp_path):
    def kill_the_idle_one():
        deadline = time.monotonic() + 60
        while not (busy := [int(path.name) for path in tmp_path.iterdir()]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(1.0)  # the other one has done its share, and waits for more with the queue's lock in hand
        others = [p.pid for p in multiprocessing.active_children() if p.pid not in busy]
        for pid in others:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_idle_one, daemon=True)
    killer.start()
    with pytest.raises(InputError, match="a process that checks images died"):
        list(Engine(workers=2).map(partial(_linger, tmp_path), [4.0, *[0.0] * 7], what="checks images", batch=4))
    killer.join()


def test_camvid_is_indexed_with_runs_of_three(camvid_tree, tmp_path):
    summary = build(source(camvid_tree, "camvid"), RolesSpec(), tmp_path / "out", tile=16)
    assert summary.by_role == {"calibrate": 1, "guard": 2, "learn": 4, "report": 1, "unlabelled": 10}
    index = Index.load(tmp_path / "out/target.parquet")
    unlabelled = [s for s in index.samples if s.role == "unlabelled"]
    assert all(s.label == "" and s.kind == "coarse" for s in unlabelled)
    assert max(Counter(s.block for s in unlabelled).values()) == 3


def found(city: str, sequence: int, frame: int, split: str = "train", label: str = "x") -> Found:
    name = f"{city}_{sequence:06d}_{frame:06d}"
    return Found(name, name, label, "", split, city, f"{city}_{sequence:06d}", frame)


DRIVES = [
    found("aachen", s, f, "new" if f % 10 else "train", "" if f % 10 else "x") for s in (0, 1) for f in (0, 5, 10)
]
TOWNS = [found(c, 0, 0) for c in ("aachen", "bochum", "bremen", "cologne", "jena", "ulm")]
TOWNS += [found(c, 0, 0, "val") for c in ("frankfurt", "lindau")]
FOUR = [found("aachen", 0, 0), found("aachen", 1, 0), found("ulm", 0, 0), found("lindau", 0, 0, "val")]
BARE = [found("bonn", 0, 0, "test", ""), found("augsburg", 0, 0, "train_extra", "")]
ONE_DRIVE = [found("aachen", 0, f, "val" if f == 50 else "train") for f in range(30, 80, 10)] + [found("aachen", 1, 50)]
NEIGHBOURS = [found("ulm", 0, 50, "val"), *(found("ulm", 0, f, "new", "") for f in (40, 60, 70))]


@pytest.mark.parametrize(
    ("images", "rules", "roles"),
    [
        (FOUR, {"calibrate": ("aachen_000001",), "report": ("ulm",), "report_splits": ("val",)}, "lcrr"),
        (FOUR, {}, "llll"),  # paper-final: train and val learn
        (FOUR, {"learn_splits": ("train",)}, "lllg"),
        # Images of a test split never teach unless asked.
        (BARE, {}, "gu"),
        (BARE, {"unlabelled_splits": ("test",)}, "ug"),
        # Nobody learns from a judged drive, with labels of a teacher either.
        (DRIVES, {"report": ("aachen_000001",), "learn_splits": ()}, "gugrgr"),
        (NEIGHBOURS, {"guard_frames": 15, "report_splits": ("val",)}, "rggu"),
        (ONE_DRIVE, {"guard_frames": 15, "report_splits": ("val",)}, "lgrgll"),
        (TOWNS, {"cv": 1}, "rrllllll"),  # a window of 2 at 1 * 8 // 3 of the released order: val first
        (TOWNS, {"cv": 3}, "llllllll"),
    ],
)
def test_roles_go_by_city_sequence_split_and_distance(images, rules, roles):
    names = {"l": "learn", "c": "calibrate", "r": "report", "u": "unlabelled", "g": "guard"}
    assert assign_roles(images, RolesSpec(**rules)) == [names[letter] for letter in roles]


def test_roles_of_places_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"roles.calibrate: no image is of 'paris'; the cities are: aachen"):
        assign_roles(FOUR, RolesSpec(calibrate=("paris",)))
    with pytest.raises(ValueError, match="less than or equal to 3"):
        RolesSpec(cv=4)


def own_folder(root: Path, labelled: int, unlabelled: int) -> Path:
    class_file(root, "abc")
    for k in range(labelled):
        pair(root, f"train/l{k:03d}", 500 + k, (0, 1, 2))
    for k in range(unlabelled):
        save(root / "images" / "new" / f"u{k:03d}.png", picture(700 + k))
    return root


def test_few_labelled_images_that_are_all_refused_stop_the_run_next_to_many_without_labels(tmp_path):
    root = own_folder(tmp_path / "own", 3, 90)
    roles = RolesSpec(learn_splits=("train",), unlabelled_splits=("new",))
    given = {"splits": ("train", "new")}
    assert build(source(root, kind="folder", **given), roles, tmp_path / "good").by_role == {
        "learn": 3,
        "unlabelled": 90,
    }
    for path in (root / "labels" / "train").iterdir():
        save(path, np.full((16, 16), 700, np.uint16))
    with pytest.raises(InputError, match="3 of 3 images with a fine label cannot be used, the first: l000"):
        build(source(root, kind="folder", **given), roles, tmp_path / "bad")


def test_blocks_by_city_sequence_image_or_run():
    images = [found("aachen", 0, f) for f in range(0, 70, 10)] + [found("aachen", 0, 900), found("ulm", 3, 1)]
    roles = ["learn" if f.frame < 40 else "report" for f in images]

    def blocks_of(**options) -> list[str]:
        return list(assign_blocks(images, roles, SourceSpec(**options)))

    assert set(blocks_of(block="city")) == {"aachen", "ulm"}
    assert set(blocks_of(block="sequence")) == {"aachen_000000", "ulm_000003"}
    assert len(set(blocks_of(block="image"))) == len(images)
    runs = blocks_of(block="run", block_frames=3)
    assert runs[:4] == ["aachen/learn/0000"] * 3 + ["aachen/learn/0001"]
    assert runs[4:7] == ["aachen/report/0000"] * 3
    assert runs[7] == "aachen/report/0001"  # a long gap in time ends a run
    assert runs[8] == "ulm/learn/0000"
    # Where images have no city, their sequence is the place.
    images = [Found(f"d{d}_{i:03d}", "", "x", "", "train", "", f"d{d}", i) for d in (1, 2) for i in range(6)]
    roles = ["calibrate"] * 12
    runs = blocks_of(kind="folder", block="run", block_frames=3)
    assert sorted(set(runs)) == [f"d{d}/calibrate/000{n}" for d in (1, 2) for n in (0, 1)]
    assert set(blocks_of(kind="folder", block="city")) == {"d1", "d2"}


def test_a_source_without_usable_images_is_a_layout_error(tmp_path):
    save(tmp_path / "images" / "a.png", picture(1))
    save(tmp_path / "labels" / "b.png", blocks(1))
    with pytest.raises(LayoutError, match="no usable image"):
        build(source(tmp_path, "folder", classes="cityscapes"), RolesSpec(), tmp_path / "out")


def test_selection_filters_and_names_what_it_does_not_know():
    samples = [sample("a"), sample("b", role="report", split="val"), sample("c", kind="coarse", role="unlabelled")]
    index = Index(Rows.of(Sample, samples), taxonomy.cityscapes(), "target")
    assert [s.name for s in index.select(roles=["learn", "report"])] == ["a", "b"]
    assert [s.name for s in index.select(kinds=["coarse"])] == ["c"]
    assert [s.name for s in index.select(splits=["val"], roles=["report"])] == ["b"]
    assert [s.name for s in index.select(names=["c", "a"])] == ["a", "c"]
    with pytest.raises(InputError, match="no role 'teach': expected learn"):
        index.select(roles=["teach"])
    with pytest.raises(InputError, match="no name 'zzz'"):
        index.select(names=["zzz"])


def test_damaged_or_foreign_index_files_and_two_images_of_one_name_are_refused(tmp_path):
    path = tmp_path / "i.parquet"
    with pytest.raises(InputError, match="two images are named 'a'"):
        Index.write(path, [sample("a"), sample("a")], taxonomy.cityscapes(), "target")
    Index.write(path, [sample(f"image-{i}") for i in range(50)], taxonomy.cityscapes(), "target")
    good = Index.load(path)
    rows_of_good = list(good.samples)
    data = path.read_bytes()
    caught = 0
    for at in np.linspace(0, len(data) - 1, 150).astype(int):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            index = Index.load(path)
            rows = list(index.samples)
        except IntegrityError:
            caught += 1
        else:  # only bytes without a meaning may change unseen, e.g. the writer's name
            assert (rows, index.classes, index.root) == (rows_of_good, good.classes, good.root)
    assert caught > 75
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match="damaged"):
        Index.load(path)
    Centroids().write(path)
    with pytest.raises(IntegrityError, match="not a file of format hmsa-index"):
        Index.load(path)
    with pytest.raises(InputError, match="not found"):
        Index.load(tmp_path / "none.parquet")


def ids_of(root, numbers) -> SourceSpec:
    for k in range(4):
        pair(root, f"train/{k:03d}", 900 + k, numbers)
    return SourceSpec(kind="folder", root=str(root), splits=("train",), classes="cityscapes")


# Nearly all trainIds are valid ids of other classes: road ... car; 8 and 11 are ids of sidewalk and building.
@pytest.mark.parametrize(
    ("numbers", "message", "place"),
    [
        (
            (0, 1, 2, 8, 10, 11, 13),
            "no label map of 4 learning images holds an id above 19, the first: .*000.png: do they hold trainIds",
            "as 0..18",
        ),
        ((0, 1, 8, 255), "4 of 4 images.*ids-out-of-range", "quarantine.parquet"),
    ],
)
def test_maps_of_train_ids_are_not_read_as_ids(tmp_path, numbers, message, place):
    with pytest.raises(InputError, match=message) as caught:
        build(ids_of(tmp_path, numbers), LEARN, tmp_path / "out")
    assert "class file of your own" in caught.value.hint
    assert place in caught.value.hint
    assert not (tmp_path / "out/target.parquet").exists()


def test_ids_pass_when_one_map_shows_that_they_are(tmp_path):
    spec = ids_of(tmp_path, (7, 8, 11))
    save(tmp_path / "labels/train/000.png", blocks(0, (7, 8, 26)))
    assert build(spec, LEARN, tmp_path / "out").by_role == {"learn": 4}
    spec = ids_of(tmp_path / "judged", (0, 1, 8, 11))  # nobody learns from these
    held = RolesSpec(learn_splits=(), report_splits=("train",))
    assert build(spec, held, tmp_path / "judged/out").by_role == {"report": 4}


def test_files_named_as_maps_of_train_ids_are_read_as_such(tmp_path):
    for k in range(3):
        stem = f"ulm_{k:06d}_000019"
        save(tmp_path / f"leftImg8bit/train/ulm/{stem}_leftImg8bit.png", picture(k))
        save(tmp_path / f"gtFine/train/ulm/{stem}_gtFine_labelTrainIds.png", blocks(k, (0, 1, 8)))
    spec = SourceSpec(kind="cityscapes", root=str(tmp_path), splits=("train",))
    assert build(spec, RolesSpec(), tmp_path / "out").by_role == {"learn": 3}
    for path in list(tmp_path.rglob("*_labelTrainIds.png")):
        path.rename(path.with_name(path.name.replace("TrainIds", "Ids")))
    with pytest.raises(InputError, match="do they hold trainIds") as error:
        build(spec, RolesSpec(), tmp_path / "other")
    assert "_labelTrainIds.png" in error.value.hint
