"""What scripts and the page get from the server."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_core.io.errors import CheckpointError, ConfigError, InputError
from hmsa_core.labels import LabelStore, LabelStoreWriter, ThresholdPolicy
from hmsa_core.labels.review import ReviewFile
from hmsa_core.labels.store.shards import ShardWriter, plan_shards
from hmsa_core.labels.store.writer import write_manifest
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from pipeline.review import weights as weights_module
from pipeline.review.session import Session
from pipeline.review.weights import WeightJobs
from tests.support.asgi import AsgiClient, client_of
from tests.support.checkpoints import checkpoint
from tests.support.damage import flip
from tests.support.label_scenes import LINEAGE, Scenes

SCRIPT = "<script>alert(1)</script>"


def test_api_and_command_line_say_the_same(client: AsgiClient, copied: Scenes, inspect) -> None:
    said = inspect(copied.store, "--threshold", "0.9", "--cut", "rider:0.6")
    found = client.get("/api/stats", threshold="0.9", cut="rider:0.6").json()
    assert found["kept"] == said["kept"]
    assert [row["kept"] for row in found["classes"]] == [row["kept"] for row in said["classes"]]
    listed = inspect(copied.store, "--threshold", "0.9", "--sort", "coverage", "--limit", "3")
    images = client.get("/api/images", threshold="0.9", sort="coverage", limit=3).json()["images"]
    assert [row["name"] for row in images] == [row["name"] for row in listed["most_affected"]]


def test_without_a_threshold_the_policy_speaks(client: AsgiClient, copied: Scenes) -> None:
    stats = client.get("/api/stats").json()
    codes = ThresholdPolicy.load(copied.policy).codes().tolist()
    assert [row["code"] for row in stats["classes"]] == codes
    assert stats["precision_source"] == "expected"


@pytest.mark.parametrize(
    ("given", "near"),
    [("0.9051", ["0.905", "0.906"]), ("0.123", ["0.12", "0.13"]), ("1", ["0.99999"]), ("-1", ["0.00"])],
)
def test_an_off_grid_threshold_is_refused_with_its_neighbours(client: AsgiClient, given: str, near: list[str]) -> None:
    for path in ("/api/stats", "/api/images"):
        reply = client.get(path, threshold=given)
        assert reply.status == 400
        assert reply.json()["neighbours"] == near
    page = client.get("/", threshold=given, image="x")
    assert page.status == 400
    assert all(f"threshold={edge}" in page.text for edge in near)
    assert client.get("/", threshold="0.9", cut=f"rider:{given}").status == 400
    assert client.get("/", threshold="0.9", compare=given).status == 400
    assert client.post("/api/policy", {"threshold": given}).status == 400


@pytest.mark.parametrize(
    ("question", "status"),
    [
        *((f"images?{bad}", 400) for bad in ("limit=-1", "limit=1001", "limit=%C2%B2", "sort=size")),
        ("stats?threshold=x", 400),
        ("stats?class=nobody", 404),
        ("image", 400),
        *((f"{path}?name=x", 404) for path in ("image", "plane", "weights")),
        ("nothing", 404),
    ],
)
def test_a_bad_question_gets_one_clear_line(client: AsgiClient, question: str, status: int) -> None:
    reply = client.get(f"/api/{question}")
    assert reply.status == status
    assert "\n" not in reply.json()["message"]


def test_planes_are_the_stores_own_bytes(client: AsgiClient, copied: Scenes) -> None:
    store = LabelStore.open(copied.store)
    for name in copied.names:
        for plane, expected in zip(("label", "confidence"), store.read(name), strict=True):
            reply = client.get("/api/plane", name=name, plane=plane)
            assert np.array_equal(reply.picture(), expected)
            assert reply.body[24:26] == b"\x08\x00"  # 8 bit grey: what the page's decoder reads


def test_a_picture_a_thumbnail_and_a_human_label_are_served(client: AsgiClient, copied: Scenes) -> None:
    name = copied.names[0]
    picture = client.get("/api/picture", name=name)
    assert (picture.status, picture.headers["content-type"]) == (200, "image/jpeg")
    assert client.get("/api/thumb", name=name).picture().shape[1] == 288
    human = client.get("/api/plane", name=name, plane="human").picture()
    assert set(np.unique(human)) <= {*range(19), 255}


def test_a_tiff_that_is_called_a_jpeg_is_refused(client: AsgiClient, copied: Scenes, session: Session) -> None:
    name = copied.names[1]
    path = copied.images / session.view.info(name)["image_path"]
    image = cv2.imread(str(path))
    cv2.imwrite(str(path.with_suffix(".tif")), image)
    path.with_suffix(".tif").rename(path)
    reply = client.get("/api/picture", name=name)
    assert reply.status == 404  # a TIFF named .jpg is refused by name, not guessed
    assert "tif" in reply.json()["message"].lower()


def test_one_damaged_shard_is_named_and_the_others_are_served(copied: Scenes) -> None:
    first = sorted(copied.store.rglob("shard-*.parquet"))[0]
    flip(first)
    session = Session(copied.store, images=copied.images)
    with client_of(session) as client:
        replies = {n: client.get("/api/plane", name=n, plane=p) for n in copied.names for p in ("label", "confidence")}
        bad = {name: reply for name, reply in replies.items() if reply.status != 200}
        assert 1 <= len(bad) <= 3
        for reply in bad.values():
            assert reply.status == 409
            assert reply.json()["error"] == "StoreError"
            assert first.name in reply.json()["message"]
        assert client.get("/api/stats", threshold="0.9").status == 200


def test_a_torn_shard_is_reported_at_once(copied: Scenes) -> None:
    first = sorted(copied.store.rglob("shard-00000*.parquet"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    session = Session(copied.store)
    problems = session.describe()["problems"]
    assert len(problems) == 1
    assert first.name in problems[0]
    assert not session.view.is_served(copied.names[0])


def test_saving_a_policy_writes_what_training_reads(client: AsgiClient, copied: Scenes) -> None:
    measured = copied.policy.read_bytes()
    reply = client.post("/api/policy", {"threshold": "0.8", "cut": ["rider:0.95", "train:withheld"]})
    assert reply.status == 200
    path = Path(reply.json()["file"])
    assert path == copied.store.with_name("raw.policy.json")
    policy = ThresholdPolicy.load(path)
    assert policy.digest == reply.json()["digest"]
    assert (policy.codes()[0], policy.codes()[12], policy.codes()[16]) == (80, 140, 256)
    policy.check(LINEAGE, policy.classes)
    other = {**LINEAGE, "teacher": "0" * 64}
    with pytest.raises(ConfigError, match="teacher"):
        policy.check(other, policy.classes)
    assert copied.policy.read_bytes() == measured


def test_marks_go_round_and_are_lifted(client: AsgiClient, copied: Scenes) -> None:
    name = copied.names[2]
    reply = client.post(
        "/api/review", {"name": name, "verdict": "flag", "region": [[1, 1], [9, 1], [9, 9]], "note": SCRIPT}
    )
    assert reply.json()["status"] == "flag"
    (entry,) = reply.json()["entries"]
    assert (entry["note"], entry["reviewer"]) == (SCRIPT, "tester")
    assert client.get("/api/images", review="flag").json()["total"] == 1
    assert client.get("/api/image", name=name).json()["reviews"] == [entry]
    assert client.post("/api/review", {"name": name, "withdraws": entry["id"]}).json() == {"entries": [], "status": ""}
    assert ReviewFile(copied.store).marks() == []


def test_a_mark_that_means_nothing_is_refused(client: AsgiClient, copied: Scenes) -> None:
    name, off = copied.names[0], [[9000, 9000], [9009, 9000], [9009, 9009]]
    regions = (off, [[-9, -9], [-2, -9], [-2, -2]], [[0, 0]], "all")
    bodies: list[object] = [{"verdict": "flag"}, *({"name": bad, "verdict": "flag"} for bad in ("nobody", 3)), {}, []]
    bodies += [{"name": name, "verdict": "burn"}, *({"name": name, "verdict": "flag", "region": r} for r in regions)]
    bodies += [{"name": name, "verdict": "flag", "note": note} for note in ("x" * 2001, "half \ud83d")]
    for body in bodies:
        assert client.post("/api/review", body).status in (400, 404), body
    assert not ReviewFile(copied.store).path.exists()


def test_an_audit_by_script_becomes_the_source_of_precision(client: AsgiClient, copied: Scenes) -> None:
    audit = client.post("/api/audit", {"threshold": "0.9", "per_class": 6, "seed": 2, "classes": ["road"]}).json()
    assert len(audit["items"]) == 6
    for number in range(6):
        item = client.get("/api/audit/item", audit=audit["id"], item=number).json()
        assert {"x", "y", "code", "name"} <= set(item)
        reply = client.post(
            "/api/audit/answer", {"audit": audit["id"], "item": number, "verdict": "right" if number else "wrong"}
        )
    assert reply.json()["results"][0]["precision"] == pytest.approx(5 / 6)
    road = client.get("/api/stats", threshold="0.9").json()["classes"][0]
    assert (road["precision_source"], road["precision"]) == ("audit", pytest.approx(5 / 6, abs=1e-5))
    assert road["expected_precision"] is not None
    saved = client.post("/api/policy", {"threshold": "0.9"}).json()
    assert ThresholdPolicy.load(saved["file"]).evidence["audit"]["id"] == audit["id"]


def test_class_and_file_names_with_markup_travel_as_data(tmp_path: Path, scenes: Scenes) -> None:
    table = replace(cityscapes(), classes=(SCRIPT, *cityscapes().classes[1:]))
    name = '"><img src=x onerror=alert(1)>'
    with LabelStoreWriter(tmp_path / "raw", {**LINEAGE}, classes=table) as writer:
        writer.add(name, np.zeros((8, 8), np.uint8), np.full((8, 8), 0.95, np.float32), city=SCRIPT)
    session = Session(tmp_path / "raw")
    with client_of(session) as client:
        for path in ("/api/store", "/api/images", "/api/stats"):
            reply = client.get(path)
            assert reply.headers["content-type"] == "application/json"
        assert client.get("/api/plane", name=name).status == 200
        page = client.get("/", image=name, threshold=SCRIPT)
        assert page.status == 400
        assert SCRIPT not in page.text
        assert SCRIPT not in client.get("/", image=name, q=SCRIPT).text


def thresholded(folder: Path, scenes: Scenes, threshold: str = "") -> Path:
    """A final store as `pseudo-label` makes it, from the policy's labels or those of one threshold."""
    raw, policy = LabelStore.open(scenes.store), ThresholdPolicy.load(scenes.policy)
    if threshold:
        policy = from_threshold(threshold, raw.classes)
    plans = plan_shards((), [(name, "") for name in raw.names()], 3, "k")
    for plan in plans:
        writer = ShardWriter(folder, plan, classes=raw.classes, kind="thresholded")
        for name in plan.names:
            label, code = raw.read(name)
            final = policy.apply(label, code)
            writer.add_coded(name, final, code, source=(final != 255).astype(np.uint8))
        writer.close()
    write_manifest(folder, plans, LINEAGE, classes=raw.classes, policy={"digest": policy.digest})
    return folder


def test_a_thresholded_store_shows_what_is_in_it_and_takes_no_threshold(
    tmp_path: Path, scenes: Scenes, inspect, said
) -> None:
    final = thresholded(tmp_path / "final", scenes)
    session = Session(final)
    kept = sum(int((LabelStore.open(final).read(n)[0] != 255).sum()) for n in scenes.names)
    with client_of(session) as client:
        assert client.get("/api/stats").json()["kept"] == kept
        assert client.get("/api/stats", threshold="0.9").status == 400
        assert client.post("/api/policy", {}, {"X-Autolabel-Token": "x"}).status == 403
        described = client.get("/api/store").json()
        assert (described["kind"], described["start"]) == ("thresholded", 0)
    assert inspect(final)["kept"] == kept
    assert "already thresholded" in said("inspect", final, "--threshold", "0.9", status=2).err


def test_a_final_store_claims_no_calibrated_precision_and_marks_the_raw_one(copied: Scenes, inspect, said) -> None:
    final = thresholded(copied.store.with_name("final"), copied)
    session = Session(final, policy=copied.policy, reviewer="kim")
    assert session.describe()["kind"] == "thresholded"
    session.review.add(copied.names[0], "flag")
    assert [mark.name for mark in ReviewFile(copied.store).marks()] == [copied.names[0]]
    assert not final.with_name("final.review.jsonl").exists()
    for option in (["--policy", str(copied.policy)], ["--cut", "road:0.9"]):
        assert "already thresholded" in said("inspect", final, *option, status=2).err
    found = inspect(final)
    assert [row["precision"] for row in (found, *found["classes"])] == [None] * (1 + len(found["classes"]))
    assert "No precision: these labels have their thresholds already" in said("inspect", final).out


def test_what_a_browser_keeps_is_asked_for_by_the_version_of_the_labels(client: AsgiClient, copied: Scenes) -> None:
    name, version = copied.names[0], client.get("/api/store").json()["version"]
    for path in ("plane", "mini", "thumb", "picture"):
        kept = client.get(f"/api/{path}", name=name, v=version)
        assert (kept.status, kept.headers["cache-control"]) == (200, "private, max-age=600")
        assert client.get(f"/api/{path}", name=name).headers["cache-control"] == "no-store"
        old = client.get(f"/api/{path}", name=name, v="0123")
        assert (old.status, "load the page again" in old.json()["hint"]) == (409, True)


def test_a_store_that_was_made_anew_is_reported_and_never_mixed(copied: Scenes) -> None:
    final = thresholded(copied.store.with_name("final"), copied)
    session = Session(final)
    with client_of(session) as client:
        assert client.get("/api/plane", name=copied.names[0]).status == 200
        shutil.copytree(final, again := final.with_name("again"))
        shutil.rmtree(final)
        assert client.get("/api/plane", name=copied.names[0]).status == 409, "it is being made anew"
        again.rename(final)
        assert client.get("/api/plane", name=copied.names[0]).status == 200, "the same labels again"
        shutil.rmtree(final)
        thresholded(final, copied, "0.5")
        for name in copied.names:
            answer = client.get("/api/plane", name=name)
            assert (answer.status, answer.json()["error"]) == (409, "StaleError")
            assert "autolabel serve" in answer.json()["hint"]


def test_scale_weights_come_from_a_process_of_their_own(session: Session, tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "predict.py"
    script.write_text(
        "import sys, cv2, numpy as np, pathlib\nout = pathlib.Path(sys.argv[2]); out.mkdir(parents=True)\n"
        "for s in ('0.5', '1', '2'):\n    cv2.imwrite(str(out / f'x_weight_{s}x.png'), np.full((4, 4), 85, np.uint8))\n"
    )
    with pytest.raises(CheckpointError, match="no checkpoint"):
        WeightJobs(session.view, tmp_path)
    jobs = WeightJobs(session.view, checkpoint(tmp_path / "model"))
    monkeypatch.setattr(jobs, "_command", lambda path, out: [sys.executable, str(script), str(path), str(out)])
    name = session.view.names[0]
    assert jobs.start(name)["state"] == "running"
    for _ in range(100):
        state = jobs.state(name)
        if state["state"] == "done":
            break
        time.sleep(0.1)
    assert state["scales"] == ["0.5", "1", "2"]
    assert jobs.plane(name, "0.5").startswith(b"\x89PNG")
    with pytest.raises(InputError):
        jobs.plane(name, "../../x")
    folder = Path(jobs._folder.name)
    jobs.close()
    assert not folder.exists()


def test_a_failed_computation_says_why(session: Session, tmp_path: Path, monkeypatch) -> None:
    jobs = WeightJobs(session.view, checkpoint(tmp_path / "model"))
    monkeypatch.setattr(weights_module.sys, "executable", "/bin/false")
    name = session.view.names[0]
    with contextlib.suppress(InputError):  # it may have failed already
        jobs.start(name)
    for _ in range(200):
        if "error" in jobs._states[name]:
            break
        time.sleep(0.05)
    with pytest.raises(InputError, match="ended without"):
        jobs.state(name)
    jobs.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("policy", {"cut": [bad]}) for bad in (1, None, ["rider:0.9"])),
        ("audit", {"cut": [1]}),
        *(("audit", {"classes": bad}) for bad in ([1], [["road"]], "road")),
        *(
            ("review", {"verdict": "flag", "region": bad})
            for bad in ([[10**400, 1], [2, 2], [3, 1]], [["1", []], [2, 2], [3, 1]], {})
        ),
    ],
)
def test_a_value_of_another_kind_is_the_callers_mistake(
    client: AsgiClient, copied: Scenes, path: str, body: dict[str, object]
) -> None:
    before = sorted(copied.store.parent.iterdir())
    reply = client.post(f"/api/{path}", {"name": copied.names[0], **body})
    assert (reply.status, "\n" in reply.json()["message"]) == (400, False)
    assert [p for p in sorted(copied.store.parent.iterdir()) if not p.name.endswith(".lock")] == before


def test_pictures_that_only_share_a_name_are_reported_and_not_compared(tmp_path: Path) -> None:
    """Two drives that both count from 000001."""
    for drive in "ab":
        with LabelStoreWriter(tmp_path / drive, {**LINEAGE}) as writer:
            pictures = {"000001": drive * 64, "000002": "c" * 64, "000003": "" if drive == "a" else "d" * 64}
            for name, picture in pictures.items():
                writer.add(name, np.zeros((8, 8), np.uint8), np.full((8, 8), 0.95, np.float32), image_sha256=picture)
    session = Session(tmp_path / "a", other=tmp_path / "b")
    (problem,) = session.describe()["problems"]
    assert all(words in problem for words in (str(tmp_path / "b"), "1 of 3 images cannot be compared", "000001"))
    with client_of(session) as client:
        answers = {name: client.get("/api/plane", name=name, side="b") for name in session.view.names}
        assert [answer.status for answer in answers.values()] == [404, 200, 200]
        assert "another picture" in answers["000001"].json()["message"]
        assert client.get("/api/plane", name="000001").status == 200
    assert Session(tmp_path / "a", other=tmp_path / "a").describe()["problems"] == []
