"""Pictures of the report: weights of scales belong to their image, whatever it is called."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

from PIL import Image

from hmsa_core.data.index import Index
from pipeline.report.strips import strips
from pipeline.workspace.new_workspace import InitRequest, init_workspace
from pipeline.workspace.workspace import Workspace
from tests.support.chain import set_params
from tests.support.inference import save_model
from tests.support.training import write_data, write_store

PLACES = ("drive4/000001.png", "drive5/000001.png", "drive5/image[1].png")


def test_images_of_one_name_and_of_strange_names_get_their_own_scale_weights(tmp_path: Path, no_tools: None) -> None:
    init_workspace(InitRequest(tmp_path / "ws", "tiny", make_data=False))
    set_params(tmp_path / "ws", {"data.target.root": str(tmp_path / "data")})
    ws = Workspace(tmp_path / "ws")
    index = Index.load(write_data(tmp_path / "data", images=3))
    samples = [replace(sample, image=place) for sample, place in zip(index.samples, PLACES, strict=True)]
    for height, old, new in zip((64, 32, 48), index.samples, samples, strict=True):
        (tmp_path / "data" / new.image).parent.mkdir(exist_ok=True)
        with Image.open(tmp_path / "data" / old.image) as image:
            image.resize((96, height)).save(tmp_path / "data" / new.image)
    ws.path("data/index").mkdir(parents=True, exist_ok=True)
    Index.write(ws.path("data/index/target.parquet"), samples, index.classes, "target")
    for name in ("raw", "final"):
        write_store(tmp_path / "data", ws.path(f"labels/{name}"), index="toy")
    save_model(ws.path("models/teacher"))
    for strip, height in zip(strips(ws, 3), (64, 32, 48), strict=True):
        weights = [address for caption, address in strip.pictures if caption.startswith("weight of")]
        assert len(weights) == len(ws.params.auto_infer.scales), strip.name
        with Image.open(io.BytesIO(base64.b64decode(weights[0].partition(",")[2]))) as drawn:
            assert drawn.height == round(drawn.width * height / 96), strip.name
