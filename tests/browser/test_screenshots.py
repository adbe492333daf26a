"""Pictures of the page: made on every run, and written into docs/images when AUTOLABEL_SCREENSHOTS names a folder."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.support.browser_page import Page, serving
from tests.support.label_scenes import make_scenes

LIMIT = 300_000  # bytes a picture


@pytest.fixture(scope="module")
def avenue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a page over larger pictures."""
    large = bool(os.environ.get("AUTOLABEL_SCREENSHOTS"))
    size, frames = ((1024, 512), 9) if large else ((512, 256), 3)
    cities = ("aachen", "bremen", "ulm", "zurich") if large else ("zurich",)
    found = make_scenes(tmp_path_factory.mktemp("labels"), cities=cities, frames=frames, size=size, images_per_shard=9)
    with serving(str(found.store), "--policy", str(found.policy), "--images", str(found.images)) as (address, _):
        yield address


def shoot(page: Page, name: str) -> None:
    """Take a picture; a page that is blank or broken does not pass."""
    page.until(
        lambda: page.js(
            "return [...document.querySelectorAll('.tile img')].every(i => i.hidden || i.complete && i.naturalWidth)"
        )
    )
    page.frame()
    time.sleep(0.4)  # transitions
    image = Image.open(io.BytesIO(page.browser.get_screenshot_as_png())).convert("RGB")
    pixels = np.asarray(image).reshape(-1, 3)
    assert image.size == (1500, 940)
    assert len(np.unique(pixels[::7], axis=0)) > 1000
    folder = os.environ.get("AUTOLABEL_SCREENSHOTS")
    if folder:
        for colours in (256, 192, 128, 64):
            buffer = io.BytesIO()
            image.quantize(colours, kmeans=2, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            if buffer.tell() <= LIMIT:
                break
        assert buffer.tell() <= LIMIT
        (Path(folder) / f"inspector-{name}.png").write_bytes(buffer.getvalue())


def test_light(browser: Any, avenue: str) -> None:
    page = Page(browser, avenue)
    page.open(theme="light", image="zurich_000000_000020", sort="coverage")
    page.until(lambda: page.all(".tile[aria-selected=true]"))
    ActionChains(browser, duration=20).move_to_element(page.find("#stage")).move_by_offset(-120, 30).perform()
    shoot(page, "light")
    assert page.console() == []


def test_dark(browser: Any, avenue: str) -> None:
    page = Page(browser, avenue)
    page.open(
        theme="dark",
        threshold="0.9",
        layers="image,labels,dropped",
        opacity=70,
        sort="drop:0.8:0.95",
        **{"class": "car"},
    )
    page.until(lambda: page.all(".tile[aria-selected=true]"))
    shoot(page, "dark")
    assert page.console() == []


def test_compare(browser: Any, avenue: str) -> None:
    page = Page(browser, avenue)
    page.open(
        theme="dark", threshold="0.97", compare="0.60", swipe="0.52", image="zurich_000000_000020", sort="uncertain"
    )
    page.until(lambda: "only A" in page.text("#difference"))
    shoot(page, "compare")
    assert page.console() == []


def test_audit(browser: Any, avenue: str) -> None:
    page = Page(browser, avenue)
    page.open(theme="light", threshold="0.9", image="zurich_000000_000000")
    page.keys("u")
    page.until(lambda: page.find("#audit-form").is_displayed())
    page.find("#audit-per-class").send_keys(Keys.ENTER)
    for number in range(12):
        page.until(lambda n=number: page.find("#audit-close").get_attribute("data-item") == str(n))
        page.keys(Keys.ARROW_LEFT if number == 7 else Keys.ARROW_RIGHT)
    page.until(lambda: "12/" in page.text("#audit-results"))
    page.until(lambda: page.find("#audit-close").get_attribute("data-item") == "12")
    shoot(page, "audit")
    assert page.console() == []
