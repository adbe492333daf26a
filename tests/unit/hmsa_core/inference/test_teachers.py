"""Teachers of other tools: what the library itself says, class tables, ensembles, and one line for each bad file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.nn.functional import avg_pool2d, conv2d

from hmsa_core.config import Passes
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index
from hmsa_core.inference.folder import infer_job
from hmsa_core.inference.folder.label_folder import label
from hmsa_core.inference.teachers.sources import digest_of, lineage_of
from hmsa_core.inference.teachers.teacher import Teacher, open_teacher
from hmsa_core.io.errors import CheckpointError, ConfigError, HmsaError, InputError, InterruptedRunError
from hmsa_core.labels import ConfidenceCode, LabelStore
from hmsa_core.models.fusion import Level, fuse
from hmsa_core.models.layers.blocks import resize
from hmsa_core.runtime.ranks import Ranks
from tests.support.inference import StopAfter, infer_spec, job_context, noise_image, save_model
from tests.support.ranks import on_ranks
from tests.support.teachers import FOREIGN, MEAN, STD, TO_OURS, colour_network, segformer, table
from tests.support.training import CLASSES, class_table, folder_bytes, write_data

MAPPED = f"classes: {json.dumps(TO_OURS)}\n"
IMAGES, SIZE = 5, (40, 56)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, images=IMAGES, size=SIZE)
    save_model(folder / "model")
    table(colour_network(folder / "colours.onnx"), MAPPED)
    segformer(folder / "segformer")
    return folder


def opened(*teacher: str | Path, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> Teacher:
    context = job_context(Path("unused"))
    return open_teacher([str(one) for one in teacher], Passes(scales, flip), class_table(), context)


def run(data: Path, work: Path, *teacher: str, ranks: Ranks | None = None, stop=None, **changes) -> None:
    spec = infer_spec(data, work, data / "model", **{"scales": (1.0,), "flip": False} | changes)
    infer_job.run(spec.model_copy(update={"teacher": teacher}), job_context(work, ranks, stop))


def job(data: Path, work: Path, *teacher: str, **changes) -> LabelStore:
    run(data, work, *teacher, **changes)
    return LabelStore.open(work / "store")


def refused(kind: type[HmsaError], printed: str, *teacher: str | Path, **options) -> HmsaError:
    """The teacher cannot be opened, or not be run, and says so in one line."""
    with pytest.raises(kind, match=printed) as caught:
        opened(*teacher, **options).label("toy_000", noise_image(0, 64, 64))
    assert "\n" not in caught.value.message
    return caught.value


# -- networks of other tools -------------------------------------------------------------------------


def test_a_foreign_network_labels_the_truth_through_its_class_table(data: Path, tmp_path: Path) -> None:
    store = job(data, tmp_path, f"onnx:{data / 'colours.onnx'}")
    index = Index.load(data / "toy.parquet")
    assert store.classes == index.classes
    right = seen = 0
    for sample in index.samples:
        truth = read_label(data / sample.label, index.classes)
        found, _ = store.read(sample.name)
        right, seen = right + int((found == truth)[truth != 255].sum()), seen + int((truth != 255).sum())
    assert right / seen > 0.9  # its grid is half as fine as the image
    shares = opened(f"onnx:{data / 'colours.onnx'}").predict("toy_002", read_image(data / "toy" / "toy_002.png"))
    np.testing.assert_array_equal(store.read("toy_002")[0], shares.argmax(0))
    np.testing.assert_array_equal(store.read("toy_002")[1], ConfidenceCode().encode(shares.max(0)))
    (facts,) = store.lineage["parameters"]["teachers"]
    assert facts["classes"] == TO_OURS
    assert len(facts["files"][""]) == 64


def test_what_is_ignored_counts_for_no_class(data: Path, tmp_path: Path) -> None:
    image = read_image(data / "toy" / "toy_001.png")
    theirs = opened(f"onnx:{table(colour_network(tmp_path / 'a.onnx', ours={}), MAPPED)}").predict("a", image)
    assert theirs.sum(0) == pytest.approx(0.8, abs=1e-5)  # all five are as likely; the fifth is nobody's
    many = table(colour_network(tmp_path / "b.onnx", ours={}), "classes: {0: road, 1: road, 2: 0, haus: sky}\n")
    found = opened(f"onnx:{many}").predict("a", image)
    assert found[:, 5, 5] == pytest.approx([0.6, 0, 0, 0.2], abs=1e-5)


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((0.5, 1.0, 2.0), True)])
def test_probabilities_and_logits_of_one_network_give_the_same_labels(tmp_path: Path, scales, flip) -> None:
    image = noise_image(3, 48, 64)
    logits = opened(f"onnx:{table(colour_network(tmp_path / 'a.onnx'), MAPPED)}", scales=scales, flip=flip)
    shares = table(colour_network(tmp_path / "b.onnx", softmax=True), f"{MAPPED}output: probabilities\n")
    given = opened(f"onnx:{shares}", scales=scales, flip=flip)
    np.testing.assert_allclose(given.predict("a", image), logits.predict("a", image), atol=2e-4)


def test_a_network_of_bytes_that_says_what_it_gives_needs_no_words_about_either(tmp_path: Path) -> None:
    """As `autolabel export-model` writes it."""
    image = noise_image(3, 48, 64)
    plain = opened(f"onnx:{table(colour_network(tmp_path / 'a.onnx'), MAPPED)}")
    said = {"classes": FOREIGN, "mean": MEAN, "std": STD, "output": "probabilities: float32 N x C x H x W"}
    raw = colour_network(tmp_path / "b.onnx", raw=True, softmax=True, metadata=said)
    found = opened(f"onnx:{table(raw, MAPPED)}", scales=(1.0, 0.5)).predict("a", image)
    assert found.shape == (4, 48, 64)
    alone = opened(f"onnx:{raw}").predict("a", image)
    np.testing.assert_allclose(alone, plain.predict("a", image), atol=2e-4)


def test_scales_and_mirror_images_are_averaged_as_the_averaging_baseline_does(tmp_path: Path) -> None:
    path, image, scales = colour_network(tmp_path / "net.onnx"), noise_image(1, 48, 64), (2.0, 1.0, 0.5)
    found = opened(f"onnx:{table(path, MAPPED)}", scales=scales, flip=True).predict("a", image)
    weight, bias = (torch.from_numpy(numpy_helper.to_array(one).copy()) for one in onnx.load(path).graph.initializer)
    pixels = (torch.from_numpy(image / 255) - torch.tensor(MEAN)) / torch.tensor(STD)
    runs = []
    for images in (pixels.permute(2, 0, 1)[None].float(), pixels.permute(2, 0, 1)[None].float().flip(3)):
        levels = []
        for scale in scales:
            size = (round(48 * scale), round(64 * scale))
            scores = avg_pool2d(conv2d(resize(images, size), weight, bias), 2)
            levels.append(Level(scale, resize(scores, size)))
        runs.append(fuse("average", levels, (48, 64)))
    theirs = torch.softmax((runs[0] + runs[1].flip(3)) / 2, 1)[0].numpy()
    expected = np.stack([theirs[FOREIGN.index(name)] for name in ("fahrbahn", "haus", "auto", "himmel")])
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_a_folder_of_transformers_labels_as_the_library_itself_does(data: Path, size: tuple[int, int]) -> None:
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    image = noise_image(5, *size)
    processor = AutoImageProcessor.from_pretrained(data / "segformer")
    model = AutoModelForSemanticSegmentation.from_pretrained(data / "segformer").eval()
    with torch.inference_mode():
        out = model(**processor(images=image, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(out, target_sizes=[size])
    found, confidence = opened(f"hf:{data / 'segformer'}").label("a", image)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found, expected.numpy())
    assert confidence.max() > 0.3


def test_a_network_with_a_size_of_its_own_gets_images_of_that_size(tmp_path: Path) -> None:
    fixed = table(colour_network(tmp_path / "fixed.onnx", sides=(32, 48)), MAPPED)
    found, _ = opened(f"onnx:{fixed}", flip=True).label("a", noise_image(2, 41, 57))
    assert found.shape == (41, 57)
    refused(ConfigError, r"takes images of 32x48 pixels only", f"onnx:{fixed}", scales=(0.5, 1.0))


# -- scores and ensembles ----------------------------------------------------------------------------


def some_scores(seed: int, height: int, width: int) -> np.ndarray:
    scores = np.random.default_rng(seed).random((len(CLASSES), height, width)).astype(np.float32)
    return scores / scores.sum(0)


def test_scores_of_another_resolution_are_enlarged_to_the_image(tmp_path: Path) -> None:
    scores = some_scores(0, 8, 12)
    np.savez(tmp_path / "a.npz", probabilities=scores)
    np.save(tmp_path / "b.npy", scores.astype(np.float16))
    (tmp_path / "c").mkdir()
    for i, name in enumerate(CLASSES):
        cv2.imwrite(str(tmp_path / "c" / f"{name}.png"), np.round(scores[i] * 65535).astype(np.uint16))
    teacher = opened(f"scores:{tmp_path}")
    tensor = torch.from_numpy(scores)[None]
    expected = torch.nn.functional.interpolate(tensor, size=(40, 60), mode="bilinear")[0].numpy()
    for name, bound in {"a": 1e-6, "b": 1e-3, "c": 1e-4}.items():
        np.testing.assert_allclose(teacher.predict(name, noise_image(0, 40, 60)), expected, atol=bound)


def test_a_folder_of_arrays_has_no_names_and_one_of_pictures_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "arrays").mkdir()
    for name in CLASSES:
        cv2.imwrite(str(tmp_path / "pictures" / "a" / f"{name}.png"), np.zeros((8, 12), np.uint8))
    np.save(tmp_path / "arrays" / "a.npy", some_scores(0, 8, 12))
    opened(f"scores:{tmp_path / 'pictures'}")
    assert "nothing names its classes" not in caplog.text
    opened(f"scores:{tmp_path / 'arrays'}")
    assert f"nothing names its classes: taken for {CLASSES[0]}, " in caplog.text


def test_pictures_by_number_follow_a_table_by_number(tmp_path: Path) -> None:
    table(tmp_path, "classes: {7: " + CLASSES[1] + "}\n")
    (tmp_path / "a").mkdir()
    for number, value in {7: 200, 12: 255}.items():
        cv2.imwrite(str(tmp_path / "a" / f"{number}.png"), np.full((8, 12), value, np.uint8))
    label, _ = opened(f"scores:{tmp_path}").label("a", noise_image(0, 8, 12))
    assert (label == 1).all(), "12 counts for no class"
    (tmp_path / "a" / "7.png").unlink()
    assert (opened(f"scores:{tmp_path}").label("a", noise_image(0, 8, 12))[0] == 255).all(), "no picture is 0"
    cv2.imwrite(str(tmp_path / "a" / "car.png"), np.zeros((8, 12), np.uint8))
    with pytest.raises(InputError, match="no class is called 'car'"):
        opened(f"scores:{tmp_path}").label("a", noise_image(0, 8, 12))


def test_a_pixel_that_no_class_is_probable_for_is_ignored(tmp_path: Path) -> None:
    scores = some_scores(0, 8, 12)
    scores[:, :4] = 0
    np.save(tmp_path / "a.npy", scores)
    label, confidence = opened(f"scores:{tmp_path}").label("a", noise_image(0, 8, 12))
    assert (label[:4] == 255).all()
    assert not confidence[:4].any()
    assert (label[4:] == scores[:, 4:].argmax(0)).all()


def test_an_ensemble_is_the_mean_of_its_members_probabilities(data: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", some_scores(1, 40, 56))
    members = [str(data / "model"), f"hf:{data / 'segformer'}", f"scores:{tmp_path}"]
    image = noise_image(7, *SIZE)
    alone = [opened(one, scales=(0.5, 1.0), flip=True).predict("a", image) for one in members]
    together = opened(*members, scales=(0.5, 1.0), flip=True)
    np.testing.assert_allclose(together.predict("a", image), np.mean(alone, axis=0), atol=1e-6)
    found, confidence = together.label("a", image)
    np.testing.assert_array_equal(found, np.mean(alone, axis=0).argmax(0))
    np.testing.assert_allclose(confidence, np.mean(alone, axis=0).max(0), atol=1e-6)


# -- the job -----------------------------------------------------------------------------------------


def test_two_ranks_and_a_stop_give_the_bytes_of_one_undisturbed_rank(data: Path, tmp_path: Path) -> None:
    teacher = (f"onnx:{data / 'colours.onnx'}", str(data / "model"))
    more = {"scales": (0.5, 1.0), "flip": True}
    run(data, tmp_path / "one", *teacher, **more)
    with pytest.raises(InterruptedRunError):
        run(data, tmp_path / "two", *teacher, stop=StopAfter(4), **more)
    on_ranks(2, lambda ranks: run(data, tmp_path / "two", *teacher, ranks=ranks, **more))
    assert folder_bytes(tmp_path / "one" / "store", (".lock",)) == folder_bytes(tmp_path / "two" / "store", (".lock",))


def test_labels_of_a_changed_teacher_are_not_mixed_with_the_old_ones(data: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(data / "colours.onnx", tmp_path / "net.onnx"))
    table(path, MAPPED)
    job(data, tmp_path / "work", f"onnx:{path}", selection={"names": ("toy_000",)})
    table(path, MAPPED.replace('"car"', "null"))
    with pytest.raises(ConfigError, match="holds labels of another teacher"):
        job(data, tmp_path / "work", f"onnx:{path}")


def test_a_table_that_is_corrected_after_the_first_image_failed_needs_no_other_store(
    data: Path, tmp_path: Path
) -> None:
    net = colour_network(tmp_path / "net.onnx", softmax=True)
    with pytest.raises(ConfigError, match="its scores sum to 1"):
        label(data / "toy", f"onnx:{net}", tmp_path / "store")
    table(net, "output: probabilities")
    assert len(label(data / "toy", f"onnx:{net}", tmp_path / "store")) > 1


def test_the_digest_follows_the_content_and_not_the_place(data: Path, tmp_path: Path) -> None:
    before = digest_of(f"hf:{data / 'segformer'}")
    copy = Path(shutil.copytree(data / "segformer", tmp_path / "copy"))
    assert digest_of(f"hf:{copy}") == before
    config = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.5, 0.5, 0.5]}))
    assert digest_of(f"hf:{copy}") != before
    assert digest_of([str(data / "model"), f"hf:{copy}"]) != digest_of([f"hf:{copy}", f"hf:{copy}"])


def test_what_a_foreign_teacher_learned_from_is_unknown(data: Path) -> None:
    found = lineage_of([str(data / "model"), f"onnx:{data / 'colours.onnx'}"])
    assert len(found.unknown) == 2  # the model of these tests has no list either
    assert re.fullmatch(r"onnx [0-9a-f]{16}: what it learned from is not listed", found.unknown[1])


def test_a_folder_is_labelled_with_the_names_that_a_teacher_brings(data: Path, tmp_path: Path) -> None:
    store = label(data / "toy", f"hf:{data / 'segformer'}", tmp_path / "own")
    assert store.classes.classes == CLASSES
    net = colour_network(tmp_path / "net.onnx")
    assert label(data / "toy", f"onnx:{net}", tmp_path / "theirs").classes.classes == FOREIGN
    one = colour_network(tmp_path / "one.onnx", names=["auto"])
    with pytest.raises(ConfigError, match=r"one\.onnx: which classes the labels shall have is not known"):
        label(data / "toy", f"onnx:{one}", tmp_path / "other")


# -- one line for what cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"opset": 99}, CheckpointError, "onnxruntime .* cannot run it"),
        ({"operator": "Convolute"}, CheckpointError, "onnxruntime .* cannot run it: .*Convolute"),
        ({"channels": 1}, CheckpointError, r"its input is 1 x 1 x height x width, expected 1 x 3"),
        ({"names": (*FOREIGN, "six")}, None, ""),
        ({"metadata": {}}, ConfigError, "the teacher has no class 'himmel': it has numbers only"),
        ({"softmax": True}, ConfigError, "its scores sum to 1 at each pixel"),
    ],
)
def test_onnx_files_that_do_not_fit_say_why(tmp_path: Path, change, kind, message: str) -> None:
    path = table(colour_network(tmp_path / "net.onnx", **change), MAPPED)
    if kind is None:
        opened(f"onnx:{path}").label("a", noise_image(0, 64, 64))  # a name more that is ignored
    else:
        refused(kind, message, f"onnx:{path}")


def test_missing_and_damaged_files_say_so(data: Path, tmp_path: Path) -> None:
    refused(InputError, r"onnx:\S+none.onnx: no such file", f"onnx:{tmp_path}/none.onnx")
    (tmp_path / "torn.onnx").write_bytes((data / "colours.onnx").read_bytes()[:200])
    refused(CheckpointError, "no ONNX file, or damaged|cannot run it", f"onnx:{tmp_path}/torn.onnx")
    (tmp_path / "empty.onnx").touch()
    refused(CheckpointError, "no ONNX file, or damaged", f"onnx:{tmp_path}/empty.onnx")
    refused(InputError, r"hf:\S+nowhere: no such folder", f"hf:{tmp_path}/nowhere")
    refused(InputError, r"scores:\S+nowhere: no such folder", f"scores:{tmp_path}/nowhere")
    assert "did you mean onnx?" in refused(ConfigError, "unknown kind 'onx'", "onx:net.onnx").hint
    assert "known: onnx, hf" in refused(ConfigError, "unknown kind 'segformer'", "segformer:net").hint
    bare = data / "colours.onnx"
    assert refused(ConfigError, "is an ONNX file, not a checkpoint folder", bare).hint == f"write onnx:{bare}"
    bare = data / "segformer"
    assert refused(ConfigError, "is a folder of transformers", bare).hint == f"write hf:{bare}"
    big = onnx.load(str(data / "colours.onnx"))
    onnx.save(big, str(tmp_path / "big.onnx"), save_as_external_data=True, location="big.bin", size_threshold=0)
    (tmp_path / "big.bin").unlink()
    refused(InputError, r"its weights are in \S+big.bin, which is not there", f"onnx:{tmp_path}/big.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: {himmel: skyy}", "has no class 'skyy': did you mean sky?"),
        ("classes: {himel: sky}", "the teacher has no class 'himel': did you mean himmel?"),
        ("classes: {9: sky}", "the teacher has no class 9: it has 5 classes"),
        ("classes: {himmel: 4}", "toy has no class 4, only 4"),
        ("classes: {himmel: null}", "no class is mapped"),
        ("clases: {himmel: sky}", "unknown key 'clases': did you mean classes?"),
        ("classes: [", "is no YAML"),
        ("{}", "5 of its 5 classes are none of toy, the first: 'himmel'"),
        (f"{MAPPED}provider: TensorrtExecutionProvider", "has no TensorrtExecutionProvider, only"),
        (f"{MAPPED}output: probabilities", "no probabilities"),
    ],
)
def test_a_wrong_table_is_reported_with_the_nearest_name(tmp_path: Path, text: str, message: str) -> None:
    refused(ConfigError, re.escape(message), f"onnx:{table(colour_network(tmp_path / 'net.onnx'), text)}")


def test_an_image_without_scores_is_named_before_the_first_is_labelled(data: Path, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    for i in (0, 1, 3):
        np.save(tmp_path / "scores" / f"toy_00{i}.npy", some_scores(i, 10, 14))
    with pytest.raises(InputError, match="has no scores of 2 of 5 images, the first: toy_002"):
        job(data, tmp_path / "work", f"scores:{tmp_path / 'scores'}")
    assert not (tmp_path / "work" / "plan.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: np.where(s == s.max(), np.nan, s), "holds 1 numbers that are not finite"),
        (lambda s: 3 * s, "expected probabilities from 0 to 1"),
        (lambda s: np.minimum(2 * s, 1), "probabilities of a pixel sum to"),
        (lambda s: s[:3], "gives 3 classes, but toy has 4"),
        (lambda s: s[0], "has the shape"),
        (lambda s: s[:, :, :4], "they do not show the same"),
        (lambda s: s.astype(np.int64), "holds int64"),
        (lambda s: s.astype(object), "cannot be read"),
    ],
)
def test_scores_that_are_no_probabilities_of_the_image_are_refused(tmp_path: Path, change, message: str) -> None:
    np.save(tmp_path / "toy_000.npy", change(some_scores(2, 16, 16)), allow_pickle=True)
    refused((InputError, ConfigError), message, f"scores:{tmp_path}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _pickled(f), "holds its weights as a pickle (pytorch_model.bin), which is refused"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: _edit(f / "config.json", auto_map={"AutoModel": "x.y"}), "program code of its own"),
        (lambda f: _edit(f / "config.json", model_type="nothing"), "transformers cannot load it"),
        (lambda f: _edit(f / "config.json", decoder_hidden_size=24), "weights of the network are not in its files"),
        (lambda f: _edit(f / "preprocessor_config.json", do_center_crop=True), "its processor has do_center_crop"),
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "transformers cannot load it"),
    ],
)
def test_folders_of_transformers_that_do_not_fit_say_why(data: Path, tmp_path: Path, damage, message: str) -> None:
    copy = Path(shutil.copytree(data / "segformer", tmp_path / "hf"))
    damage(copy)
    refused((CheckpointError, InputError, ConfigError), re.escape(message), f"hf:{copy}")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
