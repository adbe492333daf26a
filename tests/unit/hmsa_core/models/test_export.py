"""`autolabel export-model`: one file that other runtimes run, compared with ours before it is kept."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hmsa_core import models
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.models import export
from pipeline.cli.main import main
from tests.conftest import REPO

pytestmark = pytest.mark.long

SCALES = (0.5, 1.0)
MEAN, STD = [0.4, 0.5, 0.45], [0.2, 0.3, 0.25]
CLASSES = 5


@pytest.fixture(scope="module", autouse=True)
def _no_debug_lines() -> Iterator[None]:
    """Torch's own lines about each symbol, which pytest would keep, take longer than the work."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hierarchical model of a very small trunk, whose labels vary, with a mean and deviation of its own."""
    torch.manual_seed(0)
    model = models.build("hierarchical", trunk="timm:test_resnet", num_classes=CLASSES, head="released").eval()
    with torch.no_grad():
        scores = model.forward_scale(torch.randn(1, 3, 128, 256)).logits
        model.ocr.cls_head.weight.mul_((4.0 / scores.std(dim=(0, 2, 3))).reshape(-1, 1, 1, 1))
        model.ocr.cls_head.bias.sub_(scores.mean(dim=(0, 2, 3))).mul_(4.0 / scores.std(dim=(0, 2, 3)))
    folder = tmp_path_factory.mktemp("model")
    inference = {"scales": list(SCALES), "flip": False, "mean": MEAN, "std": STD}
    models.save(model, folder, class_table=None, lineage={}, inference=inference)
    return folder


@pytest.fixture(scope="module")
def command(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """The file that `autolabel export-model` wrote, in a folder of no workspace, and what it said."""
    folder = tmp_path_factory.mktemp("outside")
    command = [sys.executable, "-m", "pipeline.cli.main", "export-model", str(checkpoint), "out.onnx", "--threads", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "out.onnx").read_bytes(), done.stderr


@pytest.fixture(scope="module")
def data(command: tuple[bytes, str]) -> bytes:
    return command[0]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in no workspace; pictures are drawn there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(seed: int, height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize("size", [(128, 192), (97, 131), (70, 301)])
def test_a_batch_of_any_size_has_our_probabilities(checkpoint: Path, data: bytes, size: tuple[int, int]) -> None:
    batch = export.as_batch(picture(1, *size), picture(2, *size))
    found = export.open_graph(data, ".onnx")(batch)
    pixels = (batch / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    ours = models.load(checkpoint).predict(torch.from_numpy(pixels.astype(np.float32)), SCALES)
    assert len(np.unique(found.argmax(1))) > 2
    np.testing.assert_allclose(found, ours.probabilities.numpy(), atol=2e-5)


def test_the_command_says_on_which_pictures_the_file_was_compared(command: tuple[bytes, str]) -> None:
    data, said = command
    assert "100.000 % of 1,066,340 pixels have our own label (8 drawn pictures" in said
    assert str(REPO).encode() not in data


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, data: bytes) -> None:
    model = models.load(checkpoint)
    about = export.metadata(model, SCALES, argmax=False, precision="fp32")
    assert export.to_onnx(export.trace(model, SCALES), about, argmax=False) == data


def test_the_file_says_what_a_runtime_has_to_know(checkpoint: Path, data: bytes) -> None:
    import onnx

    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert about["classes"] == ["0", "1", "2", "3", "4"]
    assert (about["mean"], about["std"], about["scales"]) == (MEAN, STD, list(SCALES))
    assert about["checkpoint"] == models.read_meta(checkpoint)["weights_sha256"]
    assert about["input"].startswith("images: uint8 N x 3 x H x W, RGB, 0 to 255")
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", 18)]
    assert proto.ir_version == 8, "the oldest that has opset 18: onnxruntime of 2023 reads it"
    assert [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "height",
        "width",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_a_trunk_that_pads_or_enlarges_is_traced_at_two_scales(trunk: str) -> None:
    """Its sizes are nested divisions, of which torch found none that it could name (a minute each)."""
    model = models.build("hierarchical", trunk=f"timm:{trunk}", num_classes=CLASSES).eval()
    program = export.trace(model, SCALES)
    for size in (101, 131), (96, 128):
        images = export.as_batch(picture(1, *size))
        with torch.no_grad():
            found = program.module()(torch.from_numpy(images))
        assert found.shape == (1, CLASSES, *size)
        assert (found.argmax(1).numpy() == export.reference_labels(model, images, SCALES)).mean() > 0.999


@pytest.mark.slow
def test_a_torch_program_gives_labels_as_bytes(
    checkpoint: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-model", str(checkpoint), "o.pt2", "--argmax", "--scales", "1", "--threads", "1"]) == 0
    assert "100.000 %" in capsys.readouterr().err
    about: dict[str, str] = {"metadata.json": ""}
    program = torch.export.load(io.BytesIO((outside / "o.pt2").read_bytes()), extra_files=about)
    labels = program.module()(torch.zeros(1, 3, 99, 77, dtype=torch.uint8))
    assert (labels.dtype, labels.shape) == (torch.uint8, (1, 99, 77))
    assert json.loads(json.loads(about["metadata.json"])["output"]) == "labels: uint8 N x H x W, trainIds"


def test_images_that_are_too_small_for_a_torch_program_are_refused_before_the_work(
    checkpoint: Path, outside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "trace", lambda *_, **__: pytest.fail("minutes of work"))
    (outside / "few").mkdir()
    cv2.imwrite("few/a.png", picture(0, 67, 90))
    assert main(["export-model", str(checkpoint), "o.pt2", "--images", "few", "--threads", "1"]) == 3
    assert "sides of at least 68 pixels at these scales, an image to compare on has 67" in capsys.readouterr().err


def test_a_file_that_does_not_agree_is_not_written(
    checkpoint: Path, data: bytes, outside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a runtime that computes otherwise: the graph is that of the same weights upside down."""
    monkeypatch.setattr(export, "trace", lambda *_, **__: None)
    monkeypatch.setattr(export, "to_onnx", lambda *_, **__: data)
    graph = export.open_graph(data, ".onnx")
    monkeypatch.setattr(export, "open_graph", lambda *_, **__: lambda images: graph(images[:, :, ::-1].copy()))
    assert main(["export-model", str(checkpoint), "bad.onnx", "--threads", "1"]) == 1
    printed = capsys.readouterr().err
    assert "expected 99.9 %; nothing was written" in printed
    assert list(outside.iterdir()) == []


def test_a_damaged_file_a_missing_operator_and_a_newer_opset_are_one_line_each(data: bytes) -> None:
    import onnx

    proto = onnx.load_from_string(data)
    proto.graph.node[0].op_type = "Kast"
    later = onnx.load_from_string(data)
    later.opset_import[0].version = 99
    for broken in (data[: len(data) // 2], b"no graph", proto.SerializeToString(), later.SerializeToString()):
        with pytest.raises(InputError, match=r"x\.onnx: onnxruntime [\d.]+ cannot run it") as caught:
            export.open_graph(broken, ".onnx", where="x.onnx")
        assert "\n" not in caught.value.message
    with pytest.raises(InputError, match=r"x\.pt2: not a whole torch\.export file"):
        export.open_graph(b"PK no archive", ".pt2", where="x.pt2")


class Bessel(torch.nn.Module):
    """A function that ONNX does not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(images.float())


def test_an_operator_that_onnx_lacks_is_one_line() -> None:
    program = torch.export.export(Bessel(), (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),))
    with pytest.raises(ConfigError, match="this model cannot be exported") as caught:
        export.to_onnx(program, {}, argmax=False)
    assert "bessel_j0" in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("o.engine", "o.engine: expected a name that ends in .onnx or .pt2"),
        ("o.onnx --scales 1,0.3141", "scale 0.3141: only multiples of 1/64"),
        ("o.onnx --half --int8 .", "--int8 and --half exclude each other"),
        ("o.pt2 --int8 .", "--int8 is for .onnx files"),
        ("o.onnx --labels .", "--labels needs --images"),
        ("o.onnx --images .", "no folder with images"),
    ],
)
def test_wrong_arguments_are_one_line(
    checkpoint: Path, outside: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert main(["export-model", str(checkpoint), *arguments.split()]) in (2, 3)
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert list(outside.iterdir()) == []


def test_without_onnxruntime_one_line_says_what_to_install(checkpoint: Path, outside: Path) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None\nfrom pipeline.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "export-model", str(checkpoint), str(outside / "o.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: onnxruntime is not installed; this command needs the optional packages [onnx]\n"
        "hint: pip install 'hmsa-autolabel[onnx]'\n"
    )


@pytest.mark.parametrize("kind", ["hierarchical", "average"])
@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
def test_sizes_in_the_graph_are_those_of_our_own_passes(kind: str, scale: float) -> None:
    from hmsa_core.models.layers.blocks import scaled_size

    step = export._fraction(scale)
    differ = [n for n in range(34, 5000) if export._scaled(n, step, kind) != scaled_size((n, n), scale, kind)[0]]
    assert differ == []


@pytest.mark.slow
def test_int8_says_how_many_labels_stay(checkpoint: Path, outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outside / "images").mkdir()
    for i in range(4):
        cv2.imwrite(str(outside / f"images/{i}.png"), picture(i, 120, 160))
    command = ["export-model", str(checkpoint), "o.onnx", "--scales", "1", "--int8", "images", "--threads", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1].endswith("(int8, 4 images of images)")
    assert 0.8 < float(printed[-1].split()[0]) / 100 < 1.0
    import onnx

    proto = onnx.load(outside / "o.onnx")
    assert "QuantizeLinear" in {node.op_type for node in proto.graph.node}
    assert {e.key: e.value for e in proto.metadata_props}["precision"] == '"int8"'
