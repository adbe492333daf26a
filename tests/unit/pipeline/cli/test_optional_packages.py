"""Without the optional packages the commands that need none work, and the others end with one clear line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.io import atomic
from hmsa_core.labels import LabelStore, LabelStoreWriter
from pipeline.workspace.settings import profile_text
from tests.conftest import REPO
from tests.support.inference import noise_image, save_model

pytestmark = pytest.mark.long

# Import names of what the extras bring (fsspec and protobuf come along with other packages, too).
EXTRAS = "matplotlib fastapi starlette uvicorn dvc prefect sqlalchemy httpx onnx onnxruntime onnxscript transformers datasets"
EXTRAS += " shtab pycocotools label_studio_sdk cvat_sdk s3fs ray tensorboard mlflow"

WITHOUT = f"""
import sys
from importlib.machinery import PathFinder
look = PathFinder.find_spec
extras = "{EXTRAS}".split()
PathFinder.find_spec = staticmethod(
    lambda name, *more: None if name.partition(".")[0] in extras else look(name, *more)
)
"""

COMMAND = f"""{WITHOUT}
from pipeline.cli import main, services
if sys.argv[1] == "orchestrate":
    sys.exit(main.run_command("orchestrate", services, sys.argv[2:]))
sys.exit(main.main(sys.argv[1:]))
"""

HELP = f"""{WITHOUT}
from pipeline.cli.main import COMMANDS, main
for name in COMMANDS:
    try:
        ended = main([name, "--help"])
    except SystemExit as stop:
        ended = stop.code
    assert ended == 0, name
"""

# The modules that do not import, and why.
MODULES = f"""{WITHOUT}
import pkgutil, hmsa_core, pipeline
from hmsa_core.io.errors import ConfigError
for package in (hmsa_core, pipeline):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            __import__(module.name)
        except (ModuleNotFoundError, ConfigError) as error:
            print(module.name, error.name if isinstance(error, ModuleNotFoundError) else error.message)
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
        ("serve STORE --port 0", "uvicorn [ui]"),
        ("label --images IMAGES --out OUT --classes cityscapes --teacher onnx:STORE/manifest.json", "onnx [onnx]"),
        ("export-model MODEL OUT.onnx", "onnx [onnx]"),
        ("export STORE OUT --threshold 0.9 --images IMAGES --format cvat", "cvat_sdk [exchange]"),
        ("export STORE OUT --threshold 0.9 --images IMAGES --format label-studio", "label_studio_sdk [exchange]"),
        ("verify STORE --engine ray", "ray [ray]"),
        ("completion bash", "shtab [dvc]"),
        ("stage prepare --workspace WORKSPACE", "matplotlib [report]"),
        ("orchestrate up --workspace WORKSPACE", "httpx [nightly]"),
    ],
)
def test_a_command_needs_no_more_packages_than_it_uses(store: Path, tmp_path: Path, command: str, lacks: str) -> None:
    save_model(tmp_path / "MODEL")
    atomic.write_text(tmp_path / "WORKSPACE/dvc.yaml", "")
    atomic.write_text(tmp_path / "WORKSPACE/params.yaml", profile_text("tiny"))
    given = {name: tmp_path / name for name in ("IMAGES", "MODEL", "OUT", "PAGE", "WORKSPACE")} | {"STORE": store}
    given["IMAGES"].mkdir()
    arguments = re.sub("|".join(given), lambda found: str(given[found[0]]), command).split()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == (2 if lacks else 0), done.stderr
    package, _, extra = lacks.partition(" ")
    reported = [
        f"error: {package} is not installed; this command needs the optional packages {extra}",
        f"hint: pip install 'hmsa-autolabel{extra}'",
    ]
    assert not lacks or [line for line in done.stderr.splitlines() if not line.startswith("export: 0/")] == reported


def test_without_any_extra_only_modules_that_are_for_one_do_not_import() -> None:
    done = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True, cwd=REPO, check=True)
    why = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    for folder, missing in {
        "hmsa_core.inference.folder.cvat_function": "cvat_sdk is not installed; this command needs the optional packages",
        "pipeline.page.": "starlette uvicorn",
        "pipeline.night.flow": "httpx",
        "pipeline.": "matplotlib is not installed; this command needs the optional packages [report]",
    }.items():
        here = [name for name in why if name.startswith(folder)]
        assert here
        assert {
            said for name in here if (said := why.pop(name)) not in missing and not said.startswith(missing)
        } == set()
    assert why == {}, "the library imports without any extra"


def test_every_command_explains_itself_and_the_doctor_looks_without_any_extra(tmp_path: Path) -> None:
    environment = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(REPO)}, "text": True}
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, check=False, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("init ws --profile tiny --no-data", "doctor --quick --workspace ws"):
        ran = [sys.executable, "-c", COMMAND, *command.split()]
        done = subprocess.run(ran, capture_output=True, check=False, **environment)
        assert "Traceback" not in done.stderr
    assert "broken   dvc: not installed" in done.stdout


UNUSED = """
import pkgutil, sys
from pathlib import Path
import hmsa_core
for module in pkgutil.walk_packages(hmsa_core.__path__, "hmsa_core."):
    if module.name != "hmsa_core.inference.folder.cvat_function":  # which only CVAT's own command imports
        __import__(module.name)
from hmsa_core.inference import label
label(sys.argv[1], sys.argv[2], sys.argv[3])
print(sorted(set(sys.argv[4].split()) & set(sys.modules)))
"""


def test_a_checkpoint_labels_without_any_optional_package_and_no_module_of_the_core_loads_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(noise_image(0, 40, 56)).save(tmp_path / "images" / "a.png")
    model = save_model(tmp_path / "model")
    arguments = (tmp_path / "images", model, tmp_path / "store", EXTRAS)
    done = subprocess.run(
        [sys.executable, "-c", UNUSED, *map(str, arguments)], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert LabelStore.open(tmp_path / "store").names() == ["a"]
