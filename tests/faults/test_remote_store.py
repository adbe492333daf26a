"""Labelling from and to an object store: the bytes of a local store, whatever is killed, cut or started twice."""

from __future__ import annotations

import json
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from PIL import Image

from hmsa_core.inference import label
from hmsa_core.inference.folder.label_folder import label_images
from hmsa_core.inference.teachers.run_options import teacher_options
from hmsa_core.io import remote
from hmsa_core.io.errors import ConfigError, InputError, LockedError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.store.remote_store import RemoteStore
from hmsa_core.labels.store.shards import ShardPlan, ShardWriter
from pipeline.cli.main import main
from tests.support import s3
from tests.support.inference import CPU, noise_image, save_model
from tests.support.writers import start

pytestmark = pytest.mark.long

URL, OUT = "s3://lab/images", "s3://lab/store"
SETTING = {"scales": (1.0,), "flip": False, "images_per_shard": 2, "runtime": CPU}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, a model, and the store that labelling them on a local disk gives."""
    root = tmp_path_factory.mktemp("own")
    (root / "images" / "b").mkdir(parents=True)
    for i in range(10):
        Image.fromarray(noise_image(i, 24, 32)).save(root / "images" / ("b" if i % 2 else "") / f"{i}.png")
    save_model(root / "model")
    label(root / "images", root / "model", root / "store", **SETTING)
    return root


@pytest.fixture
def served(made: Path, bucket: s3.Server) -> s3.Server:
    for path in (made / "images").rglob("*.png"):
        bucket.put("lab", f"images/{path.relative_to(made / 'images')}", path.read_bytes())
    return bucket


def fresh_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("AUTOLABEL_CACHE", str(tmp_path / name))


def test_a_store_on_an_object_store_has_the_bytes_of_a_local_one(
    made: Path, served: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = label(URL, made / "model", OUT, **SETTING)
    assert served.objects("lab", "store/") == s3.files_of(made / "store")
    assert store.verify() == []
    assert store.names() == LabelStore.open(made / "store").names()
    assert served.objects("lab", "store.work/parts/") == {}
    fresh_machine(monkeypatch, tmp_path, "reader")
    assert main(["verify", OUT]) == 0
    assert "s3://lab/store: 10 images in 5 shards: whole" in capsys.readouterr().out
    fresh_machine(monkeypatch, tmp_path, "looker")
    assert main(["inspect", OUT, "--threshold", "0.9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == OUT
    assert not any("shard-" in str(p) and p.exists() for p in (tmp_path / "looker" / "trees").rglob("*"))
    assert main(["diff", OUT, str(made / "store"), "--threshold", "0.9"]) == 0
    assert main(["export", OUT, str(tmp_path / "masks"), "--format", "masks"]) == 0
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 10


def test_new_images_are_appended_by_another_machine(
    made: Path, served: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    for path in sorted((made / "images").rglob("*.png"))[:6]:
        images.mkdir(exist_ok=True)
        (images / path.name).write_bytes(path.read_bytes())
        served.put("lab", f"few/images/{path.name}", path.read_bytes())
    for machine, more in (("one", []), ("two", [20, 21, 22])):
        fresh_machine(monkeypatch, tmp_path, machine)
        if more:
            assert len(LabelStore.open(OUT)) == 6  # who has read a store may go on with it
        for i in more:
            Image.fromarray(noise_image(i, 24, 32)).save(images / f"{i}.png")
            served.put("lab", f"few/images/{i}.png", (images / f"{i}.png").read_bytes())
        label(images, made / "model", tmp_path / "local", **SETTING)
        label("s3://lab/few/images", made / "model", OUT, **SETTING)
        assert served.objects("lab", "store/") == s3.files_of(tmp_path / "local")


@pytest.mark.fault
def test_ten_kills_lose_nothing_repeat_nothing_and_show_nothing_half_done(
    made: Path, served: s3.Server, tmp_path: Path
) -> None:
    last, kills, puts = 0, 0, 0
    process: BaseProcess | None = None

    def kill_at_the_next_step(method: str, _path: str) -> object:
        nonlocal puts, kills
        if method == "PUT" and process is not None and kills < 10:
            puts += 1
            if puts > last:  # later by a step at each kill
                kills += 1
                process.kill()
                return ("cut", "cut after")[kills % 2]
        return None

    served.fault = kill_at_the_next_step
    for run in range(12):
        puts, last = 0, 3 * run % 13
        process = start(made / "model", tmp_path / f"machine-{run}")
        process.join()
        there = served.objects("lab", "store/")
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert "manifest.json" not in there or there == s3.files_of(made / "store")
    assert kills == 10
    assert process is not None
    assert process.exitcode == 0
    assert there == s3.files_of(made / "store")


@pytest.mark.fault
def test_two_writers_at_once_make_one_store(made: Path, served: s3.Server, tmp_path: Path) -> None:
    writers = [start(made / "model", tmp_path / name) for name in ("one", "two")]
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert served.objects("lab", "store/") == s3.files_of(made / "store")


def test_the_second_writer_of_a_shard_with_other_bytes_loses_and_goes_on_with_the_first_ones(
    bucket: s3.Server, tmp_path: Path
) -> None:
    import numpy as np

    plan, results = ShardPlan(0, ("a",), ("",), "key"), []
    for number, machine in enumerate(("one", "two")):
        with ShardWriter(tmp_path / machine / "store", plan) as shard:
            shard.add("a", np.full((4, 4), number, np.uint8), np.full((4, 4), 0.5, np.float32))
        results.append((tmp_path / machine / "store" / "receipts" / "shard-00000.json").read_bytes())
    one, two = (RemoteStore(OUT, tmp_path / machine) for machine in ("one", "two"))
    assert one.send(plan)
    assert not two.send(plan)
    two.collect([plan])
    assert (tmp_path / "two" / "store" / "receipts" / "shard-00000.json").read_bytes() == results[0]


@pytest.mark.fault
def test_labelling_goes_through_errors_cuts_and_slow_answers(made: Path, served: s3.Server) -> None:
    faults = [
        s3.error("500 Internal Server Error", "InternalError"),
        "cut",
        "cut after",
        0.2,
        s3.error("503 x", "SlowDown"),
    ]
    seen = 0

    def every_fourth(_method: str, _path: str) -> object:
        nonlocal seen
        seen += 1
        return faults[seen // 4 % len(faults)] if seen % 4 == 0 else None

    served.fault = every_fourth
    label(URL, made / "model", OUT, **SETTING)
    served.fault = lambda _method, _path: None
    assert served.objects("lab", "store/") == s3.files_of(made / "store")


def test_credentials_that_expire_end_the_run_in_one_line_and_it_goes_on_with_new_ones(
    made: Path, served: s3.Server
) -> None:
    def expired(method: str, path: str) -> object:
        sent = sum(m == "PUT" and "/receipts/" in p for m, p in served.requests)
        return s3.error("400 Bad Request", "ExpiredToken") if sent > 2 else None

    served.fault = expired
    with pytest.raises(InputError, match="the credentials have expired"):
        label(URL, made / "model", OUT, **SETTING)
    served.fault = lambda _method, _path: None
    assert served.objects("lab", "store/") == {}
    options = teacher_options(made / "model", None, (1.0,), False)
    counts = label_images(URL, OUT, options, CPU, images_per_shard=2)
    assert counts.resumed >= 2 * 2
    assert served.objects("lab", "store/") == s3.files_of(made / "store")


def test_an_image_that_changes_under_the_run_is_left_out_and_named(
    made: Path, served: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []

    def run(spec, stop):
        from hmsa_core.inference.folder import infer_job
        from tests.support.inference import job_context

        (remote.local_place(URL) / "4.png").readlink().unlink()  # dropped from the cache
        Image.fromarray(noise_image(50, 24, 32)).save(tmp_path / "4.png")
        served.put("lab", "images/4.png", (tmp_path / "4.png").read_bytes())
        infer_job.run(spec, job_context(spec.work, stop=stop))

    options = teacher_options(made / "model", None, (1.0,), False)
    counts = label_images(URL, OUT, options, CPU, images_per_shard=2, tell=messages.append, run=run)
    assert (counts.images, counts.left_out) == (9, 1)
    assert "4: changed: s3://lab/images/4.png: has changed since it was listed" in messages[-1]
    assert LabelStore.open(OUT).verify() == []
    fresh_machine(monkeypatch, tmp_path, "two")
    for picture, reason in (
        (tmp_path / "4.png", "has no label in this store, it was replaced while it was labelled"),
        (made / "images" / "4.png", "it can be read now, but its shard is finished and cannot be made again"),
    ):
        messages.clear()
        served.put("lab", "images/4.png", picture.read_bytes())
        counts = label_images(URL, OUT, options, CPU, images_per_shard=2, tell=messages.append)
        assert (counts.images, counts.resumed, counts.left_out) == (0, 9, 1)
        assert reason in messages[-1]


def test_other_options_or_a_foreign_store_are_refused(
    made: Path, served: s3.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.put("lab", "bad/images/a.png", b"no picture")
    with pytest.raises(InputError, match="none of the 1 image files can be used"):
        label("s3://lab/bad/images", made / "model", OUT, **{**SETTING, "images_per_shard": 3})
    label(URL, made / "model", OUT, **SETTING)
    with pytest.raises(ConfigError, match="begun with --images-per-shard 2"):
        label(URL, made / "model", OUT, **{**SETTING, "images_per_shard": 3})
    served.put("lab", "died.work/options.json", served.objects("lab", "store.work/")["options.json"])
    with pytest.raises(ConfigError, match="begun with --images-per-shard 2"):
        label(URL, made / "model", "s3://lab/died", **{**SETTING, "images_per_shard": 3})
    served.put("lab", "store.work/options.json", b"{")
    assert main(["label", "--images", URL, "--checkpoint", str(made / "model"), "--out", OUT]) == 4
    assert "error: s3://lab/store.work/options.json: not valid JSON" in capsys.readouterr().err
    for key in served.objects("lab", "store.work/"):
        served.remove("lab", f"store.work/{key}")
    with pytest.raises(ConfigError, match="was not made here"):
        label(URL, made / "model", OUT, **SETTING)


def test_a_plan_of_another_writer_that_came_first_ends_this_one(bucket: s3.Server, tmp_path: Path) -> None:
    for machine, text in (("one", b"{}"), ("two", b"{ }")):
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "plan.json").write_bytes(text)
    late, first = (RemoteStore(OUT, tmp_path / machine) for machine in ("two", "one"))
    found = late._list
    late._list = lambda below: found(below) - {"plan-00000.json"}  # listed before the other one put it
    first.plan()
    with pytest.raises(LockedError, match="another writer has just planned"):
        late.plan()
    first.begin({"threads": 1})
    with pytest.raises(LockedError, match="begun it with other options"):
        late.begin({"threads": 2})


def test_a_damaged_object_of_a_store_is_found(made: Path, served: s3.Server) -> None:
    label(URL, made / "model", OUT, **SETTING)
    data = bytearray(served.objects("lab", "store/")["shard-00001.parquet"])
    data[len(data) // 2] ^= 1
    served.put("lab", "store/shard-00001.parquet", bytes(data))
    assert [p.file for p in LabelStore.open(OUT).verify()] == ["shard-00001.parquet"]


def test_a_checkpoint_at_an_address_labels_alike(made: Path, served: s3.Server) -> None:
    for path in (made / "model").iterdir():
        served.put("lab", f"models/one/{path.name}", path.read_bytes())
    label(URL, "s3://lab/models/one", OUT, **SETTING)
    assert served.objects("lab", "store/") == s3.files_of(made / "store")
