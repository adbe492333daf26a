"""Real headless Chromium against real `autolabel serve` processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from tests.support.browser_page import Page, serving
from tests.support.label_scenes import Scenes, make_scenes

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for the whole run."""
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
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    screen = {"width": 1500, "height": 940, "deviceScaleFactor": 1, "mobile": False}
    found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Eight scenes of two cities."""
    return make_scenes(tmp_path_factory.mktemp("street"), frames=4, size=(512, 256))


@pytest.fixture(scope="session")
def server(street: Scenes) -> Iterator[str]:
    """A server that tests share; only marks and policies are written there."""
    with serving(str(street.store), "--policy", str(street.policy), "--images", str(street.images)) as (address, _):
        yield address


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Page]:
    """The page of the shared server; a test ends with a clean console."""
    found = Page(browser, server)
    yield found
    assert found.console() == []


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`autolabel inspect ... --json` as an object."""

    def run(*args: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["inspect", *map(str, args), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run
