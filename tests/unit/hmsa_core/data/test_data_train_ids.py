"""Maps of trainIds where ids are read: nearly all of their numbers are valid ids of other classes."""

from __future__ import annotations

import pytest

from hmsa_core.data.prepare import build
from hmsa_core.data.spec import RolesSpec, SourceSpec
from hmsa_core.io.errors import InputError

from .conftest import blocks, pair, picture, save

ROLES = RolesSpec(learn_splits=("train",))


def made(root, numbers, images: int = 4) -> SourceSpec:
    for k in range(images):
        pair(root, f"train/{k:03d}", 900 + k, numbers)
    return SourceSpec(kind="folder", root=str(root), splits=("train",), classes="cityscapes")


def test_maps_of_train_ids_are_not_read_as_ids(tmp_path):
    spec = made(tmp_path, (0, 1, 2, 8, 10, 11, 13))  # road ... car, as trainIds; 8 and 11 are ids of sidewalk, building
    asked = "no label map of 4 learning images holds an id above 19.*do they hold trainIds"
    with pytest.raises(InputError, match=asked) as told:
        build(spec, ROLES, tmp_path / "out")
    assert "000.png" in told.value.message
    assert "class file of your own with these classes as 0..18" in told.value.hint
    assert not (tmp_path / "out/target.parquet").exists()


def test_the_ignored_number_of_train_ids_is_refused_with_the_same_hint(tmp_path):
    spec = made(tmp_path, (0, 1, 8, 255))
    with pytest.raises(InputError, match="4 of 4 images.*ids-out-of-range") as told:
        build(spec, ROLES, tmp_path / "out")
    assert "class file of your own" in told.value.hint
    assert "quarantine.parquet" in told.value.hint


def test_ids_pass_when_one_map_shows_that_they_are(tmp_path):
    spec = made(tmp_path, (7, 8, 11))
    save(tmp_path / "labels/train/000.png", blocks(0, (7, 8, 26)))
    assert build(spec, ROLES, tmp_path / "out").by_role == {"learn": 4}


def test_a_data_set_without_fine_labels_to_learn_from_is_not_asked(tmp_path):
    spec = made(tmp_path, (0, 1, 8, 11))
    held = RolesSpec(learn_splits=(), report_splits=("train",))
    assert build(spec, held, tmp_path / "out").by_role == {"report": 4}


def test_files_named_as_maps_of_train_ids_are_read_as_such(tmp_path):
    for k in range(3):
        stem = f"ulm_{k:06d}_000019"
        save(tmp_path / f"leftImg8bit/train/ulm/{stem}_leftImg8bit.png", picture(k))
        save(tmp_path / f"gtFine/train/ulm/{stem}_gtFine_labelTrainIds.png", blocks(k, (0, 1, 8)))
    spec = SourceSpec(kind="cityscapes", root=str(tmp_path), splits=("train",))
    assert build(spec, RolesSpec(), tmp_path / "out").by_role == {"learn": 3}
    for path in list(tmp_path.rglob("*_labelTrainIds.png")):
        path.rename(path.with_name(path.name.replace("TrainIds", "Ids")))
    with pytest.raises(InputError, match="do they hold trainIds") as told:
        build(spec, RolesSpec(), tmp_path / "other")
    assert "_labelTrainIds.png" in told.value.hint
