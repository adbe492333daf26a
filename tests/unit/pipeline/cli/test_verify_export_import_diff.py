from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.store.format import binding, full_lineage
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from pipeline.cli.main import main
from tests.support.label_maps import write_store
from tests.support.training import folder_bytes


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", 4)
    return tmp_path / "store"


def test_verify_says_that_all_is_well_or_names_what_is_not(store: Path, said) -> None:
    assert "4 images in 2 shards: whole" in said("verify", store).out
    (store / "shard-00001.parquet").unlink()
    printed = said("verify", store, status=4)
    assert "autolabel doctor" in printed.err
    assert "missing" in printed.out
    assert "shard-00001.parquet" in printed.out
    answer = json.loads(said("verify", store, "--json", status=4).out)
    assert [p["file"] for p in answer["problems"]] == ["shard-00001.parquet"]
    assert not answer["whole"]


def test_verify_in_slices_finds_the_damage_in_exactly_one(store: Path, said) -> None:
    (store / "shard-00000.parquet").write_bytes(b"torn")
    assert sorted(main(["verify", str(store), "--subset", f"{n}/5"]) for n in range(1, 6)) == [0, 0, 0, 0, 4]
    assert "n/t" in said("verify", store, "--subset", "6/5", status=2).err


def test_verify_checks_single_files_too(tmp_path: Path, said) -> None:
    policy = tmp_path / "policy.json"
    from_threshold(0.9, cityscapes()).save(policy)
    said("verify", policy)
    policy.write_bytes(policy.read_bytes().replace(b'"given"', b'"giver"', 1))
    assert "damaged or edited" in said("verify", policy, status=4).err


@pytest.mark.parametrize("command", [["verify", "."], ["export", ".", "out"], ["diff", ".", "."], ["inspect", "."]])
def test_a_folder_that_is_no_store_gives_one_line(tmp_path: Path, said, command: list[str]) -> None:
    error = said(command[0], *(tmp_path / name for name in command[1:]), status=4).err.splitlines()
    assert error[0].startswith("error: ")
    assert "no label store here" in error[0]
    assert len(error) == 2  # and the hint
    assert "none: no such folder" in said(command[0], tmp_path / "none", *command[2:], status=3).err


def test_masks_go_out_at_a_threshold_and_come_back(store: Path, tmp_path: Path, said) -> None:
    said("export", store, tmp_path / "out", "--threshold", "0.9")
    opened = LabelStore.open(store)
    policy = from_threshold(0.9, opened.classes)
    for name in opened.names():
        mask = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert np.array_equal(mask, policy.apply(*opened.read(name)))
    said("import", tmp_path / "out", tmp_path / "back")
    assert set(LabelStore.open(tmp_path / "back").names()) == set(opened.names())


def test_one_image_can_be_exported_with_a_policy_file(store: Path, tmp_path: Path, said) -> None:
    from_threshold(0.5, cityscapes()).save(tmp_path / "p.json")
    name = LabelStore.open(store).names()[2]
    said("export", store, tmp_path / "out", "--policy", tmp_path / "p.json", "--name", name, "--format", "released")
    files = sorted(p.name for p in (tmp_path / "out").rglob("*.png"))
    assert files == [f"{name}_leftImg8bit.png", f"{name}_leftImg8bit_prob.png"]


def test_an_import_never_touches_an_existing_store(store: Path, tmp_path: Path, said) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((3, 3), np.uint8))
    assert "new folder" in said("import", tmp_path / "in", store, status=2).err
    assert len(LabelStore.open(store, strict=True)) == 4


def test_an_import_takes_a_class_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.uint8([[0, 1, 255]]))
    rows = [{"id": i, "name": n, "colour": [i, i, i]} for i, n in enumerate(("Sky", "Road"))]
    (tmp_path / "classes.json").write_text(json.dumps({"dataset": "two", "classes": rows, "ignore_id": 255}))
    assert main(["import", str(tmp_path / "in"), str(tmp_path / "s"), "--classes", str(tmp_path / "classes.json")]) == 0
    store = LabelStore.open(tmp_path / "s")
    assert store.classes.classes == ("Sky", "Road")
    assert store.lineage["imported_from"] == "masks"


def test_an_imported_store_finds_photographs_by_name_and_its_export_is_no_folder_of_masks(tmp_path: Path, said) -> None:
    for folder, pixels in ("masks", np.zeros((8, 9), np.uint8)), ("photographs", np.zeros((8, 9, 3), np.uint8)):
        (tmp_path / folder / "drive").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / "drive" / "a.png")
    (tmp_path / "names.txt").write_text("road\ncar\n")
    said("import", tmp_path / "masks", tmp_path / "raw", "--classes", tmp_path / "names.txt")
    export = ("export", tmp_path / "raw", tmp_path / "task", "--format", "cvat", "--images")
    assert "image 'a': no photograph" in said(*export, tmp_path / "masks" / "..", status=3).err, "two are called a"
    said(*export, tmp_path / "photographs")
    assert list((tmp_path / "task").rglob("a.png"))
    (tmp_path / "named").mkdir()
    (tmp_path / "masks/drive/a.png").rename(tmp_path / "named/drive__a.png")  # as `label --names path` calls it
    said("import", tmp_path / "named", tmp_path / "path", "--classes", tmp_path / "names.txt")
    said("export", tmp_path / "path", tmp_path / "third", "--format", "cvat", "--images", tmp_path / "photographs")
    for folder in "task", "task/images":
        again = ("import", tmp_path / folder, tmp_path / "again", "--classes", tmp_path / "names.txt")
        assert f"--corrections-of {tmp_path / 'task'}" in said(*again, status=3).err


def test_diff_prints_classes_and_pictures_and_json(store: Path, tmp_path: Path, said) -> None:
    write_store(tmp_path / "other", 5, lineage={"teacher": "b"}, start=0)
    answer = json.loads(said("diff", store, tmp_path / "other", "--json").out)
    assert answer["changed"] == 0
    assert len(answer["only_b"]) == 1
    write_store(tmp_path / "third", 4, shape=(24, 40), start=3)
    shared = sorted(set(LabelStore.open(store).names()) & set(LabelStore.open(tmp_path / "third").names()))
    out = said("diff", store, tmp_path / "third").out
    assert f"{len(shared)} images in both" in out
    assert "only in A" in out


def test_diff_writes_pictures_of_what_changed_but_never_into_a_label_store(store: Path, tmp_path: Path, said) -> None:
    arguments = ["diff", store, store, "--policy-b", tmp_path / "p.json", "--pictures", tmp_path / "pics"]
    from_threshold(0.9, cityscapes()).save(tmp_path / "p.json")
    said(*arguments, "--threshold", "0.9", status=2)
    said(*arguments, "--limit", "0", status=2)
    printed = said(*arguments, "--limit", "2")
    assert len(list((tmp_path / "pics").glob("*.png"))) == 2
    assert "ignore" in printed.out
    assert "pics: not empty" in said(*arguments, "--limit", "1", status=2).err
    for place in (store, store / "deep" / "changed"):
        out, err = said("diff", store, store, "--pictures", place, status=2)
        assert (out, "lies in a label store" in err, err.count("\n")) == ("", True, 2)
    said("verify", store)


@pytest.mark.parametrize("command", [["export", "OUT", "--policy"], ["diff", "STORE", "--policy-b"]])
def test_a_policy_of_another_teacher_is_refused(store: Path, tmp_path: Path, command: list[str], said) -> None:
    policy = from_threshold(0.9, cityscapes())
    policy.binding = binding(full_lineage({"teacher": "b" * 64}))
    policy.save(tmp_path / "policy.json")
    second = {"OUT": str(tmp_path / "out"), "STORE": str(store)}[command[1]]
    assert "another teacher" in said(command[0], store, second, command[2], tmp_path / "policy.json", status=2).err
    assert not (tmp_path / "out").exists()
    assert "policy file not found" in said(command[0], store, second, command[2], tmp_path / "none.json", status=3).err


@pytest.mark.parametrize("fmt", ["masks", "released-flat", "cityscapes"])
def test_photographs_and_hand_labels_are_never_overwritten(store: Path, tmp_path: Path, said, fmt: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    name = LabelStore.open(store).names()[0]
    (mine / f"{name}.png").write_bytes(b"a day of somebody's work")
    assert "not empty and not an earlier export" in said("export", store, mine, "--format", fmt, status=2).err
    assert "exists and is no label store" in said("import", mine, mine, status=2).err
    assert folder_bytes(mine) == {f"{name}.png": b"a day of somebody's work"}


def test_an_export_is_gone_on_with_but_never_mixed_with_another(store: Path, tmp_path: Path, said) -> None:
    out, names = tmp_path / "out", LabelStore.open(store).names()
    for name in names[:2]:
        assert main(["export", str(store), str(out), "--threshold", "0.5", "--name", name]) == 0
    half = folder_bytes(out)
    for other in (["--threshold", "0.9"], [], ["--threshold", "0.5", "--format", "cityscapes"]):
        assert "holds another export" in said("export", store, out, *other, status=2).err
    assert folder_bytes(out) == half
    assert main(["export", str(store), str(out), "--threshold", "0.5"]) == 0
    assert sorted(p.stem for p in out.glob("*.png")) == sorted(names)


def test_an_import_that_was_killed_is_begun_again(store: Path, tmp_path: Path) -> None:
    assert main(["export", str(store), str(tmp_path / "out")]) == 0
    again = tmp_path / "again"
    assert main(["import", str(tmp_path / "out"), str(again)]) == 0
    whole = folder_bytes(again)
    (again / "manifest.json").unlink()
    assert main(["import", str(tmp_path / "out"), str(again)]) == 0
    assert folder_bytes(again) == whole


def test_an_export_onto_the_wrong_kind_of_path_says_what_it_writes(store: Path, tmp_path: Path, said) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file, masks are written into a folder" in said("export", store, tmp_path / "file", status=2).err
    assert "lies in a label store" in said("export", store, store / "out", status=2).err
    assert not (store / "out").exists()
    (tmp_path / "sent.zip").write_text("mine")
    for target, words in ((tmp_path, "a submission is one zip file"), (tmp_path / "sent.zip", "sent.zip: exists")):
        assert words in said("export", store, target, "--format", "cityscapes-submission", status=2).err
    assert (tmp_path / "file").read_text() == (tmp_path / "sent.zip").read_text() == "mine"


def test_diff_tells_pictures_that_only_share_a_name(tmp_path: Path, said) -> None:
    for drive in "ab":
        with LabelStoreWriter(tmp_path / drive, {}) as writer:
            for name, picture in (("000001", drive), ("000002", "c")):
                shown = np.full((4, 4), ord(picture) % 19, np.uint8)
                writer.add(name, shown, np.full((4, 4), 0.9, np.float32), image_sha256=picture * 64)
    out = said("diff", tmp_path / "a", tmp_path / "b").out
    assert "1 images in both, 0.00% of their pixels changed" in out
    assert "1 images of the same name are other pictures, not compared: 000001" in out
    answer = json.loads(said("diff", tmp_path / "a", tmp_path / "b", "--json").out)
    assert (answer["images"], answer["changed"], answer["other_pictures"]) == (1, 0, ["000001"])
