"""The two functions of `hmsa_core.inference` for images of one's own: `label` and `evaluate`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from hmsa_core.inference import Predictor, evaluate, label, label_image
from hmsa_core.inference.folder import infer_job
from hmsa_core.inference.folder.label_folder import LabelledCounts, _run_here, label_images
from hmsa_core.inference.teachers.run_options import teacher_options
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.io.process import StopRequest
from hmsa_core.labels import LabelStore
from hmsa_core.spec import InferSpec
from tests.support.inference import CPU, noise_image, save_model, small_model
from tests.support.training import CLASSES, class_file

SETTING = {"scales": (0.5, 1.0), "flip": False, "runtime": CPU}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images in two folders, their labels as the model gives them, and the classes."""
    root = tmp_path_factory.mktemp("own")
    save_model(root / "model")
    predictor = Predictor(small_model())
    for i, place in enumerate(("a/one", "a/two", "b/three")):
        image = noise_image(i, 40, 56)
        truth, _ = label_image(predictor, image, (0.5, 1.0), False)
        for folder, pixels in (("images", image[..., ::-1]), ("labels", truth)):
            path = root / folder / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    class_file(root, CLASSES)
    return root


def test_of_a_list_only_those_images_are_labelled_and_others_can_follow(made: Path, tmp_path: Path) -> None:
    files = [made / "images/a/two.png", made / "images/b/three.png"]
    assert sorted(label(files, made / "model", tmp_path / "store", **SETTING).names()) == ["three", "two"]
    assert len(label([*files, made / "images/a/one.png"], made / "model", tmp_path / "store", **SETTING).names()) == 3


def test_an_image_of_a_list_is_labelled_though_its_copy_next_to_it_is_not_asked_for(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, source in (("a", "a/two"), ("b", "a/two"), ("c", "b/three")):
        shutil.copy(made / f"images/{source}.png", images / f"{name}.png")
    (images / "d.png").write_bytes(b"no picture")
    given = [images / f"{name}.png" for name in "bcd"]
    assert sorted(label(given, made / "model", tmp_path / "store", **SETTING).names()) == ["b", "c"]
    assert "left out: images/d.png: not-an-image" in caplog.text


def test_paths_of_later_images_have_the_root_of_the_first_ones(made: Path, tmp_path: Path) -> None:
    images, out = made / "images", tmp_path / "store"

    def paths(given: Path | list[Path]) -> list[str]:
        return [row["image_path"] for row in label(given, made / "model", out, **SETTING).rows()]

    assert paths([images / "a/two.png"]) == ["a/two.png"]
    with pytest.raises(ConfigError, match="images: paths in this store begin with a/, and no folder a lies next to it"):
        paths([images / "a/two.png", images / "b/three.png"])
    moved = Path(shutil.copytree(images, tmp_path / "elsewhere"))
    assert paths(moved / "a") == ["a/two.png", "a/one.png"]
    assert paths([moved / "b/three.png"]) == ["a/two.png", "a/one.png", "b/three.png"]
    begun = tmp_path / "store.work" / "options.json"
    begun.write_text(json.dumps({k: v for k, v in json.loads(begun.read_text()).items() if k != "folder"}))
    assert len(paths(images)) == 3, "nothing is known of the folder of an older store"
    out = tmp_path / "other"
    shutil.rmtree(moved / "b")
    assert sorted(paths(moved)) == ["elsewhere/a/one.png", "elsewhere/a/two.png"]
    shutil.copytree(images / "b", moved / "b")
    assert paths([moved / "b/three.png"])[-1] == "elsewhere/b/three.png"
    with pytest.raises(ConfigError, match="elsewhere/a: paths in this store begin with elsewhere/"):
        paths(moved / "a")
    later = moved.rename(tmp_path / "later")
    cv2.imwrite(str(later / "four.png"), noise_image(4, 40, 56))
    assert paths(later)[-1] == "later/four.png", "the first folder is gone: a later day of one camera"


def replacing(made: Path, out: Path, *names: str) -> Callable[..., LabelledCounts]:
    """`label_images` with other pictures put in the place of these while the job runs."""

    def run(spec: InferSpec, stop: StopRequest) -> None:
        for seed, name in enumerate(names):
            cv2.imwrite(str(spec.roots["images"] / name), noise_image(9 + seed, 40, 56))
        _run_here(spec, stop)

    options = teacher_options(made / "model", None, (1.0,), False)
    return lambda images, **more: label_images(images, out, options, CPU, run=run, **more)


def test_a_picture_that_was_replaced_while_the_job_ran_is_labelled_once_its_shard_can_be_made_again(
    made: Path, tmp_path: Path
) -> None:
    images, out = Path(shutil.copytree(made / "images", tmp_path / "images")), tmp_path / "store"
    assert replacing(made, out, "images/a/two.png")(images) == LabelledCounts(2, 0, 1)
    (images / "b/three.png").unlink()
    messages: list[str] = []
    assert replacing(made, out)(images, tell=messages.append) == LabelledCounts(0, 2, 1)
    assert [line for line in messages if "two" in line] == [
        "left out: two: has no label in this store, it was replaced while it was labelled (give it a new name, or "
        "label into a new store)"
    ]
    shutil.copy(made / "images/b/three.png", images / "b")
    assert replacing(made, out)(images) == LabelledCounts(3, 0, 0)
    assert sorted(LabelStore.open(out).names()) == ["one", "three", "two"]


def test_images_that_earlier_calls_left_out_do_not_end_a_call_for_others(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = Path(shutil.copytree(made / "images", tmp_path / "images")), tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(infer_job, "MAX_SKIPPED", 1.0)
        assert replacing(made, out, "images/a/one.png", "images/a/two.png")(images) == LabelledCounts(1, 0, 2)
    assert replacing(made, out)([images / "b/three.png"]) == LabelledCounts(0, 1, 2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("missing", "no such folder"),
        (["missing.png"], "no such file"),
        ([], "no image is given"),
        (["classes.json"], "its name is not that of a JPEG"),
        ("/", "the images have no folder in common but /"),
    ],
)
def test_images_that_are_not_there_are_refused(made: Path, tmp_path: Path, images: object, message: str) -> None:
    given = made / images if isinstance(images, str) else [made / name for name in images]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=message):
        label(given, made / "model", tmp_path / "store", **SETTING)
    assert not (tmp_path / "store").exists()


def test_scores_of_a_model_on_its_own_labels_are_perfect_and_equal_those_of_its_baseline(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = (made / "model", made / "images", made / "labels", made / "classes.json")
    scores = evaluate(*arguments, baseline=made / "model", ids="file", **SETTING)
    assert scores["mean_iou"] == 1.0
    assert scores["images"] == 3
    assert set(scores["iou"]) == set(CLASSES)
    assert scores["difference"]["value"] == 0.0
    assert "note: all images are neighbours" in caplog.text


def test_scales_without_1_are_refused_before_anything_is_read(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of them 1"):
        label(made / "images", made / "model", tmp_path / "store", scales=(0.5, 2.0))
