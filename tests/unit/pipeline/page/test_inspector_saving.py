"""Where the page saves, and a disk that takes nothing: page and terminal are told why, and what was there stays."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import NoSpaceError
from hmsa_core.labels import ThresholdPolicy
from pipeline.review.questions import Questions
from pipeline.review.session import Session
from tests.support.asgi import AsgiClient, Reply, client_of
from tests.support.label_scenes import Scenes

FILES = {"review": "raw.review.jsonl", "policy": "raw.policy.json", "audit": "raw.audit.json"}


def post(client: AsgiClient, what: str, name: str) -> Reply:
    bodies = {
        "review": {"name": name, "verdict": "flag"},
        "policy": {"threshold": "0.9"},
        "audit": {"threshold": "0.9", "per_class": 1, "classes": ["road"]},
    }
    return client.post(f"/api/{what}", bodies[what])


def fail(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let no new file be made, as in a folder of somebody else's or on a full disk."""

    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(atomic.ops, "open_new", refuse)


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize(
    ("code", "kind", "said", "hint"),
    [
        (errno.EACCES, "SaveError", "Permission denied", "write in"),
        (errno.EROFS, "SaveError", "Read-only", "mount"),
        (errno.ENOSPC, "NoSpaceError", "No space left", "free space"),
        (errno.EDQUOT, "NoSpaceError", "quota", "free space"),
    ],
)
def test_what_cannot_be_saved_is_one_clear_line(
    client: AsgiClient, copied: Scenes, monkeypatch, caplog, what: str, code: int, kind: str, said: str, hint: str
) -> None:
    before = sorted(p.name for p in copied.store.parent.iterdir())
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        fail(patch, code)
        reply = post(client, what, copied.names[0])
    assert reply.status == 507
    answer = reply.json()
    assert answer["error"] == kind
    path = copied.store.with_name(FILES[what])
    assert answer["message"].startswith(f"{path}: not saved: ")
    assert said in answer["message"]
    assert ".tmp" not in answer["message"]
    assert hint in answer["hint"]
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert answer["message"] in caplog.text
    left = sorted(p.name for p in copied.store.parent.iterdir())
    assert {name for name in left if name not in before} <= {f".{FILES[what]}.lock"}
    assert post(client, what, copied.names[0]).status == 200  # once the disk is fixed


def test_an_answer_to_a_question_that_cannot_be_saved_leaves_no_label(copied: Scenes, monkeypatch) -> None:
    def refuse(_: Questions, path: Path) -> None:  # the line in the review file still found room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    session = Session(copied.store, images=copied.images, reviewer="kim")
    drawn = session.draw_questions(budget=8, classes=[], after="")
    drawn = session.answer_question(drawn["id"], drawn["upcoming"][0], "mixed")
    before = session.review.marks()
    with monkeypatch.context() as patch:
        patch.setattr(Questions, "save", refuse)
        with pytest.raises(NoSpaceError, match="not saved"):
            session.answer_question(drawn["id"], drawn["upcoming"][0], "mixed")
    assert session.review.marks() == before
    again = session.answer_question(drawn["id"], drawn["upcoming"][0], "mixed")
    assert again["price"][-1]["ignored"] > drawn["price"][-1]["ignored"], "its pixels are new"
    session.undo_question(drawn["id"])
    assert session.review.marks() == before


def test_a_policy_that_cannot_be_saved_may_go_elsewhere(copied: Scenes) -> None:
    (copied.store.parent / "file").touch()
    session = Session(copied.store, save_to=copied.store.parent / "file" / "policy.json")
    with client_of(session) as client:
        reply = post(client, "policy", "")
    assert reply.status == 507
    assert "--save-policy" in reply.json()["hint"]


def test_a_lock_file_of_somebody_else_is_named(client: AsgiClient, copied: Scenes, monkeypatch) -> None:
    lock = copied.store.with_name(".raw.review.jsonl.lock")
    lock.touch()

    def refuse(path: object, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("hmsa_core.io.locks.os.open", refuse)  # root, as whom tests may run, can open all of them
    reply = post(client, "review", copied.names[0])
    monkeypatch.undo()
    assert reply.status == 507
    assert str(lock) in reply.json()["message"]


def test_an_answer_that_could_not_be_written_does_not_count(client: AsgiClient, copied, monkeypatch) -> None:
    drawn = client.post("/api/audit", {"threshold": "0.9", "per_class": 4, "classes": ["road"]}).json()
    answer = {"audit": drawn["id"], "item": 0, "verdict": "wrong"}
    with monkeypatch.context() as patch:
        fail(patch, errno.ENOSPC)
        assert client.post("/api/audit/answer", answer).status == 507
        other = client.post("/api/audit", {"threshold": "0.8", "per_class": 2, "classes": ["road"]})
        assert other.status == 507
    current = client.get("/api/audit").json()["current"]
    assert (current["id"], current["results"][0]["wrong"]) == (drawn["id"], 0)
    assert client.post("/api/audit/answer", answer).json()["results"][0]["wrong"] == 1


def test_a_file_that_cannot_be_read_is_an_answer_too(client: AsgiClient, copied: Scenes, caplog) -> None:
    copied.store.with_name("raw.review.jsonl").mkdir()
    reply = client.get("/api/review")
    assert reply.status == 500
    assert "raw.review.jsonl" in reply.json()["message"]
    assert len(caplog.records) == 1


def test_a_page_started_from_a_saved_policy_saves_next_to_it(copied: Scenes) -> None:
    saved, _ = Session(copied.store).save_policy(Session(copied.store).thresholds("0.8"))
    before = saved.read_bytes()
    again = Session(copied.store, policy=saved)
    assert again.thresholds().codes.tolist() == [80] * 19
    second, _ = again.save_policy(again.thresholds("0.9"))
    assert (second.name, saved.read_bytes()) == ("raw.policy-2.json", before)
    again.save_policy(again.thresholds("0.95"))  # one page, one file
    third, _ = Session(copied.store, policy=saved).save_policy(again.thresholds("0.8"))
    assert third.name == "raw.policy-3.json"
    assert ThresholdPolicy.load(second).codes().tolist() == [140] * 19
