"""The page as static files."""

from __future__ import annotations

import base64
import errno
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStore
from pipeline.page import export
from pipeline.page.export import export_page, static_sources
from pipeline.review.session import Session
from tests.support.label_scenes import Scenes
from tests.support.training import folder_bytes


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
    script = (tmp_path / "page/static/page.js").read_text()
    assert not re.search(r"^\s*(import|export)\s", script, re.MULTILINE)
    modules = [Path(name).stem for name in static_sources() if name.endswith(".js")]
    assert all(f"const ${name} = (() => {{" in script for name in modules)


def test_an_export_replaces_an_earlier_one_but_nothing_else(session: Session, tmp_path: Path) -> None:
    target = tmp_path / "page"
    for limit, threshold in ((3, "0.9"), (1, "0.8")):
        export_page(session, target, limit=limit, sort="name", threshold=threshold)
        for folder in ("data", "pictures", "thumbs"):
            assert len(list((target / folder).iterdir())) == limit
    assert bundle_of(target)["store"]["start"] == 80
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        export_page(session, mine, limit=1, sort="name", threshold="0.9")
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]
    (target / "notes.txt").write_text("an hour of work")
    with pytest.raises(ConfigError, match=r"more than an earlier export: notes\.txt"):
        export_page(session, target, limit=1, sort="name", threshold="0.9")
    assert (target / "notes.txt").is_file()


@pytest.mark.parametrize("begun", ["nothing", "folder", "export"])
def test_after_a_failure_all_is_as_before_and_the_next_try_works(
    session: Session, tmp_path: Path, monkeypatch, begun: str
) -> None:
    target = tmp_path / "out" / "page"
    if begun == "folder":
        target.mkdir(parents=True)
    if begun == "export":
        export_page(session, target, limit=2, sort="name", threshold="0.8")
    before = folder_bytes(target)
    with monkeypatch.context() as patch:
        patch.setattr(export, "_write_page", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            export_page(session, target, limit=1, sort="name", threshold="0.9")
    after = folder_bytes(target)
    assert before == {name: data for name, data in after.items() if name != "export.json" or begun == "export"}
    assert [p.name for p in target.parent.iterdir()] in ([], ["page"])
    assert export_page(session, target, limit=1, sort="name", threshold="0.9") == 1
    assert bundle_of(target)["store"]["start"] == 90


def test_a_mount_point_that_was_half_filled_is_filled_by_the_next_try(
    session: Session, tmp_path: Path, monkeypatch
) -> None:
    """Such a folder cannot be changed for another one, and a volume of its own can be full."""
    target = tmp_path / "volume"
    target.mkdir()
    links = itertools.count()

    def link(source: Path, new: Path) -> None:
        if next(links) == 2:
            raise OSError(errno.ENOSPC, "full")
        os.link(source, new)

    def busy(one: Path, other: Path) -> None:
        raise OSError(errno.EBUSY, "mounted")

    monkeypatch.setattr(atomic.ops, "exchange", busy)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.ops, "link", link)
        with pytest.raises(OSError, match="full"):
            export_page(session, target, limit=2, sort="name", threshold="0.9")
    assert not (target / "index.html").exists()
    assert export_page(session, target, limit=2, sort="name", threshold="0.9") == 2
    assert (target / "index.html").is_file()


def test_an_export_never_takes_the_place_of_the_folder_one_stands_in(own_scenes, tmp_path, monkeypatch, said) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for target in (".", ".."):
        assert "--export page" in said("serve", own_scenes.store, "--export", target, status=2).err
    (tmp_path / "file").write_text("mine")
    assert "is no folder" in said("serve", own_scenes.store, "--export", tmp_path / "file", status=2).err


def test_an_export_never_goes_into_a_label_store(own_scenes: Scenes, said) -> None:
    store = own_scenes.store
    shutil.copytree(store, store.with_name("other"))
    before = sorted(store.parent.rglob("*"))
    for place in ("raw", "raw/page", "raw/sidecar/deep/page", "other/page"):
        error = said("serve", store, "--export", store.parent / place, status=2).err
        assert all(words in error for words in ("lies in a label store", "give a folder elsewhere")), place
        assert sorted(store.parent.rglob("*")) == before
    said("verify", store)
