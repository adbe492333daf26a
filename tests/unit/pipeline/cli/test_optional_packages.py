"""Without the optional packages the commands that need none work, and the others end with one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.labels import LabelStore, LabelStoreWriter
from tests.conftest import REPO
from tests.support.inference import noise_image, save_model

pytestmark = pytest.mark.long

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"prefect", "dvc", "fastapi", "starlette", "uvicorn", "matplotlib", "onnx", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from pipeline.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "raw"
    with LabelStoreWriter(folder, {"teacher": "0"}) as writer:
        writer.add("a", np.zeros((8, 8), np.uint8), np.full((8, 8), 0.95, np.float32))
    return folder


@pytest.mark.parametrize(
    ("command", "lacks"),
    [
        ("inspect STORE --threshold 0.9", ""),
        ("export STORE PAGE", ""),
        ("verify STORE", ""),
        ("serve STORE --port 0", "uvicorn is not installed; this command needs the optional packages [ui]"),
        (
            "label --images IMAGES --out OUT --classes cityscapes --teacher onnx:STORE/manifest.json",
            "onnx is not installed; this command needs the optional packages [onnx]",
        ),
    ],
)
def test_a_command_needs_no_more_packages_than_it_uses(store: Path, tmp_path: Path, command: str, lacks: str) -> None:
    arguments = command.replace("STORE", str(store)).replace("PAGE", str(tmp_path / "page"))
    arguments = arguments.replace("IMAGES", str(tmp_path)).replace("OUT", str(tmp_path / "out")).split()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == (2 if lacks else 0), done.stderr
    told = f"error: {lacks}\nhint: pip install 'hmsa-autolabel[{lacks.rpartition('[')[2]}'\n"
    assert not lacks or done.stderr == told


UNUSED = """
import pkgutil, sys
from pathlib import Path
import hmsa_core
for module in pkgutil.walk_packages(hmsa_core.__path__, "hmsa_core."):
    if module.name != "hmsa_core.inference.folder.cvat_function":  # which only CVAT's own command imports
        __import__(module.name)
from hmsa_core.inference import label
label(sys.argv[1], sys.argv[2], sys.argv[3])
extras = "onnx onnxruntime onnxscript transformers datasets pycocotools label_studio_sdk cvat_sdk tensorboard mlflow"
extras += " matplotlib dvc prefect fastapi starlette uvicorn"
print(sorted(set(extras.split()) & set(sys.modules)))
"""


def test_a_checkpoint_labels_without_any_optional_package_and_no_module_of_the_core_loads_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(noise_image(0, 40, 56)).save(tmp_path / "images" / "a.png")
    model = save_model(tmp_path / "model")
    arguments = (tmp_path / "images", model, tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", UNUSED, *map(str, arguments)], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert LabelStore.open(tmp_path / "store").names() == ["a"]
