"""Audits and certificates: answers about drawn pixels, by keyboard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from selenium.webdriver.common.keys import Keys

from hmsa_core.io import sealed
from hmsa_core.labels import LabelStore
from pipeline.cli.main import main
from tests.support.browser_page import Page, page_of, serving
from tests.support.label_scenes import Scenes, make_scenes


def _shown(page: Page, number: int) -> None:
    page.until(lambda: page.find("#audit-close").get_attribute("data-item") == str(number))


def test_an_audit_of_ten_clicks_becomes_evidence(browser: Any, street: Scenes, tmp_path: Path, inspect) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, "--images", street.images, threshold="0.9", **{"class": "road"}) as page:
        page.keys("u")
        page.until(lambda: page.find("#audit-form").is_displayed())
        page.find("#audit-focus").click()
        count = page.find("#audit-per-class")
        count.clear()
        count.send_keys("10", Keys.ENTER)
        page.until(lambda: page.text("#audit-class") == "road")
        for number in range(10):
            _shown(page, number)
            page.keys(Keys.ARROW_LEFT if number == 0 else Keys.ARROW_RIGHT)
        page.until(lambda: page.find("#audit-done").is_displayed())
        page.until(lambda: "90.0 %" in page.text("#audit-summary"))
        page.find("#audit-finish").click()
        page.until(lambda: page.text("[data-class=road] .class-precision").endswith("90.0 %"))
        page.until(lambda: page.text("#precision-source") == "measured for 1 of 19 classes (below)")
        page.set_threshold("0.5")
        page.until(lambda: page.text("#precision-source").startswith("not measured yet"))
        page.keys("u")
        page.until(lambda: page.find("#audit-form").is_displayed())
        assert page.text("#audit-count") == "", "the form is about new pixels"
        assert page.console() == []
    audit = json.loads((tmp_path / "raw.audit.json").read_text())
    assert [item["verdict"] for item in audit["items"]] == ["wrong"] + ["right"] * 9
    for item in audit["items"]:
        label, code = LabelStore.open(store).read(item["name"])
        assert label[item["y"], item["x"]] == 0
        assert code[item["y"], item["x"]] >= 90
    road = inspect(store, "--threshold", "0.9", "--class", "road")
    assert (road["precision"], road["precision_source"]) == (0.9, "audit")
    assert road["precision_low"] < 0.9 < road["precision_high"]


_HOLD_ANSWERS = """
  [window.real, window.replies] = [window.fetch, []];
  window.fetch = async (path, ...rest) => {
    const reply = await window.real(path, ...rest);
    if (String(path).includes("certificate/answer")) await new Promise((go) => window.replies.push(go));
    return reply;
  };
"""


def test_answers_by_keyboard_become_a_certificate_that_outlives_a_break_and_a_second_person(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    store = street.copied_to(tmp_path).store
    file = tmp_path / "raw.certificate.json"

    def opened(address: str) -> Page:
        page = Page(browser, address)
        page.open(threshold="0.9", **{"class": "sky"})
        page.keys("u")
        page.until(lambda: page.find("#certificate-form").is_displayed())
        return page

    with serving(str(store), "--images", str(street.images)) as (address, _):
        page = opened(address)
        page.find("#audit-focus").click()
        target = page.find("#certificate-target")
        target.clear()
        target.send_keys("80", Keys.ENTER)
        for number in range(6):
            _shown(page, number)
            page.keys(Keys.ARROW_RIGHT)
        _shown(page, 6)
        page.until(lambda: sum(d["verdict"] is not None for d in json.loads(file.read_text())["items"]) == 6)
        # A second person answers the next one meanwhile.
        page.js("""
          const token = document.querySelector('meta[name="autolabel-token"]').content;
          window.second = fetch("api/certificate").then((r) => r.json()).then(({ current }) => fetch("api/certificate/answer", {
            method: "POST", headers: { "Content-Type": "application/json", "X-Autolabel-Token": token },
            body: JSON.stringify({ audit: current.id, item: 7, verdict: "unsure" }) }));
        """)
        page.until(lambda: json.loads(file.read_text())["items"][7]["verdict"] == "unsure")
        page.keys(Keys.ARROW_RIGHT)
    with serving(str(store), "--images", str(street.images)) as (address, _):
        page = opened(address)
        page.until(lambda: page.find("#certificate-resume").is_displayed())
        page.find("#certificate-resume").click()
        _shown(page, 8)  # 6 was answered here, 7 by the second person
        assert (page.text("#audit-title"), page.text("#audit-count")) == ("Certificate", "8 of at most 300")
        for number in range(8, 13):
            _shown(page, number)
            page.keys(Keys.ARROW_RIGHT)
        page.js(_HOLD_ANSWERS)
        for number in (13, 14):  # the first answers end with 14; its reply brings the next pixel
            _shown(page, number)
            page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: page.js("return window.replies.length") == 2)
        page.js("window.replies.shift()()")
        page.frame()
        assert not page.find("#audit-done").is_displayed()
        page.js("window.replies.shift()(); window.fetch = window.real")
        for _answer in range(200):
            page.until(
                lambda: page.find("#audit-done").is_displayed() or page.find("#audit-close").get_attribute("data-item")
            )
            if page.find("#audit-done").is_displayed():
                break
            page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: "Certified at 80.0 %: sky." in page.text("#audit-summary"))
        assert "from 0" in page.text("#audit-results")
        assert page.js("const a = document.querySelector('#audit aside'); return a.scrollWidth <= a.clientWidth")
        assert page.console() == []
    assert main(["verify", "--certificate", str(file)]) == 0
    assert json.loads(file.read_text())["results"]["sky"]["certified"]
    shutil.rmtree(store)
    shutil.copytree(make_scenes(tmp_path / "new", frames=1, size=(512, 256)).store, store)
    with serving(str(store), "--images", str(street.images)) as (address, _):
        page = opened(address)
        page.until(lambda: page.text("#certificate-void").startswith("void: the store has changed"))
        assert not page.find("#certificate-resume").is_displayed()


def test_back_leaves_out_the_answers_to_questions_which_a_certificate_cannot_change(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    scenes = street.copied_to(tmp_path)
    given = ("--answers", str(scenes.maps), "--ids", "train", "--budget", "60")
    assert main(["ask", str(scenes.store), *given]) == 0
    with serving(str(scenes.store), "--images", str(scenes.images)) as (address, _):
        page = Page(browser, address)
        page.open(threshold="0.9")
        page.keys("u")
        page.until(lambda: page.find("#certificate-form").is_displayed())
        page.find("#certificate-target").send_keys(Keys.ENTER)
        shown = int(page.until(lambda: page.find("#audit-close").get_attribute("data-item")))
        items = json.loads((tmp_path / "raw.certificate.json").read_text())["items"]
        assert shown > 0
        assert all("set" in item for item in items[:shown])
        page.keys(Keys.BACKSPACE)
        page.frame()
        _shown(page, shown)
        page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: page.find("#audit-close").get_attribute("data-item") not in ("", str(shown)))
        page.keys(Keys.BACKSPACE)
        _shown(page, shown)
        assert page.console() == []


def _swap_answer(value: dict[str, Any]) -> None:
    next(d for d in value["items"] if d["verdict"] == "wrong")["verdict"] = "right"


def _huge_number(value: dict[str, Any]) -> None:
    value["target"] = 10**400


def _markup(value: dict[str, Any]) -> None:
    value["classes"][0]["name"] = "<img src=x onerror='window.hacked = 1'>"


def test_two_windows_answer_one_certificate_and_hostile_files_and_another_store_end_it(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    store, file = street.copied_to(tmp_path).store, tmp_path / "raw.certificate.json"
    plan = json.dumps({"target": 0.8, "budget": 60, "classes": ["sky"]})

    def resumed(page: Page) -> None:
        page.open(threshold="0.9")
        page.keys("u")
        page.until(lambda: page.find("#certificate-resume").is_displayed())
        page.find("#certificate-resume").send_keys(Keys.ENTER)

    def answers() -> list[str | None]:
        return [draw["verdict"] for draw in json.loads(file.read_text())["items"]]

    args = (str(store), "--images", str(street.images))
    with serving(*args) as (first, _), serving(*args) as (second, _process):
        page = Page(browser, first)
        page.open(threshold="0.9")
        page.js(
            """
          const token = document.querySelector('meta[name="autolabel-token"]').content;
          fetch("api/certificate", {
            method: "POST", headers: { "Content-Type": "application/json", "X-Autolabel-Token": token }, body: arguments[0] });
        """,
            plan,
        )
        page.until(file.is_file)
        windows = [browser.current_window_handle]
        resumed(page)
        _shown(page, 0)
        browser.switch_to.new_window("tab")
        windows.append(browser.current_window_handle)
        other = Page(browser, second)
        resumed(other)
        _shown(other, 0)
        other.keys(Keys.ARROW_LEFT)
        _shown(other, 1)
        other.until(lambda: answers()[0] == "wrong")
        browser.switch_to.window(windows[0])
        page.keys(Keys.ARROW_LEFT)  # the same pixel, which the first window still shows
        _shown(page, 1)
        page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: answers()[:2] == ["wrong", "right"])
        browser.switch_to.window(windows[1])
        other.keys(Keys.ARROW_DOWN)  # the last word about a pixel counts
        other.until(lambda: answers()[:2] == ["wrong", "unsure"])
        browser.close()
        browser.switch_to.window(windows[0])
        assert page.console() == []
        honest = file.read_bytes()
        for change in (_swap_answer, _huge_number, _markup):
            value = sealed.read(file)
            change(value)
            sealed.write(file, value)
            page.open(threshold="0.9")
            page.keys("u")
            page.until(lambda: page.text("#certificate-void").startswith("does not count:"))
            assert "refused" in page.text("#certificate-void")
            assert not page.find("#certificate-resume").is_displayed()
            assert not page.js("return window.hacked")
            assert page.console() == []
            file.write_bytes(honest)
        page.allowed_errors = ["api/certificate/answer"]
        resumed(page)
        _shown(page, 2)
        shutil.rmtree(store)
        shutil.copytree(make_scenes(tmp_path / "new", frames=1, size=(512, 256)).store, store)
        page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: page.text("#toasts"))
        assert file.read_bytes() == honest  # an answer about labels that are gone does not count
