"""Questions about regions on the page: answers that become labels, add up over servers, and can be taken back."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmsa_core.labels import LabelStore
from hmsa_core.labels.review import UNTOUCHED
from pipeline.cli.main import main
from pipeline.review.questions import Questions, review_of
from pipeline.review.session import Session
from pipeline.review.view import StoreView
from tests.support.asgi import AsgiClient, Reply, client_of
from tests.support.label_scenes import Scenes, corrected, make_scenes

PRICE = ("price", "last", "next", "words")


def drawn(client: AsgiClient, budget: int = 12, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.post("/api/questions", {"budget": budget, **more}).json()
    return found


def said(client: AsgiClient, drawn_set: dict[str, Any], verdict: str, number: int | None = None) -> dict[str, Any]:
    item = drawn_set["upcoming"][0] if number is None else number
    reply = client.post("/api/questions/answer", {"audit": drawn_set["id"], "item": item, "verdict": verdict})
    assert reply.status == 200, reply.json()
    found: dict[str, Any] = reply.json()
    return found


def assert_refused(reply: Reply, words: str) -> None:
    message = reply.json()["message"]
    assert (reply.status in (400, 404), words in message, "\n" in message) == (True, True, False), message


def items_of(scenes: Scenes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Questions.path_of(scenes.store).read_text())["items"]
    return found


def test_an_answer_labels_the_region_that_the_page_outlines(client: AsgiClient, copied: Scenes) -> None:
    drawn_set = drawn(client)
    question = client.get("/api/questions/item", audit=drawn_set["id"], item=drawn_set["upcoming"][0]).json()
    said(client, drawn_set, "wall")
    labels = corrected(view := StoreView(copied.store), question["name"])
    ys, xs = np.nonzero(labels == view.classes.index("wall"))
    box = question["box"]
    assert len(ys) > 0
    assert ((xs >= box["x"]) & (xs < box["x"] + box["width"])).all()
    assert ((ys >= box["y"]) & (ys < box["y"] + box["height"])).all()
    assert (labels.shape[1], labels.shape[0]) == (question["size"]["width"], question["size"]["height"])
    # Edges between region and rest, by brute force.
    inside = set(zip(xs.tolist(), ys.tolist(), strict=True))
    edges = {f"{x} {y + d}h1" for x, y in inside for d in (0, 1) if (x, y + 2 * d - 1) not in inside}
    edges |= {f"{x + d} {y}v1" for x, y in inside for d in (0, 1) if (x + 2 * d - 1, y) not in inside}
    assert set(question["outline"].split("M")[1:]) == edges
    (mark,) = review_of(view).of(question["name"])
    assert (mark.reviewer, mark.verdict) == ("tester", "correct")


def test_a_question_reads_the_maps_of_its_image_once(
    client: AsgiClient, copied: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large maps take long to decode: a question is drawn, shown and answered on the same ones."""
    read: list[str] = []
    read_of = LabelStore.read

    def read_and_note(store: LabelStore, name: str) -> Any:
        read.append(name)
        return read_of(store, name)

    monkeypatch.setattr(LabelStore, "read", read_and_note)
    drawn_set = drawn(client)
    for _ in range(6):
        number = drawn_set["upcoming"][0]
        name = client.get("/api/questions/item", audit=drawn_set["id"], item=number).json()["name"]
        before = len(read)
        drawn_set = said(client, drawn_set, "right")
        assert len(read) - before <= 1, "only the question that is drawn ahead may need another image"
        assert name not in read[before:]
    assert read
    label, code = StoreView(copied.store).read(copied.names[0])
    assert not label.flags.writeable
    assert not code.flags.writeable


def test_undo_withdraws_the_persons_own_corrections_one_by_one_also_after_a_restart(copied: Scenes) -> None:
    kim = Session(copied.store, images=copied.images, reviewer="kim")
    ada = Session(copied.store, images=copied.images, reviewer="ada")
    with client_of(kim) as first, client_of(ada) as second:
        drawn_set = drawn(first)
        numbers = drawn_set["upcoming"]
        for number, verdict in zip(numbers, ("wall", "mixed", "unsure"), strict=True):
            said(first, drawn_set, verdict, number)
        other = next(n for n in range(12) if n not in numbers)
        said(second, drawn_set, "pole", other)
    with client_of(Session(copied.store, images=copied.images, reviewer="kim")) as again:
        for left, number in zip((3, 2, 1), reversed(numbers), strict=True):
            reply = again.post("/api/questions/undo", {"audit": drawn_set["id"]}).json()
            assert (reply["price"][-1]["answers"], reply["upcoming"][0]) == (left, number)
        last = again.post("/api/questions/undo", {"audit": drawn_set["id"]})
        assert (last.status, last.json()["message"]) == (404, "no answer of kim to these questions is left to undo")
    view = StoreView(copied.store)
    assert [mark.reviewer for mark in review_of(view).marks()] == ["ada"]
    assert [n for n, item in enumerate(items_of(copied)) if item["verdict"]] == [other]


def test_two_servers_add_their_answers_up_and_share_a_draw(copied: Scenes) -> None:
    names = ("kim", "ada")
    with (
        client_of(Session(copied.store, reviewer=names[0])) as one,
        client_of(Session(copied.store, reviewer=names[1])) as two,
    ):
        first, second = drawn(one, 20), drawn(two, 30)
        assert (first["id"], first["total"]) == (second["id"], 20)  # who came second goes on with the first's
        assert first["upcoming"] != second["upcoming"], "each has an order of their own"
        for client, verdict in ((one, "right"), (two, "unsure")) * 4:
            second = said(client, client.get("/api/questions").json()["current"], verdict)
        assert second["price"][-1]["answers"] == 8
        taken = next(n for n, item in enumerate(items_of(copied)) if item.get("who") == "kim")
        assert said(two, second, "unsure", taken)["price"] == second["price"], "who was faster stands"
        current = one.get("/api/questions").json()["current"]
        assert (current["price"], current["who"]) == (second["price"], "kim")
    answered = [item for item in items_of(copied) if item["verdict"]]
    assert sorted(item["who"] for item in answered) == ["ada"] * 4 + ["kim"] * 4
    assert all(item["when"] for item in answered)


def test_questions_go_on_where_they_were_left_until_none_is_open_and_more_are_new(copied: Scenes) -> None:
    session = Session(copied.store, reviewer="kim")
    with client_of(session) as client:
        drawn_set = said(client, drawn(client, 6, classes=["pole"]), "right")
    with client_of(Session(copied.store, reviewer="kim")) as client:
        resumed = client.get("/api/questions").json()["current"]
        assert (resumed["id"], resumed["upcoming"][0], resumed["aim"]) == (
            drawn_set["id"],
            drawn_set["upcoming"][0],
            ["pole"],
        )
        while resumed["upcoming"]:
            resumed = said(client, resumed, "mixed")
        more = drawn(client, 6, classes=["pole"], after=resumed["id"])
        assert more["id"] != resumed["id"]
        assert more["price"][-1]["answers"] == 0
        assert more["upcoming"]
        kept = copied.store.with_name(f"raw.questions-{resumed['id']}.json")
        assert sum(item["verdict"] is not None for item in json.loads(kept.read_text())["items"]) > 1


def test_the_page_and_the_terminal_tell_one_price(
    client: AsgiClient, copied: Scenes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_set = drawn(client, 40)
    for _ in range(30):
        drawn_set = said(client, drawn_set, "wall")
    assert [row["answers"] for row in drawn_set["price"]] == [25, 30]
    assert drawn_set["last"]["answers"] == 25
    assert 0 < drawn_set["last"]["labelled"] < drawn_set["price"][-1]["labelled"]
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    options = ["--images", str(copied.images), "--budget", "40", "--json"]
    assert main(["ask", str(copied.store), *options]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert {key: reported[key] for key in PRICE} == {key: drawn_set[key] for key in PRICE}


def test_questions_about_labels_that_were_made_anew_are_void_and_their_answers_stay(
    copied: Scenes, tmp_path: Path
) -> None:
    with client_of(Session(copied.store, reviewer="kim")) as client:
        drawn_set = said(client, drawn(client), "wall")
        view = StoreView(copied.store)
        before = {name: corrected(view, name) for name in view.names}
        shutil.rmtree(copied.store)
        made = make_scenes(tmp_path / "new", teacher_seed=1)
        shutil.copytree(made.store, copied.store)
        for path, body in (("answer", {"item": drawn_set["upcoming"][0], "verdict": "right"}), ("undo", {})):
            reply = client.post(f"/api/questions/{path}", {"audit": drawn_set["id"], **body})
            assert reply.status == 409
            assert "made anew since this server opened it" in reply.json()["message"]
    with client_of(Session(copied.store, reviewer="kim")) as client:
        found = client.get("/api/questions").json()
        assert found == {"current": None, "void": "void: the store has changed since this set of questions was drawn"}
        assert drawn(client)["price"][-1]["answers"] == 0
    view = StoreView(copied.store)
    assert all(np.array_equal(corrected(view, name), before[name]) for name in view.names)
    assert any((labels != UNTOUCHED).any() for labels in before.values())
    assert copied.store.with_name(f"raw.questions-{drawn_set['id']}.json").is_file()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"budget": 0}, "budget 0: expected 1 to 20000"),
        ({"budget": "many"}, "budget: expected int"),
        ({"classes": ["roda"]}, "unknown class 'roda'"),
        ({"classes": "road"}, "classes: expected list"),
        ({"classes": ["train"]}, "no label is of these classes"),
    ],
)
def test_a_wrong_plan_is_reported_in_one_line_and_nothing_is_drawn(
    client: AsgiClient, copied: Scenes, body: dict[str, Any], said: str
) -> None:
    assert_refused(client.post("/api/questions", body), said)
    assert not Questions.path_of(copied.store).exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"verdict": "roda"}, "unknown class 'roda'"),
        ({"item": 99}, "item 99: this set of questions has 12"),
        ({"item": "0"}, "item: expected int"),
        ({"audit": "f" * 16}, "another set of questions was drawn since"),
    ],
)
def test_a_wrong_answer_is_reported_in_one_line_and_counts_for_nothing(
    client: AsgiClient, copied: Scenes, body: dict[str, Any], said: str
) -> None:
    drawn_set = drawn(client)
    given = {"audit": drawn_set["id"], "item": 0, "verdict": "right", **body}
    assert_refused(client.post("/api/questions/answer", given), said)
    assert not any(item["verdict"] for item in items_of(copied))
    assert review_of(StoreView(copied.store)).marks() == []
    assert client.get("/api/questions/item", audit="0", item=0).status == 404
