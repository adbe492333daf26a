"""A page in a real browser and the server behind it: what tests of the inspector do with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode


@dataclass
class Page:
    """The open page: what scripts of users do with it, in one place."""

    browser: Any
    base: str
    allowed_errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Leave what was open before, and forget what it said."""
        self.browser.get("about:blank")
        self.browser.get_log("browser")

    def open(self, wait: bool = True, **state: Any) -> None:
        """Open an address and wait for the first picture."""
        query = urlencode(state, doseq=True)
        self.browser.get("about:blank")
        self.browser.get(f"{self.base}?{query}" if query else self.base)
        if wait:
            self.until(lambda: self.js("return document.documentElement.dataset.ready") == "true")

    def js(self, script: str, *args: Any) -> Any:
        """Run a script in the page."""
        return self.browser.execute_script(script, *args)

    def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait for something to become true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.03)
        raise AssertionError(f"did not happen in {seconds} s; console: {self.console()}")

    def find(self, css: str) -> Any:
        """One element."""
        return self.browser.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        """All elements."""
        return self.browser.find_elements("css selector", css)

    def text(self, css: str) -> str:
        """Visible text of an element."""
        return str(self.find(css).text)

    def keys(self, *keys: str) -> None:
        """Type into whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser, duration=20).send_keys(*keys).perform()

    def drag(self, css: str, right: int, down: int) -> None:
        """Press in the middle of an element and drag from there."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.browser, duration=30).move_to_element(self.find(css)).click_and_hold()
        chain.move_by_offset(right, down).release().perform()

    def value(self, css: str) -> str:
        """What stands in a field."""
        return str(self.find(css).get_property("value"))

    def control(self, key: str) -> None:
        """Press a key together with Ctrl."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.browser, duration=20).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def kept(self, id_: str = "kept-share-total") -> int:
        """Integer of `data-kept`, after the frame in which it is drawn."""
        self.frame()
        return int(self.find(f"#{id_}").get_attribute("data-kept"))

    def frame(self) -> None:
        """Let two frames pass."""
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0)))"
        )

    def set_threshold(self, value: str, css: str = "#threshold") -> None:
        """Move a slider as a script does."""
        self.js(
            "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input', {bubbles: true}))",
            css,
            value,
        )

    def mask(self) -> str:
        """Fingerprint of the label layer's pixels."""
        self.frame()
        return str(
            self.js(
                "const c = document.getElementById('layer-labels'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                "let h = 0; for (let i = 0; i < d.length; i += 4) h = (h * 31 + d[i] * 7 + d[i + 1] * 3 + d[i + 3]) | 0; return h"
            )
        )

    def painted(self) -> int:
        """Pixels of the label layer that are not transparent."""
        self.frame()
        return int(
            self.js(
                "const c = document.getElementById('layer-labels'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n"
            )
        )

    def image(self) -> str:
        """Name of the image on the screen; "" while the next one is on its way."""
        name = "document.getElementById('image-name').textContent"
        return str(self.js(f"return document.querySelector('#stage[aria-busy]') ? '' : {name}"))

    def console(self) -> list[str]:
        """Errors on the browser's console since the last call."""
        lines = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        return [line for line in lines if not any(allowed in line for allowed in self.allowed_errors)]


@contextlib.contextmanager
def serving(*args: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running `autolabel serve`: its address and process."""
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", "--reviewer", "kim", *args, "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            assert line.startswith("inspector: "), line
            yield line.removeprefix("inspector: ").strip(), server
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
                server.wait(10)


@contextlib.contextmanager
def page_of(browser: Any, *args: object, port: int = 0, wait: bool = True, **state: Any) -> Iterator[Page]:
    """The page of a running `autolabel serve`, open at `state`."""
    with serving(*map(str, args), port=port) as (address, _):
        page = Page(browser, address)
        page.open(wait, **state)
        yield page
