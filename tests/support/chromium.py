"""A headless Chromium for tests outside tests/browser; skipped where Debian's browser is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
# Reduced motion: a colour read half-way through a transition belongs to neither theme.
FLAGS = ("headless=new", "no-sandbox", "no-first-run", "hide-scrollbars", "force-prefers-reduced-motion")
FLAGS += tuple(f"disable-{what}" for what in ("dev-shm-usage", "background-networking", "component-update", "sync"))


@contextmanager
def chromium(width: int, height: int) -> Iterator[Any]:
    """A browser with a screen of that size."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        why = "needs Debian's chromium and chromium-driver: apt-get install chromium chromium-driver"
        if os.environ.get("AUTOLABEL_REQUIRE_BROWSER"):
            pytest.fail(why)
        pytest.skip(why)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        yield found
    finally:
        found.quit()
