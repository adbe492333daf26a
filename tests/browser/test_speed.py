"""The figures that make the page feel immediate, measured in the page, and the server's memory."""

from __future__ import annotations

import statistics
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from examples.streets.annotate import cityscapes_polygons, draw_cityscapes
from examples.streets.scene import city_picture
from hmsa_core.labels import LabelStoreWriter
from hmsa_core.taxonomy import cityscapes
from research.bench.memory import status_kib
from tests.support.browser_page import Page, serving
from tests.support.label_scenes import LINEAGE, imitate_teacher

LARGE = 12  # images of 2048 x 1024 among the 5,000


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Server of a store of 5,000 images, the first ones at native size; its address and process id."""
    folder: Path = tmp_path_factory.mktemp("big")
    picture = city_picture(3, "train_extra", "ulm", 1, 1, (2048, 1024), 1)
    ids, _ = draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))
    label, confidence = imitate_teacher(np.asarray(cityscapes().id_to_train[ids], np.uint8), 0)
    (folder / "data").mkdir()
    cv2.imwrite(str(folder / "data" / "a.jpg"), np.ascontiguousarray(picture.rgb[..., ::-1].astype(np.uint8)))
    small_label, small_confidence = label[::64, ::64].copy(), confidence[::64, ::64].copy()
    with LabelStoreWriter(folder / "raw", LINEAGE, images_per_shard=64) as writer:
        for number in range(LARGE):
            writer.add(f"a_{number:05d}", np.roll(label, 40 * number, 1), confidence, image_path="a.jpg")
        for number in range(LARGE, 5000):
            writer.add(f"b_{number:05d}", small_label, small_confidence, image_path="a.jpg")
    with serving(str(folder / "raw"), "--images", str(folder / "data")) as (address, server):
        yield address, server.pid


def measures(page: Page, name: str) -> list[float]:
    return list(page.js("return performance.getEntriesByName(arguments[0]).map(m => m.duration)", name))


@pytest.mark.slow  # as all times: on a machine with nothing else to do
def test_the_first_picture_of_5000_images_is_there_within_1500_ms(browser: Any, big: tuple[str, int]) -> None:
    page = Page(browser, big[0])
    times: list[float] = []
    for number in range(6):  # the first time against a fresh server; again only where other programs were in the way
        page.open(threshold="0.9", image=f"a_{number:05d}")
        times += measures(page, "first-picture")
        if times[-1] <= 1500:
            return
    raise AssertionError(f"first pictures after {times} ms")


@pytest.mark.slow
def test_rethresholding_two_megapixels_while_dragging_takes_one_frame(browser: Any, big: tuple[str, int]) -> None:
    page = Page(browser, big[0])
    page.open(threshold="0.9", image="a_00001")
    size = page.js("const c = document.getElementById('layer-labels'); return [c.width, c.height]")
    assert size == [2048, 1024]
    medians = []
    for _ in range(3):  # other programs on this machine may take one of the rounds
        page.js("performance.clearMeasures('rethreshold')")
        browser.execute_async_script(
            "const done = arguments[0]; const s = document.getElementById('threshold'); let i = 0;"
            "const step = () => { s.value = 0.5 + 0.499 * ((i * 7) % 40) / 40; s.dispatchEvent(new Event('input'));"
            " if (i++ < 40) requestAnimationFrame(step); else done(); }; step();"
        )
        medians.append(statistics.median(measures(page, "rethreshold")))
    assert min(medians) <= 16, medians
    assert page.painted() == page.kept("kept-share")


@pytest.mark.slow
def test_decoding_a_new_image_takes_at_most_150_ms(browser: Any, big: tuple[str, int]) -> None:
    page, decoded = Page(browser, big[0]), []
    for number in range(4, 10):  # other programs on this machine may take some of the rounds
        page.open(threshold="0.9", image=f"a_{number:05d}")
        decoded += measures(page, "decode")
    assert min(decoded) <= 150, decoded


@pytest.mark.slow
def test_the_servers_memory_stays_flat_over_500_images(big: tuple[str, int]) -> None:
    address, pid = big

    def resident_mb() -> float:
        return status_kib("VmRSS", pid) / 1024

    def look_at(name: str) -> None:
        for path in ("plane?plane=label&", "mini?"):
            with urllib.request.urlopen(f"{address}api/{path}name={quote(name)}", timeout=20) as reply:
                assert reply.read()

    names = [f"a_{i % LARGE:05d}" if i % 10 == 0 else f"b_{LARGE + 8 * i:05d}" for i in range(600)]
    for name in names[:100]:
        look_at(name)
    before = resident_mb()
    for name in names[100:]:
        look_at(name)
    assert resident_mb() - before < 24
