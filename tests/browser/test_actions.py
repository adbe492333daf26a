"""Review, saving, and what the page does when things are broken."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from selenium.webdriver.common.keys import Keys

from hmsa_core.labels import LabelStore, LabelStoreWriter, ThresholdPolicy
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.review import UNTOUCHED, Mark, Patch, ReviewFile, reviewed
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from tests.support.browser_page import Page, page_of, serving
from tests.support.label_scenes import LINEAGE, Scenes, make_scenes
from tests.support.ranks import free_port


def test_a_saved_policy_keeps_in_training_labels_what_the_page_shows(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, "--policy", street.policy, "--images", street.images, threshold="0.87") as page:
        page.set_threshold(
            "0.95", page.js("return '#' + document.querySelector('[data-class=car] input[type=range]').id")
        )
        kept = page.kept()
        page.control("s")
        page.until(lambda: page.text("#save-label") == "Policy saved")
        assert "raw.policy.json" in page.text("#toasts")
        assert page.console() == []
    policy = ThresholdPolicy.load(tmp_path / "raw.policy.json")
    raw = LabelStore.open(store)
    finalise(raw, Recipe(policy), tmp_path / "final")
    final = LabelStore.open(tmp_path / "final")
    assert sum(int((final.read_label(name) != 255).sum()) for name in final.names()) == kept


def test_a_region_is_flagged_with_a_note_and_leaves_the_training_labels(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    store = street.copied_to(tmp_path).store
    note = "ghost <img src=x onerror=alert(1)>"
    with page_of(browser, store, "--images", street.images, threshold="0.9", image=street.names[2]) as page:
        page.keys("r")
        page.drag("#stage", 90, 60)
        page.until(lambda: "drawn" in page.text("#region-label"))
        page.keys("n", note, Keys.ESCAPE)
        page.keys("f")
        page.until(lambda: page.all(".mark-item"))
        assert note in page.text("#marks")
        assert "kim" in page.text("#marks")
        page.until(lambda: page.all(".badge.flag"))
        assert page.console() == []
        page.open(threshold="0.9", review="flag")
        assert page.image() == street.names[2]
        page.find(".mark-item .ghost").click()
        page.until(lambda: not page.all(".mark-item"))
        page.keys("f")
        page.until(lambda: page.all(".mark-item"))
    marks = ReviewFile(store).by_name()[street.names[2]]
    assert [(mark.verdict, mark.region) for mark in marks] == [("flag", None)]
    lines = [json.loads(line) for line in ReviewFile(store).path.read_text().splitlines()]
    assert len(lines) == 3
    assert lines[0]["note"] == note
    (x0, y0), _, (x1, y1), _ = lines[0]["region"]
    assert x1 - x0 > 20
    assert y1 - y0 > 10
    assert reviewed(marks, 256, 512, cityscapes())[0].all()


def test_a_review_by_keyboard_takes_one_key_an_image_and_the_last_mark_can_be_taken_back(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, "--images", street.images, threshold="0.9", sort="name") as page:
        order = [page.image()]
        for key in "AFAF":
            page.keys(key)
            order.append(page.until(lambda: (now := page.image()) != order[-1] and now))
        page.keys("n", "x")
        page.control("z")  # in a field it takes back what was typed, and no mark
        page.control("s")
        page.until(lambda: "Saved" in page.text("#toasts"))
        assert (page.image(), len(ReviewFile(store).marks())) == (order[4], 4)
        page.keys(Keys.BACKSPACE, Keys.ESCAPE)
        page.control("z")
        page.until(lambda: page.image() == order[3])
        page.keys("F")
        page.until(lambda: page.image() == order[4] and order[4] in page.browser.current_url)
        page.browser.refresh()  # the window's own marks outlive it
        page.until(lambda: page.image() == order[4])
        other = ReviewFile(store)
        other.withdraw(order[3], other.of(order[3])[0].id)  # another person was first: the one before is meant
        for image in (order[2], order[1], order[0]):
            page.control("z")
            page.until(lambda image=image: page.image() == image)
        page.control("z")
        page.until(lambda: "no mark" in page.text("#toasts"))
    lines = [json.loads(line) for line in ReviewFile(store).path.read_text().splitlines()]
    assert [(line["name"], line.get("verdict")) for line in lines[:3]] == [
        (order[0], "accept"),
        (order[1], "flag"),
        (order[2], "accept"),
    ]
    assert ReviewFile(store).marks() == []


def test_a_review_by_mouse_takes_one_click_an_image(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, "--images", street.images, threshold="0.9") as page:
        for button, image in zip(("#accept", "#flag", "#accept"), street.names[1:4], strict=True):
            page.find(button).click()
            page.until(lambda image=image: page.image() == image)
        page.find(".toast.good .link").click()  # Undo
        page.until(lambda: page.image() == street.names[2])
        page.keys("r")
        page.find("#accept").click()
        page.until(lambda: "being drawn" in page.text("#toasts"))  # a half-drawn region is no word about the image
        page.drag("#stage", 90, 60)
        page.until(lambda: "drawn" in page.text("#region-label"))
        page.find("#flag").click()
        page.until(lambda: page.all(".mark-item.flag"))
        assert page.image() == street.names[2]  # there may be a second region
        page.find("#sort").click()
        page.js(
            "const s = arguments[0]; s.value = 'coverage'; s.dispatchEvent(new Event('change', {bubbles: true}))",
            page.find("#sort"),
        )
        page.until(lambda: page.text("#image-position") == "1 / 8")  # the worst is shown, and keys mean images again
        assert "3 reviewed" in page.text("#grid-count")
        first = page.until(page.image)
        page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: page.image() not in ("", first))
    assert [(mark.name, mark.verdict) for mark in ReviewFile(store).marks()] == [
        (street.names[0], "accept"),
        (street.names[1], "flag"),
        (street.names[2], "flag"),
    ]


def test_no_image_is_skipped_or_marked_unseen(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(
        browser, store, "--images", street.images, threshold="0.9", review="none", image=street.names[2]
    ) as page:
        page.keys("a")  # takes the image out of the list
        page.until(lambda: page.text("#grid-count").startswith("7 images"))
        page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: page.image() == street.names[3])
        page.js("""
          const real = window.fetch;
          window.hold = true;
          window.fetch = async (path, options) => {
            while (window.hold && String(path).includes("api/image?")) await new Promise((go) => setTimeout(go, 20));
            return real(path, options);
          };
        """)
        page.keys("A")
        page.until(lambda: page.text("#image-name") == street.names[4])
        page.keys("A", "a", "F")  # its picture is not there yet
        page.js("""
          window.hold = false;
          const press = (repeat) => document.dispatchEvent(new KeyboardEvent("keydown", { key: "A", repeat, bubbles: true }));
          window.hurry = press;
        """)
        page.until(lambda: page.image() == street.names[4])
        page.js("[false, true, true, true].forEach(window.hurry)")  # a key that is held down
        page.until(lambda: page.image() == street.names[5])
        page.js("window.hurry(true)")
        page.frame()
        page.keys("/", "nothing like it")
        page.until(lambda: page.find("#grid-all").is_displayed())
        page.find("#grid-all").click()
        page.until(lambda: page.text("#grid-count") == "8 images · 3 reviewed")
        assert page.console() == []
    assert [mark.name for mark in ReviewFile(store).marks()] == list(street.names[2:5])


def test_a_page_goes_on_with_a_server_that_was_started_again(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store, port = street.copied_to(tmp_path).store, free_port()
    args = (str(store), "--images", str(street.images))
    with page_of(browser, *args, port=port, threshold="0.9", image=street.names[0]) as page:
        pass
    page.until(lambda: page.find("#offline").is_displayed())  # nobody has pressed anything
    page.keys("A")
    page.until(lambda: "not saved" in page.text("#toasts"))
    assert page.image() == street.names[0]
    with serving(*args, port=port):
        page.until(lambda: not page.find("#offline").is_displayed())
        page.keys("A")
        page.until(lambda: page.image() == street.names[1])
    shutil.rmtree(store)
    shutil.copytree(make_scenes(tmp_path / "new", frames=4, size=(512, 256), teacher_seed=1).store, store)
    with serving(*args, port=port):
        page.keys("A")
        page.until(lambda: "made anew" in page.text("#toasts"))  # never a mark about labels that nobody saw
    assert [mark.name for mark in ReviewFile(store).marks()] == [street.names[0]]


def test_corrections_of_another_tool_are_listed_with_their_person_and_can_be_withdrawn(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    store = street.copied_to(tmp_path).store
    review, name = ReviewFile(store), street.names[1]
    drawn = np.full((256, 512), UNTOUCHED, np.uint8)
    drawn[10:20, 30:50] = 0
    table = LabelStore.open(store).classes
    with review.lock():
        review.add_corrections([Mark("", name, "correct", reviewer="sam", pixels=Patch.of(drawn, table))])
    assert (reviewed(review.of(name), 256, 512, table)[1] == drawn).all()
    with page_of(browser, store, "--images", street.images, threshold="0.9", image=name) as page:
        page.until(lambda: page.all(".mark-item.correct svg"))
        assert "Corrected pixels" in page.text("#marks")
        assert "sam" in page.text("#marks")
        assert page.console() == []
        page.find(".mark-item .ghost").click()
        page.until(lambda: not page.all(".mark-item"))
    assert review.of(name) == []


# Saves of marks wait until `release()` is called, and then fail if it is called with true.
HOLD_SAVES = """
  const real = window.fetch;
  const held = [];
  window.posts = 0;
  window.release = (fail) => { window.held = false; held.splice(0).forEach((go) => go(fail)); };
  window.held = true;
  window.fetch = async (path, options) => {
    if (options?.method !== "POST" || !String(path).includes("api/review")) return real(path, options);
    window.posts += 1;
    if (window.held && await new Promise((go) => held.push(go))) {
      return new Response(JSON.stringify({message: "not saved: disk", hint: ""}), {status: 507});
    }
    return real(path, options);
  };
"""


def test_a_slow_save_takes_nothing_from_the_next_image(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, "--images", street.images, threshold="0.9", image=street.names[0]) as page:
        page.js(HOLD_SAVES)
        page.keys("n", "first", Keys.ESCAPE, "f", "f")
        page.until(lambda: "still being saved" in page.text("#toasts"))
        page.keys(Keys.ARROW_RIGHT)
        page.until(lambda: page.value("#note") == "")
        page.keys("n", "second", Keys.ESCAPE, "r")
        page.drag("#stage", 90, 60)
        page.until(lambda: "drawn" in page.text("#region-label"))
        page.js("window.release(false)")
        page.until(lambda: f"Flagged {street.names[0]}" in page.text("#toasts"))
        assert page.value("#note") == "second"
        page.keys("f")
        page.until(lambda: page.all(".mark-item"))
        assert page.js("return window.posts") == 2
        assert page.value("#note") == ""
    marks = ReviewFile(store).marks()
    assert [(mark.name, mark.note, mark.region is None) for mark in marks] == [
        (street.names[0], "first", True),
        (street.names[1], "second", False),
    ]


def test_what_was_not_saved_waits_on_its_image(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, "--images", street.images, threshold="0.9", image=street.names[0]) as page:
        page.js(HOLD_SAVES)
        page.keys("n", "ghost car", Keys.ESCAPE, "f", Keys.ARROW_RIGHT)
        page.until(lambda: page.value("#note") == "")
        page.js("window.release(true)")
        page.until(lambda: f"{street.names[0]}: not saved: disk" in page.text("#toasts"))
        page.keys("a")
        page.until(lambda: page.all(".mark-item"))
        page.keys(Keys.ARROW_LEFT)
        page.until(lambda: page.value("#note") == "ghost car")
        page.keys("f")
        page.until(lambda: page.value("#note") == "")
    assert [(mark.name, mark.verdict, mark.note) for mark in ReviewFile(store).marks()] == [
        (street.names[1], "accept", ""),
        (street.names[0], "flag", "ghost car"),
    ]


def test_only_what_is_on_the_screen_can_be_judged(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, "--images", street.images, threshold="0.9") as page:
        page.js("""
          const real = window.fetch;
          window.hold = true;
          window.fetch = async (path, options) => {
            while (window.hold && String(path).includes("audit/item")) await new Promise((go) => setTimeout(go, 20));
            return real(path, options);
          };
        """)
        page.keys("u")
        page.until(lambda: page.find("#audit-form").is_displayed())
        page.find("#audit-per-class").send_keys(Keys.ENTER)
        page.until(lambda: page.find("#audit-run").is_displayed())
        page.keys("j", "j", "j")
        assert page.text("#audit-count").startswith("0 of")
        page.js("window.hold = false")
        page.until(lambda: page.find("#audit-close").get_attribute("data-item") == "0")
        page.keys("j")
        page.until(lambda: page.text("#audit-count").startswith("1 of"))
        page.until(lambda: page.find("#audit-close").get_attribute("data-item") == "1")
        shortcuts = """
          return ["ctrlKey", "altKey", "metaKey"].map((held) => document.body.dispatchEvent(
            new KeyboardEvent("keydown", { key: "j", [held]: true, bubbles: true, cancelable: true })));
        """
        assert page.js(shortcuts) == [True, True, True]  # they stay the browser's, and are no answers
        assert page.find("#audit-close").get_attribute("data-item") == "1"
    items = json.loads((tmp_path / "raw.audit.json").read_text())["items"]
    assert [item["verdict"] for item in items[:3]] == ["right", None, None]


def test_labels_that_were_made_anew_are_not_taken_from_the_browsers_cache(
    browser: Any, street: Scenes, tmp_path: Path
) -> None:
    raw = LabelStore.open(street.store)
    port = free_port()
    seen = []
    for threshold in ("0.5", "0.99"):
        final = tmp_path / "final"
        finalise(raw, Recipe(from_threshold(threshold, raw.classes)), final)
        with page_of(browser, final, port=port, image=street.names[0]) as page:
            seen.append(page.painted())
        assert seen[-1] == int((LabelStore.open(final).read_label(street.names[0]) != 255).sum())
    assert seen[1] < seen[0]


def test_a_damaged_shard_is_named_and_the_rest_stays_usable(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store = street.copied_to(tmp_path).store
    shard = sorted(store.rglob("shard-00000*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:-64])
    with page_of(browser, store, "--images", street.images, wait=False, threshold="0.9", image=street.names[0]) as page:
        page.until(lambda: page.find("#problem").is_displayed())
        assert page.text("#problem-title") == "This image's shard is damaged"
        assert shard.name in page.text("#problem-text")
        assert shard.name in page.text("#problems")
        assert page.find("#kept-share").get_attribute("data-kept") is None
        page.keys(Keys.END)
        page.open(threshold="0.9", image=street.names[5])
        assert not page.find("#problem").is_displayed()
        assert page.kept("kept-share") > 0


def test_with_the_server_gone_the_slider_still_moves_mask_and_numbers(browser: Any, street: Scenes) -> None:
    with serving(str(street.store), "--images", str(street.images)) as (address, server):
        page = Page(browser, address)
        page.open(threshold="0.9")
        page.frame()
        server.kill()
        server.wait(10)
        before = page.mask(), page.kept(), page.kept("kept-share")
        page.find("#threshold").send_keys(Keys.PAGE_DOWN, Keys.PAGE_DOWN)
        after = page.mask(), page.kept(), page.kept("kept-share")
        assert all(a != b for a, b in zip(after, before, strict=True))
        page.set_threshold("0.99")
        assert page.kept() < before[1]
        page.until(lambda: page.find("#offline").is_displayed())
        assert page.painted() == page.kept("kept-share")


def test_scripts_in_names_and_notes_are_shown_as_text(browser: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    from hmsa_core.taxonomy import cityscapes

    bad = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    table = replace(cityscapes(), classes=(bad, *cityscapes().classes[1:]))
    label = np.tile(np.arange(16, dtype=np.uint8) % 3, (16, 1))
    with LabelStoreWriter(tmp_path / "raw", LINEAGE, classes=table) as writer:
        for number in range(2):
            writer.add(f"{number} {bad}", label, np.full((16, 16), 0.95, np.float32), city=bad)
    ReviewFile(tmp_path / "raw").add(f"0 {bad}", "flag", note=bad, reviewer=bad)
    with page_of(browser, tmp_path / "raw", threshold="0.9", image=f"0 {bad}", **{"class": bad}) as page:
        page.until(lambda: page.all(".mark-item"))
        assert bad in page.text("#marks")
        assert bad in page.find("#image-name").text
        assert bad in page.js("return document.querySelector('.class-name').textContent")
        page.keys("c", "?", Keys.ESCAPE, "u")
        time.sleep(0.3)
        assert page.js("return document.title") != "owned"
        assert (
            page.js(
                "return document.querySelectorAll('main img[src=x], #classes img, #marks img, #left img[src=x]').length"
            )
            == 0
        )
        assert page.console() == []


def test_without_pictures_the_page_says_how_to_get_them(browser: Any, street: Scenes, tmp_path: Path) -> None:
    store = street.copied_to(tmp_path).store
    with page_of(browser, store, threshold="0.9") as page:
        assert "--images ROOT" in page.text("#no-picture")
        assert page.kept("kept-share") == page.painted()


def test_a_page_that_cannot_start_says_why(browser: Any, server: str) -> None:
    page = Page(browser, server)
    page.open(wait=False, **{"class": "nobody"})
    page.until(lambda: page.find("#fatal").is_displayed())
    assert "nobody" in page.text("#fatal-text")


def test_two_stores_are_compared(browser: Any, street: Scenes, tmp_path: Path) -> None:
    other = make_scenes(tmp_path, frames=1, size=(512, 256), teacher_seed=1)
    folders = (street.store, "--images", street.images, "--compare", other.store)
    with page_of(browser, *folders, threshold="0.9", compare="0.9", image=street.names[0], **{"with": "b"}) as page:
        text = page.until(lambda: "different class" in page.text("#difference") and page.text("#difference"))
        assert "different class 0.00 %" not in text
        ours, theirs = (LabelStore.open(s).read(street.names[0]) for s in (street.store, other.store))
        both = (ours[1] >= 90) & (theirs[1] >= 90) & (ours[0] != theirs[0])
        assert f"different class {100 * both.mean():.2f} %" in text
        assert page.console() == []


def test_scale_weights_are_computed_when_somebody_asks(browser: Any, street: Scenes, tmp_path: Path) -> None:
    """With a real (untrained) model: the server starts `autolabel predict` and shows what it wrote."""
    import torch

    from hmsa_core import models
    from hmsa_core.taxonomy import cityscapes

    torch.manual_seed(0)
    model = models.build("hierarchical", trunk="hrnet_micro", num_classes=19)
    models.save(model, tmp_path / "model", class_table=cityscapes().to_json(), lineage={})
    command = (street.store, "--images", street.images, "--checkpoint", tmp_path / "model")
    with page_of(browser, *command, threshold="0.9", image=street.names[0]) as page:
        page.keys("6")
        page.until(lambda: page.find("#scales").is_displayed())
        page.until(lambda: page.find("#layer-weights").is_displayed(), seconds=90)
        buttons = [button.text for button in page.all("#scales button")]
        assert buttons == ["×0.5", "×1", "×2"]
        page.all("#scales button")[2].click()
        page.until(lambda: "scale=2" in page.browser.current_url)
        page.until(lambda: page.find("#layer-weights").is_displayed())
        assert page.console() == []
