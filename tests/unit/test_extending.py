"""docs/extending.md: each diff is applied to a copy of the package, touches the files it says, and works."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "extending.md").read_text("utf-8")
DIFFS = dict(re.findall(r"^## (.+?)\n.*?```diff\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, to be copied again for each diff."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("hmsa_core", "pipeline"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "static"))
    return folder


def _apply(packages: Path, tmp_path: Path, change: str) -> tuple[Path, list[str]]:
    """A copy with the change in it, and the files that it touches."""
    copy = tmp_path / "copy"
    shutil.copytree(packages, copy)
    (copy / "change.diff").write_text(DIFFS[change])
    subprocess.run(["git", "apply", "change.diff"], cwd=copy, check=True, capture_output=True)
    return copy, re.findall(r"^\+\+\+ b/(.+)$", DIFFS[change], re.MULTILINE)


def _run(copy: Path, code: str) -> str:
    env = {"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_the_six_changes() -> None:
    changes = ["loss", "trunk", "stage", "threshold rule", "certificate bound", "exchange format"]
    assert list(DIFFS) == [f"Another {change}" for change in changes]


def test_another_loss_is_one_file_and_its_option(packages: Path, tmp_path: Path) -> None:
    copy, files = _apply(packages, tmp_path, "Another loss")
    assert files == ["hmsa_core/losses/focal.py", "hmsa_core/config.py"]
    out = _run(
        copy,
        "import torch; from hmsa_core.config import LossConfig; from hmsa_core.losses import training_loss\n"
        "from hmsa_core import models\n"
        "options = LossConfig(main='focal', focal_gamma=0.0)\n"
        "model = models.build('single', trunk='hrnet_micro', num_classes=3)\n"
        "labels = torch.randint(0, 3, (2, 32, 32))\n"
        "plain = LossConfig(main='cross_entropy')\n"
        "output = model(torch.randn(2, 3, 32, 32))\n"
        "focal, plain = (training_loss(output, labels, one).total for one in (options, plain))\n"
        "focal.backward(); print(bool((focal - plain).abs() < 1e-5))",
    )
    assert out.strip() == "True"  # with gamma 0 the focal loss is the cross-entropy


def test_another_trunk_is_one_file(packages: Path, tmp_path: Path) -> None:
    copy, files = _apply(packages, tmp_path, "Another trunk")
    assert files == ["hmsa_core/models/trunks/resnet.py"]
    out = _run(
        copy,
        "import torch; from hmsa_core import models; from hmsa_core.config import ModelConfig\n"
        "ModelConfig(trunk='resnet18')\n"
        "model = models.build('hierarchical', trunk='resnet18', num_classes=5)\n"
        "print(tuple(model.predict(torch.randn(1, 3, 61, 87), scales=(0.5, 1.0)).logits.shape))",
    )
    assert out.strip() == "(1, 5, 61, 87)"


def test_another_stage_is_one_file_and_a_row(packages: Path, tmp_path: Path) -> None:
    copy, files = _apply(packages, tmp_path, "Another stage")
    assert files == ["pipeline/stages/gallery.py", "pipeline/workspace/table.py"]
    _run(copy, "from pipeline.cli.main import main; assert main(['init', 'ws', '--profile', 'tiny', '--no-data']) == 0")
    assert "cmd: exec autolabel stage gallery" in (copy / "ws/dvc.yaml").read_text()
    assert re.search(
        r"^gallery:.*\n  images: 20 +# number of images on the page$",
        (copy / "ws/settings.yaml").read_text(),
        re.MULTILINE,
    )
    store = copy / "ws/labels/raw"
    _run(
        copy,
        "import numpy as np; from hmsa_core.labels import LabelStoreWriter\n"
        f"writer = LabelStoreWriter({str(store)!r}, {{'classes': None}})\n"
        "for name, p in (('sure', 0.99), ('unsure', 0.4)):\n"
        "    writer.add(name, np.zeros((4, 4), np.uint8), np.full((4, 4), p, np.float32))\n"
        "writer.close()\n"
        "from pipeline.cli.main import main; assert main(['stage', 'gallery', '--workspace', 'ws']) == 0",
    )
    page = (copy / "ws/gallery/index.html").read_text()
    assert page.index("unsure") < page.index(">sure")


def test_another_threshold_rule_is_one_file(packages: Path, tmp_path: Path) -> None:
    copy, files = _apply(packages, tmp_path, "Another threshold rule")
    assert files == ["hmsa_core/labels/thresholds/rules/best_f1.py"]
    out = _run(
        copy,
        "from hmsa_core.labels.thresholds.settings import CalibrateConfig, rule_names\n"
        "from hmsa_core.labels.thresholds.rules import find_rule\n"
        "config = CalibrateConfig(rule='best_f1')\n"
        "print(rule_names(), find_rule(config.rule).__module__)",
    )
    assert out.strip() == "['best_f1', 'promise', 'teach'] hmsa_core.labels.thresholds.rules.best_f1"


def test_another_certificate_bound_is_one_file(packages: Path, tmp_path: Path) -> None:
    copy, files = _apply(packages, tmp_path, "Another certificate bound")
    assert files == ["hmsa_core/labels/thresholds/bounds/hoeffding.py"]
    out = _run(
        copy,
        "import numpy as np; from hmsa_core.labels.thresholds.bounds import bound_names, find_bound\n"
        "from hmsa_core.labels import LabelStoreWriter\n"
        "from pipeline.review.certificate import Certificate; from pipeline.review.view import StoreView\n"
        "with LabelStoreWriter('raw', {'classes': None}) as writer:\n"
        "    writer.add('one', np.zeros((40, 40), np.uint8), np.full((40, 40), 0.9, np.float32))\n"
        "view = StoreView('raw')\n"
        "certificate = Certificate.plan(view, target=0.8, bound='hoeffding')\n"
        "while certificate.plan_draws(view):\n"
        "    for number in range(len(certificate.items)): certificate.answer(view, number, 'right')\n"
        "rng = np.random.default_rng(0)\n"  # of 1000 audits that are too wrong, at most delta are ever certified
        "wrong = (rng.random((1000, 300)) < 0.2).cumsum(axis=1)\n"
        "false = (find_bound('hoeffding')(np.arange(1, 301), wrong, 0.2) >= np.log(20)).any(axis=1)\n"
        "print(bound_names(), [row['certified'] for row in certificate.results().values()], false.mean() <= 0.05)",
    )
    assert out.strip() == "['betting', 'hoeffding'] [True] True"


def test_another_exchange_format_is_one_file_that_corrections_come_back_from(packages: Path, tmp_path: Path) -> None:
    copy, files = _apply(packages, tmp_path, "Another exchange format")
    assert files == ["hmsa_core/labels/formats/voc.py"]
    out = _run(
        copy,
        "import numpy as np; from pathlib import Path; from PIL import Image\n"
        "from hmsa_core.io.atomic import sha256_file; from hmsa_core.labels import LabelStoreWriter\n"
        "from pipeline.cli.main import main\n"
        "Image.new('RGB', (4, 4)).save('a.png')\n"
        "with LabelStoreWriter('raw', {'teacher': '0'}) as writer:\n"
        "    label, sure = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.float32)\n"
        "    writer.add('a', label, sure, image_path='a.png', image_sha256=sha256_file(Path('a.png')))\n"
        "assert main(['export', 'raw', 'out', '--format', 'voc', '--images', '.']) == 0\n"
        "mask = Image.open('out/SegmentationClass/a.png'); mask.putpixel((1, 2), 13)\n"
        "mask.save('out/SegmentationClass/a.png')\n"
        "assert main(['import', 'out', 'raw', '--corrections-of', 'out', '--by', 'kim']) == 0\n"
        "try: main(['export', '--help'])\n"
        "except SystemExit: pass",
    )
    assert '"pixels"' in (copy / "raw.review.jsonl").read_text()
    assert "voc                    PASCAL VOC: palette PNG files" in out
