"""Real headless Chromium against real `autolabel serve` processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser_page import Page, serving
from tests.support.chromium import chromium
from tests.support.label_scenes import Scenes, inspected, make_scenes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for the whole run."""
    with chromium(1500, 940) as found:
        yield found


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
    return partial(inspected, capsys)
