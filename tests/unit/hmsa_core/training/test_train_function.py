"""Training as a function: its example runs, a second call goes on, and what cannot be used is refused."""

from __future__ import annotations

import doctest
from pathlib import Path

import cv2
import pytest

from hmsa_core.io.errors import InputError, LockedError
from hmsa_core.io.locks import FileLock
from hmsa_core.lineage import lineage_of_checkpoint
from hmsa_core.models import load
from hmsa_core.training import train
from tests.support.training import CLASSES, class_file, config, folder_bytes, picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        image, label = picture(i, len(CLASSES), (64, 96))
        cv2.imwrite(str(tmp_path / "images" / f"photo{i}.png"), image[..., ::-1])
        cv2.imwrite(str(tmp_path / "labels" / f"photo{i}.png"), label)
    class_file(tmp_path, CLASSES)
    return tmp_path


def test_the_example_of_its_description_runs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    (example,) = [t for t in doctest.DocTestFinder(recurse=False).find(train, "train") if t.examples]
    failed, tried = doctest.DocTestRunner().run(example)
    assert (failed, tried) == (0, 4)
    model = load(photos / "run" / "model")
    assert (model.kind, model.num_classes) == ("hierarchical", len(CLASSES))
    images = lineage_of_checkpoint(photos / "run" / "model").images.values()
    assert sorted(image.name for image in images) == [f"photo{i}" for i in range(4)]


def test_a_finished_training_is_not_done_again_and_its_weights_start_another(photos: Path) -> None:
    data = {"images": photos / "images", "labels": photos / "labels", "classes": photos / "classes.json"}
    settings = config(epochs=1)
    first = train(**data, out=photos / "first", config=settings)
    before = folder_bytes(first)
    assert train(**data, out=photos / "first", config=settings) == first
    assert folder_bytes(first) == before
    second = train(**data, out=photos / "second", config=settings, init_from=first)
    assert folder_bytes(second) != before


def test_a_folder_in_use_and_a_label_that_holds_no_class_are_refused(photos: Path) -> None:
    data = {"images": photos / "images", "labels": photos / "labels", "classes": photos / "classes.json"}
    with FileLock(photos / "run" / "rank0.lock"), pytest.raises(LockedError, match="in use"):
        train(**data, out=photos / "run", config=config(epochs=1))
    class_file(photos, ["road", "sky"])
    for classes in (photos / "classes.json", "mapillary_v1.2"):  # the latter is packaged
        with pytest.raises(InputError, match="ids-out-of-range"):
            train(**data | {"classes": classes}, out=photos / "other", config=config(epochs=1))
