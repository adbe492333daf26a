from __future__ import annotations

import errno
import io
import json
import shutil
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hmsa_core.data.sampling import find_centroids
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, LayoutError
from hmsa_core.labels import ConfidenceCode, LabelStore, LabelStoreWriter
from hmsa_core.labels.exporting import export_store
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.formats.released import prob_bytes_of_codes
from hmsa_core.labels.importing import find_files, import_folder
from hmsa_core.labels.merge import MergeRules
from hmsa_core.labels.review import UNTOUCHED
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.labels.thresholds.settings import MergeConfig
from hmsa_core.metrics import ConfusionMatrix, iou_of
from hmsa_core.taxonomy import cityscapes, from_file, mapillary
from tests.support.faults import every_exit, every_fault
from tests.support.label_maps import maps, opened, stored, toy_classes, write_store
from tests.support.training import class_file

REFERENCE = Path(__file__).parents[3] / "reference"
CODE = ConfidenceCode()
STEM = "aachen_000000_000019"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "labels_autolabel.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((REFERENCE / "labels_autolabel.json").read_text())


def _dump(folder: Path, golden: dict[str, np.ndarray], stem: str = STEM) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{stem}_leftImg8bit.png"), golden["dumped_label_png"])
    cv2.imwrite(str(folder / f"{stem}_leftImg8bit_prob.png"), golden["dumped_prob_png"])


# --- ids of files ---


@pytest.mark.parametrize("fmt", ["cityscapes", "released", "released-flat"])
@pytest.mark.parametrize(("kind", "ignored"), [("own", 200), ("vistas", 65), ("cityscapes", 0)])
def test_ignored_pixels_come_back_ignored_whatever_the_first_class_is(
    tmp_path: Path, kind: str, ignored: int, fmt: str
) -> None:
    classes = {
        "own": lambda: from_file(class_file(tmp_path, "abc", ignore_id=200)),
        "vistas": mapillary,
        "cityscapes": cityscapes,
    }[kind]()
    label = np.array([[0, 1, 255], [2, 255, 0]], np.uint8)
    out = tmp_path / "out" / "gtCoarse"
    export_store(stored(tmp_path / "store", {STEM: label}, classes=classes, city="aachen"), out, fmt)
    ids = next(p for p in out.rglob("*.png") if p.name.endswith(("labelIds.png", "_leftImg8bit.png")))
    assert set(np.asarray(Image.open(ids))[label == 255].tolist()) == {ignored}
    for path in out.rglob("*TrainIds.png"):
        path.unlink()  # the ids alone must tell
    import_folder(out, tmp_path / "back", classes)
    assert np.array_equal(opened(tmp_path / "back").read(STEM)[0], label)


# --- the released layout -------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", ["0", "0.5", "0.9"])
@pytest.mark.parametrize("folder", ["", "aachen", "not_called_by_its_name/aachen"])
def test_an_import_has_the_released_thresholds_and_centroids_whatever_the_folder_is_called(
    golden: dict[str, np.ndarray], facts: dict, tmp_path: Path, threshold: str, folder: str
) -> None:
    _dump(tmp_path / "in" / folder, golden)
    fmt, count = import_folder(tmp_path / "in", tmp_path / "store", cityscapes())
    assert (fmt, count) == ("released", 1)
    store = opened(tmp_path / "store")
    assert store.names() == [STEM]
    assert store.row(STEM)["city"] == "aachen"
    kept = from_threshold(threshold, store.classes).apply(*store.read(STEM))
    assert np.array_equal(kept, golden[f"loaded_thr{threshold}"])
    expected = [[int(c), x, y] for c, points in facts["centroids_tile32_dropNone"].items() for x, y in points]
    label = store.read_label(STEM)
    found = find_centroids(label[: label.shape[0] // 32 * 32, : label.shape[1] // 32 * 32], 19, 32)
    assert sorted(found[:, :3].tolist()) == sorted(expected)
    known = facts[f"thr{threshold}"]
    assert np.bincount(kept.ravel(), minlength=256)[:19].tolist() == known["hist"]
    assert np.count_nonzero(kept == 255) == known["ignored"]


@pytest.mark.parametrize("fmt", ["released", "released-flat"])
def test_import_and_export_give_back_every_byte_from_230_on(
    golden: dict[str, np.ndarray], tmp_path: Path, fmt: str
) -> None:
    _dump(tmp_path / "in" / "aachen", golden)
    import_folder(tmp_path / "in", tmp_path / "store", cityscapes())
    export_store(opened(tmp_path / "store"), tmp_path / "out", fmt)
    folder = tmp_path / "out" / ("aachen" if fmt == "released" else "")
    label = np.asarray(Image.open(folder / f"{STEM}_leftImg8bit.png"))
    prob = np.asarray(Image.open(folder / f"{STEM}_leftImg8bit_prob.png"))
    assert np.array_equal(label, golden["dumped_label_png"])
    high = golden["dumped_prob_png"] >= 230
    assert high.any()
    assert np.array_equal(prob[high], golden["dumped_prob_png"][high])
    assert (np.abs(prob.astype(int) - golden["dumped_prob_png"])[~high] <= 2).all()


def test_exported_bytes_never_claim_more_than_the_confidence_was(golden: dict[str, np.ndarray], facts: dict) -> None:
    """The released dump writes floor(255 p): 0.9 becomes 229, which is below 0.9 again."""
    p, expected = zip(*facts["_edge_probs_and_bytes"], strict=True)
    assert (prob_bytes_of_codes(CODE.encode(np.float32(p))) <= np.array(expected)).all()
    assert (prob_bytes_of_codes(CODE.encode(golden["prob_float32"])) <= golden["dumped_prob_png"]).all()
    assert prob_bytes_of_codes(np.uint8([90, 255])).tolist() == [229, 254]


def test_ignored_pixels_leave_with_probability_0(tmp_path: Path) -> None:
    write_store(tmp_path / "store", 1, coarse=False)
    store = opened(tmp_path / "store")
    name = store.names()[0]
    export_store(store, tmp_path / "out", "released-flat", policy=from_threshold(0.9, store.classes))
    prob = np.asarray(Image.open(tmp_path / "out" / f"{name}_leftImg8bit_prob.png"))
    label = np.asarray(Image.open(tmp_path / "out" / f"{name}_leftImg8bit.png"))
    dropped = store.read(name)[1] < CODE.code_for(0.9)
    assert dropped.any()
    assert (prob[dropped] == 0).all()
    assert (label[dropped] == 0).all()


def test_an_incomplete_released_folder_is_refused_with_the_file(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    _dump(tmp_path, golden)
    _dump(tmp_path, golden, "bonn_000001_000019")
    (tmp_path / "bonn_000001_000019_leftImg8bit_prob.png").unlink()
    with pytest.raises(LayoutError, match=r"bonn_000001_000019_leftImg8bit\.png has no _prob\.png"):
        find_files(tmp_path)
    (tmp_path / "bonn_000001_000019_leftImg8bit.png").unlink()
    (tmp_path / f"{STEM}_leftImg8bit.png").rename(tmp_path / "x_leftImg8bit.png")
    with pytest.raises(LayoutError, match="has no"):
        find_files(tmp_path)


def test_a_confidence_of_another_size_and_unknown_ids_are_refused(
    golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    _dump(tmp_path / "in", golden)
    cv2.imwrite(str(tmp_path / "in" / f"{STEM}_leftImg8bit_prob.png"), golden["dumped_prob_png"][:-1])
    with pytest.raises(InputError, match="_prob.png"):
        import_folder(tmp_path / "in", tmp_path / "store", cityscapes())
    cv2.imwrite(str(tmp_path / "in" / f"{STEM}_leftImg8bit.png"), np.full((63, 96), 200, np.uint8))
    with pytest.raises(HmsaError, match="200"):
        import_folder(tmp_path / "in", tmp_path / "store2", cityscapes())


# --- Cityscapes, submission, masks ---------------------------------------------------------------


def test_cityscapes_files_hold_ids_train_ids_and_colours_and_come_back(tmp_path: Path) -> None:
    given = write_store(tmp_path / "store", 3, coarse=False)
    export_store(opened(tmp_path / "store"), tmp_path / "out", "cityscapes")
    table = cityscapes()
    for name, (label, _, _) in given.items():
        stem = tmp_path / "out" / name.split("_")[0] / f"{name}_gtCoarse"
        assert np.array_equal(table.id_to_train[np.asarray(Image.open(f"{stem}_labelIds.png"))], label)
        assert np.array_equal(np.asarray(Image.open(f"{stem}_labelTrainIds.png")), label)
        assert np.array_equal(np.asarray(Image.open(f"{stem}_color.png")), table.palette()[label])
    fmt, count = import_folder(tmp_path / "out", tmp_path / "back", table)
    assert (fmt, count) == ("cityscapes", 3)
    back = opened(tmp_path / "back")
    for name, (label, _, _) in given.items():
        got, code = back.read(name)
        assert np.array_equal(got, label)
        assert (code == 255).all()


def test_plain_masks_hold_train_ids_and_come_back(tmp_path: Path) -> None:
    classes = toy_classes()
    label = np.array([[0, 4, 255], [1, 2, 3]], np.uint8)
    export_store(stored(tmp_path / "store", {"-key_A": label}, classes=classes), tmp_path / "out", "masks")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "-key_A.png")), label)
    assert import_folder(tmp_path / "out", tmp_path / "back", classes) == ("masks", 1)
    assert np.array_equal(opened(tmp_path / "back").read_label("-key_A"), label)


def test_masks_with_file_ids_need_to_be_told_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.uint8([[7, 26], [0, 33]]))
    with pytest.raises(InputError, match="read as trainIds"):
        import_folder(tmp_path / "in", tmp_path / "s1", cityscapes())
    import_folder(tmp_path / "in", tmp_path / "s2", cityscapes(), ids="file")
    assert opened(tmp_path / "s2").read_label("a").tolist() == [[0, 13], [255, 18]]


def test_a_submission_is_one_zip_of_ids_at_native_size_under_cityscapes_names_without_ignored_pixels(
    tmp_path: Path,
) -> None:
    label, confidence = (np.kron(a, np.ones((64, 64), a.dtype)) for a in maps(0, (16, 32)))
    store = stored(tmp_path / "store", {"berlin_000000_000019": (label, confidence)})
    export_store(store, tmp_path / "a.zip", "cityscapes-submission")
    export_store(store, tmp_path / "b.zip", "cityscapes-submission")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["berlin_000000_000019_pred_labelIds.png"]
        with archive.open(archive.namelist()[0]) as file:
            ids = np.asarray(Image.open(file))
    assert np.array_equal(cityscapes().id_to_train[ids], label)
    with pytest.raises(ConfigError, match="every pixel"):
        export_store(store, tmp_path / "c.zip", "cityscapes-submission", policy=from_threshold(0.5, store.classes))
    with pytest.raises(ConfigError, match="one zip file"):
        export_store(store, tmp_path / "folder", "cityscapes-submission")
    full = np.zeros((1024, 2048), np.uint8)
    wrong = (("x", full, "named"), (STEM, np.full_like(full, 255), "ignored pixels"), (STEM, full[1:], "labels are"))
    for i, (name, label, message) in enumerate(wrong):
        with pytest.raises(InputError, match=message):
            export_store(stored(tmp_path / f"{i}", {name: label}), tmp_path / "d.zip", "cityscapes-submission")
    assert not (tmp_path / "d.zip").exists()


def test_images_that_were_labelled_by_their_files_names_leave_under_cityscapes_names(tmp_path: Path) -> None:
    """`autolabel label` on the data set's own folders: berlin_000000_000019_leftImg8bit."""
    store = stored(tmp_path / "store", {"berlin_000000_000019_leftImg8bit": np.zeros((1024, 2048), np.uint8)})
    export_store(store, tmp_path / "all.zip", "cityscapes-submission")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.namelist() == ["berlin_000000_000019_pred_labelIds.png"]
    export_store(store, tmp_path / "cityscapes", "cityscapes")
    assert (tmp_path / "cityscapes/berlin/berlin_000000_000019_gtCoarse_labelIds.png").is_file()
    export_store(store, tmp_path / "released", "released")
    assert (tmp_path / "released/berlin/berlin_000000_000019_leftImg8bit.png").is_file()


@pytest.mark.parametrize("fmt", ["cityscapes", "released", "released-flat", "cityscapes-submission"])
def test_two_images_that_would_be_the_same_files_are_refused_before_any_is_written(tmp_path: Path, fmt: str) -> None:
    store = stored(tmp_path / "store", {name: np.zeros((4, 6), np.uint8) for name in (STEM, f"{STEM}_leftImg8bit")})
    out = tmp_path / ("out.zip" if fmt == "cityscapes-submission" else "out")
    with pytest.raises(InputError, match=f"{STEM} and {STEM}_leftImg8bit would be the same files"):
        export_store(store, out, fmt)
    assert not out.exists()


def test_a_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    for i, name in enumerate(("../evil", "a/b", "/abs")):
        with pytest.raises(InputError, match="plain file name"):
            export_store(stored(tmp_path / f"s{i}", {name: maps(0)}), tmp_path / "out", "masks")
    assert not (tmp_path / "evil.png").exists()
    with pytest.raises(InputError):
        export_store(stored(tmp_path / "c", {"n": maps(0)}, city="../../up"), tmp_path / "released", "released")


def test_unknown_formats_and_images_empty_folders_and_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store", 1)
    with pytest.raises(ConfigError, match="unknown export format"):
        export_store(opened(tmp_path / "store"), tmp_path, "tiff")
    with pytest.raises(InputError, match="no image named 'nobody'"):
        export_store(opened(tmp_path / "store"), tmp_path / "out", "masks", names=["nobody"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="no PNG"):
        find_files(tmp_path / "empty")
    with pytest.raises(InputError, match="not found"):
        find_files(tmp_path / "nowhere")
    for city in ("a", "b"):
        (tmp_path / "twice" / city).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "twice" / city / "x.png"), np.zeros((2, 2), np.uint8))
    with pytest.raises(LayoutError, match="both image 'x'"):
        find_files(tmp_path / "twice")


def test_a_thresholded_store_is_exported_as_it_is(tmp_path: Path) -> None:
    final = _final(tmp_path, "final")
    with pytest.raises(ConfigError, match="thresholded already"):
        export_store(final, tmp_path / "out", "masks", policy=from_threshold(0.5, final.classes))
    assert export_store(final, tmp_path / "out", "masks", names=final.names()[:1]) == 1
    name = final.names()[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"{name}.png")), final.read_label(name))


def _final(
    tmp_path: Path, name: str, *, threshold: float = 0.9, without: Collection[str] = (), half: Collection[str] = ()
) -> LabelStore:
    """A thresholded store; images of `without` were flagged in review, the upper half of those of `half`."""

    def reviewed(image: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray] | None:
        rows = height if image in without else height // 2 if image in half else 0
        flagged = np.arange(height * width).reshape(height, width) < rows * width
        return (flagged, np.full((height, width), UNTOUCHED, np.uint8)) if rows else None

    if not (tmp_path / "raw").exists():
        write_store(tmp_path / "raw", 3)
    raw = opened(tmp_path / "raw")
    finalise(raw, Recipe(policy=from_threshold(threshold, raw.classes), reviewed=reviewed), tmp_path / name)
    return opened(tmp_path / name)


def test_exported_again_a_folder_holds_what_the_store_holds_now(tmp_path: Path) -> None:
    final, out = _final(tmp_path, "final"), tmp_path / "out"
    export_store(final, out, "masks")
    gone, *left = final.names()
    export_store(_final(tmp_path, "reviewed", without=(gone,)), out, "masks")
    assert sorted(p.name for p in out.glob("*.png")) == sorted(f"{name}.png" for name in left)
    export_store(final, out, "masks", names=[gone])  # one image alone takes no other away
    assert len(list(out.glob("*.png"))) == 3
    with pytest.raises(ConfigError, match=r"holds another export \(of other kept\)"):
        export_store(_final(tmp_path, "other", threshold=0.5), out, "masks")
    mark = out / ".autolabel-export.json"
    value = json.loads(mark.read_text())
    mark.write_text(json.dumps({k: v for k, v in value.items() if k not in ("version", "images")}))
    with pytest.raises(ConfigError, match="of other version"):
        export_store(final, out, "masks")


@pytest.mark.fault
@pytest.mark.parametrize("error", [None, errno.ENOSPC])
def test_an_export_that_ended_anywhere_is_gone_on_with_and_nobody_is_said_to_have_changed_it(
    tmp_path: Path, error: int | None
) -> None:
    """Night 1 whole; night 2, with another label and without an image, ends at each operation; night 3 is whole."""

    def pictures() -> dict[str, bytes]:
        return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.png"))}

    final, out = _final(tmp_path, "final"), tmp_path / "out"
    export_store(final, out, "cityscapes")
    shutil.copytree(out, tmp_path / "night1")
    second = _final(tmp_path, "second", half=final.names()[:1], without=(final.names()[2],))
    export_store(second, out, "cityscapes")
    expected = pictures()
    shutil.copytree(out, tmp_path / "night2")

    def again() -> None:
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "night1", out)

    again()

    def night() -> None:
        export_store(second, out, "cityscapes")

    for _ in every_exit(night) if error is None else every_fault(night, error):
        export_store(second, out, "cityscapes")  # the next night
        assert pictures() == expected
        again()


@pytest.mark.fault
def test_a_first_export_that_was_killed_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    final, out = _final(tmp_path, "final"), tmp_path / "out"

    def first() -> None:
        export_store(final, out, "masks")

    for _ in every_exit(first):
        export_store(final, out, "masks")
        assert {p.name for p in out.iterdir()} == {".autolabel-export.json", *(f"{n}.png" for n in final.names())}
        shutil.rmtree(out)


def test_what_people_corrected_is_never_overwritten_or_removed_and_an_images_files_stay_together(
    tmp_path: Path,
) -> None:
    final = _final(tmp_path, "final")
    gone, other, third = final.names()
    later = _final(tmp_path, "later", half=(other,), without=(gone,))
    files = {"masks": "{}.png", "released-flat": "{}_leftImg8bit.png", "cityscapes": "{}_gtCoarse_labelIds.png"}
    for fmt, file in files.items():
        out = tmp_path / fmt
        export_store(final, out, fmt)
        before, (lost,) = {}, out.rglob(file.format(third))
        whole = lost.read_bytes()
        for name in (gone, other):
            (path,) = out.rglob(file.format(name))
            Image.fromarray(np.full(np.asarray(Image.open(path)).shape, 7, np.uint8)).save(path)
            before |= {p: p.read_bytes() for p in out.rglob(f"{name}*.png")}
        for _ in range(2):
            lost.unlink()
            with pytest.raises(
                InputError, match=f"2 images have files .*{file.format(other)}, .*{file.format(gone)}; "
            ):
                export_store(later, out, fmt)
            assert {p: p.read_bytes() for p in before} == before
            assert lost.read_bytes() == whole
    import_folder(tmp_path / "released-flat", tmp_path / "back", classes=final.classes)  # still complete
    with pytest.raises(InputError, match=r"_labelTrainIds\.png: says other classes than"):
        import_folder(tmp_path / "cityscapes", tmp_path / "back2", classes=final.classes)


def test_capital_suffixes_are_read_in_every_format(tmp_path: Path) -> None:
    final = _final(tmp_path, "final")
    for fmt in ("released", "released-flat", "cityscapes", "masks"):
        out = tmp_path / fmt
        export_store(final, out, fmt)
        some = next(p for p in sorted(out.rglob("*.png")) if not p.stem.endswith(("_prob", "_color", "TrainIds")))
        some.rename(some.with_suffix(".PNG"))
        found, count = import_folder(out, tmp_path / f"{fmt}-back", classes=final.classes)
        assert (found, count) == (fmt.removesuffix("-flat"), 3)
        with opened(tmp_path / f"{fmt}-back") as back:
            assert all(np.array_equal(back.read_label(n), final.read_label(n)) for n in final.names())


def test_what_people_drew_is_sure_in_exports(tmp_path: Path) -> None:
    def drawn(row: Mapping[str, object]) -> np.ndarray:
        """A person drew class 2 over the upper half."""
        upper = np.arange(row["height"])[:, None] < row["height"] // 2
        return np.where(upper, 2, 255).repeat(row["width"], 1).astype(np.uint8)

    write_store(tmp_path / "raw", 2)
    raw = opened(tmp_path / "raw")
    rules = MergeRules.default(raw.classes, MergeConfig(default="human"))
    finalise(raw, Recipe(policy=from_threshold(0.9, raw.classes), rules=rules, human=drawn), tmp_path / "final")
    final = opened(tmp_path / "final")
    export_store(final, tmp_path / "out", "released-flat")
    for name in final.names():
        prob = np.asarray(Image.open(tmp_path / "out" / f"{name}_leftImg8bit_prob.png"))
        human, kept = final.read_source(name) == 2, final.read_label(name) != 255
        assert human.any()
        assert (prob[human] == 254).all()
        assert (prob[~kept] == 0).all()
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    export_store(final, tmp_path / "hf", "huggingface", picture=lambda _name: tmp_path / "photo.png")
    for row in pq.read_table(next((tmp_path / "hf" / "data").iterdir())).to_pylist():
        code = np.asarray(Image.open(io.BytesIO(row["confidence"]["bytes"])))
        assert (code[final.read_source(row["name"]) == 2] == 255).all()
    import_folder(tmp_path / "out", tmp_path / "back", classes=raw.classes)
    with opened(tmp_path / "back") as back:
        for name in final.names():
            assert (back.read(name)[1][final.read_source(name) == 2] >= ConfidenceCode().code_for(0.99)).all()


def test_leftovers_of_editors_are_no_images(tmp_path: Path) -> None:
    for name in ("a.png", ".a.png", ".ipynb_checkpoints/a-checkpoint.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    fmt, found = find_files(tmp_path)
    assert (fmt, [file.name for file in found]) == ("masks", ["a"])


def test_exported_label_ids_get_our_iou_from_the_official_cityscapes_scripts(tmp_path):
    """What a user would hand in: `export --format cityscapes`, read by the benchmark's own program."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    table, ours = cityscapes(), ConfusionMatrix(19)
    truths = {}
    with LabelStoreWriter(tmp_path / "store", {"teacher": "a" * 64}, 2) as writer:
        for i in range(4):
            label, confidence = maps(i, (32, 48))
            name = f"city_{i:06d}_000019"
            truth = np.where(maps(50 + i, (32, 48))[1] < 0.4, 255, np.roll(label, 2, axis=1)).astype(np.uint8)
            truths[name] = np.array([*table.train_to_id, *[0] * 237], np.uint8)[truth]
            writer.add(name, label, confidence, city="city")
            ours.update(label, truth)
    export_store(LabelStore.open(tmp_path / "store"), tmp_path / "out", "cityscapes")
    official.args.evalInstLevelScore = False
    confusion = official.generateMatrix(official.args)
    for name, truth in truths.items():
        Image.fromarray(truth).save(tmp_path / f"{name}_gt.png")
        answer = tmp_path / "out" / "city" / f"{name}_gtCoarse_labelIds.png"
        official.evaluatePair(str(answer), str(tmp_path / f"{name}_gt.png"), confusion, {}, {}, official.args)
    theirs = [official.getIouScoreForLabel(i, confusion, official.args) for i in table.train_to_id]
    assert np.isfinite(theirs).sum() > 10
    np.testing.assert_allclose(iou_of(ours.counts), theirs, atol=1e-6, rtol=0)
