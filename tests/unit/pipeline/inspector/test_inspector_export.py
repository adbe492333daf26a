"""The page as static files."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_core.errors import ConfigError
from hmsa_core.labels import LabelStore
from pipeline.cli.main import main
from pipeline.inspector.export import bundle_modules, export_page
from pipeline.inspector.page import static_sources
from pipeline.inspector.session import Session
from tests.support.label_scenes import Scenes


def bundle_of(folder: Path) -> dict:
    text = (folder / "static" / "data.js").read_text()
    return json.loads(text.removeprefix("window.autolabelExport = ").rstrip().rstrip(";"))


def test_an_export_holds_exactly_the_stores_labels(session: Session, own_scenes: Scenes, tmp_path: Path) -> None:
    assert export_page(session, tmp_path / "page", limit=4, sort="coverage", threshold="0.9") == 4
    bundle = bundle_of(tmp_path / "page")
    assert bundle["store"]["start"] == 90
    store = LabelStore.open(own_scenes.store)
    for image in bundle["images"]:
        planes = json.loads((tmp_path / "page" / image["data"]).read_text().split(" = ", 1)[1].rstrip(";\n"))
        for plane, expected in zip(("label", "confidence"), store.read(image["name"]), strict=True):
            png = np.frombuffer(base64.b64decode(planes[plane]), np.uint8)
            assert np.array_equal(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), expected)
        assert sum(count for _, _, count in image["histogram"]) == image["pixels"]
        assert (tmp_path / "page" / image["picture"]).is_file()
        assert (tmp_path / "page" / image["thumb"]).is_file()


def test_an_export_needs_no_network_and_no_inline_code(session: Session, tmp_path: Path) -> None:
    export_page(session, tmp_path / "page", limit=1, sort="name", threshold=None)
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Content-Security-Policy" in page
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    for name in re.findall(r'(?:src|href)="(static/[^"]+)"', page):
        assert (tmp_path / "page" / name).is_file()


def test_the_joined_script_holds_every_module_and_no_import() -> None:
    sources = static_sources()
    script = bundle_modules(sources)
    assert not re.search(r"^\s*(import|export)\s", script, re.MULTILINE)
    for name in sources:
        if name.endswith(".js"):
            assert f"const ${name.removesuffix('.js')} = (() => {{" in script


def test_an_export_replaces_an_earlier_one_but_nothing_else(session: Session, tmp_path: Path) -> None:
    target = tmp_path / "page"
    export_page(session, target, limit=1, sort="name", threshold="0.9")
    export_page(session, target, limit=1, sort="name", threshold="0.8")
    assert bundle_of(target)["store"]["start"] == 80
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        export_page(session, mine, limit=1, sort="name", threshold="0.9")
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_the_command_writes_an_export_and_ends(own_scenes: Scenes, tmp_path: Path) -> None:
    target = tmp_path / "page"
    assert (
        main(
            [
                "serve",
                str(own_scenes.store),
                "--images",
                str(own_scenes.images),
                "--export",
                str(target),
                "--limit",
                "2",
            ]
        )
        == 0
    )
    assert len(bundle_of(target)["images"]) == 2
