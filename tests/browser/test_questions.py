"""Questions about regions, answered by keyboard: breaks, two people, undo, and labels that were made anew."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from selenium.webdriver.common.keys import Keys

from hmsa_core.labels.review import UNTOUCHED, reviewed
from pipeline.review.price import price
from pipeline.review.questions import Questions, review_of
from pipeline.review.view import StoreView
from tests.support.browser_page import Page, serving
from tests.support.label_scenes import Scenes, make_scenes

_WATCH = """
  window.seconds = [];
  let pressed = null;
  document.addEventListener("keydown", (event) => { if (!"qu".includes(event.key)) pressed = performance.now(); }, true);
  new MutationObserver(() => {
    if (!document.getElementById("ask-run").dataset.item || pressed === null) return;
    window.seconds.push((performance.now() - pressed) / 1000);
    pressed = null;
  }).observe(document.getElementById("ask-run"), { attributes: true, attributeFilter: ["data-item"] });
"""


def shown(page: Page, but: int | None = None) -> int | None:
    """Number of the question on the screen, another one than `but`; None once all is done."""

    def look() -> str:
        return str(
            page.js(
                "return document.getElementById('ask-done').hidden ? document.getElementById('ask-run').dataset.item ?? '' : 'done'"
            )
        )

    found = page.until(lambda: (now := look()) and now != str(but) and now)
    return None if found == "done" else int(found)


def opened(page: Page) -> None:
    page.open(threshold="0.9")
    page.js(_WATCH)
    page.keys("q")


def class_key(page: Page, name: str) -> str:
    return page.text(f"#ask-classes [data-name='{name}'] kbd")


def answered(page: Page, most: int, said: dict[int, str]) -> int:
    """Answer so many questions, or all that are left; return the number of the last one answered."""
    number, last = shown(page), -1
    for turn in range(most):
        if number is None:
            break
        name = page.text("#ask-class")
        other = "wall" if name != "wall" else "pole"
        keys = {
            0: (class_key(page, other), other),
            4: ("m", "mixed"),
            7: ("x", "unsure"),
            8: (class_key(page, name), name),
        }
        key, said[number] = keys.get(turn % 10, (Keys.ENTER, name))
        page.keys(key)
        number, last = shown(page, but=number), number
    return last


def count(page: Page, answers: int) -> None:
    page.until(lambda: page.text("#ask-count").startswith(f"{answers} of 100"))


def test_a_hundred_questions_by_keyboard_outlive_breaks_undo_two_people_and_end_with_the_labels(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    store, file = street.copied_to(tmp_path).store, tmp_path / "raw.questions.json"
    here = [str(store), "--images", str(street.images)]
    said: dict[int, str] = {}
    seconds: list[float] = []
    with serving(*here) as (kim, _), serving(*here, "--reviewer", "ada") as (ada, _):
        page = Page(browser, kim)
        opened(page)
        page.until(lambda: page.find("#ask-form").is_displayed())
        page.find("#ask-budget").send_keys(Keys.ENTER)
        last = answered(page, 40, said)
        count(page, 40)
        seconds += page.js("return window.seconds")
        view = StoreView(store)
        name = Questions.load(file).items[last]["name"]
        page.browser.refresh()  # a break in the middle
        page.until(lambda: page.js("return document.documentElement.dataset.ready") == "true")
        page.keys("q")
        number = shown(page)
        assert number not in said
        count(page, 40)
        before = len(review_of(view).of(name))
        page.keys("u")  # the last answer before the reload
        assert shown(page, but=number) == last
        count(page, 39)
        assert Questions.load(file).items[last]["verdict"] is None
        assert len(review_of(view).of(name)) == before - (said[last] != "unsure")
        page.keys(class_key(page, "sky"))
        said[last] = "sky"
        shown(page, but=last)
        count(page, 40)
        page.keys(Keys.ESCAPE)
        page.until(lambda: not page.find("#ask").is_displayed())
        assert page.console() == []

        second = Page(browser, ada)
        opened(second)
        by_ada: dict[int, str] = {}
        answered(second, 30, by_ada)
        count(second, 70)
        seconds += second.js("return window.seconds")
        assert not set(by_ada) & set(said)
        assert "ada" in second.text("#ask-who")
        assert "last 25" in second.text("#ask-price")

        page = Page(browser, kim)
        opened(page)
        count(page, 70)
        number = shown(page)
        page.keys("u")  # kim's last one, not ada's
        assert shown(page, but=number) == last
        answered(page, 100, said)
        assert shown(page) is None
        found = Questions.load(file)
        assert {n: item["answer"] for n, item in enumerate(found.items) if item.get("who") == "kim"} == said
        assert {n: item["answer"] for n, item in enumerate(found.items) if item.get("who") == "ada"} == by_ada
        assert all(item["when"] for item in found.items if item["verdict"])
        assert f"{len(said) + len(by_ada)} questions answered" in page.text("#ask-summary")
        labels = {n: reviewed(review_of(view).of(n), 256, 512, view.classes)[1] for n in view.names}
        brought = price(found, view)["price"][-1]
        assert sum(int((one < view.classes.num_classes).sum()) for one in labels.values()) == brought["labelled"]
        assert sum(int((one == 255).sum()) for one in labels.values()) == brought["ignored"]

        page.find("#ask-more").click()  # and the labels are made anew while the next ones are answered
        page.find("#ask-budget").send_keys(Keys.ENTER)
        page.until(lambda: page.text("#ask-count") == "0 of 100")
        shown(page)
        shutil.rmtree(store)
        shutil.copytree(make_scenes(tmp_path / "new", frames=4, size=(512, 256), teacher_seed=1).store, store)
        page.allowed_errors += ["409", "api/questions/item"]
        page.keys(Keys.ENTER)
        page.until(lambda: "made anew since this server opened it" in page.text("#toasts"))
        assert page.console() == []
    with serving(*here) as (kim, server):
        page = Page(browser, kim)
        opened(page)
        page.until(lambda: page.text("#ask-void").startswith("void: the store has changed"))
        page.find("#ask-budget").send_keys(Keys.ENTER)
        number = shown(page)
        assert number is not None
        assert page.console() == []
        server.kill()
        server.wait(10)
        page.keys(Keys.ENTER)
        page.until(lambda: "not saved: the server does not answer" in page.text("#toasts"))
        assert shown(page) == number
    view = StoreView(store)
    kept = [reviewed(review_of(view).of(name), 256, 512, view.classes)[1] for name in view.names]
    assert sum(int((one != UNTOUCHED).sum()) for one in kept) == brought["labelled"] + brought["ignored"]
    assert json.loads(file.read_text())["store"] == view.digest
    median = statistics.median(seconds)
    sys.stdout.write(f"seconds of the page itself an answer: median {median:.3f} of {len(seconds)}\n")
    assert median < 2
