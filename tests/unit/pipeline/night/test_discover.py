"""What arrived is told by content: new images, copies of known ones, near-copies, and what is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.night.discover import discover
from pipeline.stages import prepare
from research.tests.ablations import bare_workspace
from tests.support.photographs import edited, photographs, work_over


def test_new_images_copies_near_copies_and_missing_ones_are_told_apart(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs", "abcde", "gh", "extra", 0, (96, 64))
    bare_workspace(tmp_path / "ws", "tiny")
    ws = work_over(tmp_path / "ws", root, "extra", calibrate="cd", report="e")
    assert discover(ws)["sentence"] == "first run: 7 images in the target folder"
    prepare.run(ws)
    folder = root / "images/extra"
    shutil.copy(folder / "g_0001.png", folder / "i_0001.png")
    with Image.open(folder / "g_0001.png") as known:
        known.save(folder / "j_0001.jpg", quality=95)
    photographs(tmp_path / "others", "", "k", "extra", 1, (96, 64))
    shutil.copy(tmp_path / "others/images/extra/k_0001.png", folder)
    (folder / "l_0001.png").write_bytes(b"no picture")
    (folder / "h_0001.png").unlink()
    found = discover(ws)
    assert found["sentence"] == "4 new images (1 copies, 1 near-copies of known ones), 1 gone"
    assert found["examples"]["copies"] == [["i_0001", "g_0001", "images/extra/i_0001.png"]]
    assert found["examples"]["near"] == [["j_0001", "g_0001", "images/extra/j_0001.jpg"]]
    assert found["examples"]["gone"] == ["h_0001"]
    (folder / "m_0001.png").symlink_to(folder / "gone.png")
    assert discover(ws)["arrived"] == 5, "what cannot be read is named by prepare, and does not end the night"


@pytest.mark.usefixtures("no_tools")
def test_what_arrived_on_an_object_store_is_fetched_where_nobody_has_read_it_yet(bucket, tmp_path: Path) -> None:
    data = photographs(tmp_path / "photographs", "abcde", "g", "extra", 0, (96, 64))
    for path in data.rglob("*.*"):
        bucket.put("lab", f"data/{path.relative_to(data)}", path.read_bytes())
    bare_workspace(tmp_path / "ws", "tiny")
    ws = work_over(tmp_path / "ws", data, "extra", calibrate="cd", report="e")
    ws = edited(ws, {"data.target.root": "s3://lab/data"})
    prepare.run(ws)
    bucket.put("lab", "data/images/extra/i_0001.png", (data / "images/extra/g_0001.png").read_bytes())
    ws.resolve("s3://lab/data", anew=True)  # as by a `prepare` that was stopped before it came to the image
    assert discover(ws)["examples"]["copies"] == [["i_0001", "g_0001", "images/extra/i_0001.png"]]
