"""Ray as engine: the bytes of one process, whatever is killed; clear words where there is no Ray."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from hmsa_core.data import prepare
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.inference import label
from hmsa_core.inference.folder.label_folder import LabelledCounts, label_images
from hmsa_core.inference.teachers.run_options import teacher_options
from hmsa_core.io import engine, remote
from hmsa_core.io.engine import HERE, Engine
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.spec import runtime_of
from tests.support import s3
from tests.support.inference import CPU, infer_spec, noise_image, save_model
from tests.support.jobs import REPO
from tests.support.training import folder_bytes
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]

IMAGES, MANY, SHARD = 16, 80, 2
FOUR = CPU.model_copy(update={"ranks": 4})
CAMVID = Path(os.environ.get("AUTOLABEL_CAMVID", REPO.parent / "shared" / "camvid"))


def write_images(folder: Path, count: int) -> None:
    """The first pictures of CamVid, made small, where it lies next to the checkout; else noise."""
    folder.mkdir()
    found = sorted(path for path in CAMVID.rglob("*.png") if path.parent.name in ("701_StillsRaw_full", "images"))
    for i in range(count):
        picture = Image.open(found[i]).resize((96, 72)) if found else Image.fromarray(noise_image(i, 72, 96))
        picture.convert("RGB").save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a model, and the store that one process makes."""
    root = tmp_path_factory.mktemp("own")
    write_images(root / "images", IMAGES)
    save_model(root / "model")
    label(root / "images", root / "model", root / "store", scales=(0.5, 1.0), images_per_shard=SHARD, runtime=CPU)
    return root


@pytest.fixture(scope="module")
def served(labelled: Path, _s3_server: s3.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    """The same images on an S3 server whose address the processes of Ray inherit."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": _s3_server.url, "RAY_worker_niceness": "0"}.items():
            patch.setenv(name, value)
        patch.setenv("AUTOLABEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        _s3_server.begin("lab")
        for path in (labelled / "images").iterdir():
            _s3_server.put("lab", f"images/{path.name}", path.read_bytes())
        yield _s3_server


@pytest.fixture(scope="module")
def four(served: s3.Server) -> Iterator[Engine]:
    """Ray on loopback with room for four workers; all tests of this module share it."""
    with engine._ray(Engine("ray", 4)):
        yield Engine("ray", 4)


def label_on_ray(labelled: Path, images: str | Path, out: str | Path) -> LabelledCounts:
    options = teacher_options(labelled / "model", None, (0.5, 1.0), None)
    return label_images(images, out, options, FOUR, images_per_shard=SHARD, engine="ray")


class Killer:
    """Kills processes that hold a shard, one after the other, and notes which shards were finished before."""

    def __init__(self, work: Path, kills: int, longest_s: float = 0.03) -> None:
        self.work, self.kills, self.killed, self.longest_s = work, kills, 0, longest_s
        self.finished: dict[str, int] = {}  # shard -> inode of its receipt
        self._random = random.Random(0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        victims: set[int] = set()
        while self.killed < self.kills and not self._done.wait(0.005):
            for path in sorted(self.work.rglob("shard-*.lock")):
                with suppress(ValueError, OSError):
                    pid = int(json.loads(path.read_text())["pid"])
                    if pid in victims or self.is_finished(path.stem) or b"ray::" not in cmdline(pid):
                        continue
                    time.sleep(self._random.uniform(0.0, self.longest_s))
                    self.note()
                    os.kill(pid, signal.SIGKILL)
                    victims.add(pid)
                    self.killed += 1
                    break

    def is_finished(self, stem: str) -> bool:
        return (self.work / "store" / "receipts" / f"{stem}.json").exists()

    def note(self) -> None:
        for path in (self.work / "store" / "receipts").glob("*.json"):
            self.finished.setdefault(path.stem, path.stat().st_ino)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_two_of_four_workers_are_killed_and_the_store_has_the_bytes_of_one_process(
    labelled: Path, four: Engine, tmp_path: Path
) -> None:
    with Killer(tmp_path / "store.work", 2) as killer:
        counts = label_on_ray(labelled, f"file://{labelled}/images", f"file://{tmp_path}/store")
    assert killer.killed == 2
    assert counts == LabelledCounts(IMAGES, 0, 0)
    assert folder_bytes(tmp_path / "store") == folder_bytes(labelled / "store")
    after = {p.stem: p.stat().st_ino for p in (tmp_path / "store.work" / "store" / "receipts").glob("*.json")}
    assert killer.finished.items() <= after.items(), "a finished shard was made again"


def test_the_same_from_and_to_an_object_store(labelled: Path, four: Engine, served: s3.Server) -> None:
    work = remote.local_place("s3://lab/store").with_name("store.work")
    with Killer(work, 2) as killer:
        counts = label_on_ray(labelled, "s3://lab/images", "s3://lab/store")
    assert killer.killed == 2
    assert counts == LabelledCounts(IMAGES, 0, 0)
    assert served.objects("lab", "store/") == s3.files_of(labelled / "store")
    sent = [path for method, path in served.requests if method == "PUT" and "/store.work/receipts/" in path]
    assert len(sent) == len(set(sent)) == IMAGES // SHARD, "each shard is handed in once"


@pytest.mark.slow
def test_thirty_kills_of_workers_and_of_the_server_lose_repeat_and_tear_nothing(
    labelled: Path, four: Engine, served: s3.Server, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", MANY)
    for path in (tmp_path / "images").iterdir():
        served.put("lab", f"more/images/{path.name}", path.read_bytes())
    one = {"scales": (0.5, 1.0), "images_per_shard": SHARD, "runtime": CPU}
    label(tmp_path / "images", labelled / "model", tmp_path / "store", **one)
    done = threading.Event()
    restarts = 0

    def restart() -> None:
        nonlocal restarts
        while restarts < 8 and not done.wait(4.0):
            served.restart(down_s=0.5)
            restarts += 1

    server = threading.Thread(target=restart)
    with Killer(remote.local_place("s3://lab/all").with_name("all.work"), 30, longest_s=1.0) as killer:
        server.start()
        counts = label_on_ray(labelled, "s3://lab/more/images", "s3://lab/all")
    done.set()
    server.join()
    sent = [path for method, path in served.requests if method == "PUT" and "/all.work/receipts/" in path]
    sys.stdout.write(f"{killer.killed} workers killed, {restarts} restarts of the server, {len(sent)} receipts put\n")
    assert (killer.killed, restarts) == (30, 8)
    assert counts == LabelledCounts(MANY, 0, 0)
    assert len(sent) - len(set(sent)) <= restarts, "again only where the answer was cut"
    assert served.objects("lab", "all/") == s3.files_of(tmp_path / "store")
    assert LabelStore.open("s3://lab/all").verify() == []


def test_index_final_labels_and_problems_are_those_of_one_process(labelled: Path, four: Engine, tmp_path: Path) -> None:
    rows = [{"id": i, "name": name, "colour": [i, i, i]} for i, name in enumerate("ab")]
    classes = {"classes": rows, "dataset": "x", "ignore_id": 255}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    source = SourceSpec(
        kind="folder",
        name="x",
        root=str(labelled),
        images="images",
        labels="",
        splits=("",),
        classes=str(tmp_path / "classes.json"),
    )
    raw = LabelStore.open(labelled / "store")
    recipe = Recipe(from_threshold(0.5, raw.classes))
    for name, by in (("one", HERE), ("four", four)):
        prepare.build(source, RolesSpec(), tmp_path / name / "index", engine=by)
        finalise(raw, recipe, tmp_path / name / "final", engine=by)
    made, same = folder_bytes(tmp_path / "four"), folder_bytes(tmp_path / "one")
    assert {name: data for name, data in made.items() if not name.endswith(".lock")} == {
        name: data for name, data in same.items() if not name.endswith(".lock")
    }
    assert made
    for file in ("shard-00001.parquet", "receipts/shard-00002.json"):
        (tmp_path / "four" / "final" / file).write_bytes(b"torn")
    final = LabelStore.open(tmp_path / "four" / "final")
    assert [p.file for p in final.verify(engine=four)] == ["receipts/shard-00002.json", "shard-00001.parquet"]
    assert final.verify(engine=four) == final.verify()


def _refuse(unit: int) -> int:
    if unit == 3:
        raise InputError("3 is refused", hint="leave it out")
    return unit


def _die(_unit: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_of_the_work_arrives_as_it_is_and_a_worker_that_always_dies_is_reported(
    four: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(four.map(_refuse, [0, 1, 2], what="counts", batch=2)) == [0, 1, 2]
    with pytest.raises(InputError, match="3 is refused") as error:
        list(four.map(_refuse, range(9), what="counts"))
    assert error.value.hint == "leave it out"
    monkeypatch.setattr(engine, "_LOSSES", 1)
    with pytest.raises(InputError, match="a process that counts died"):
        list(four.map(_die, [0], what="counts"))


def test_units_that_end_just_when_another_is_refused_do_not_end_the_command() -> None:
    code = """
import time
from hmsa_core.io import engine
def work(unit):
    time.sleep(unit % 3 * 0.001)
    return 1 // (unit - 3)
four = engine.Engine("ray", 4)
with engine._ray(four):
    for _ in range(40):  # Ray ended the process at the twelfth at the latest, when units were cancelled at once
        try:
            list(four.map(work, range(9), what="divides"))
        except ZeroDivisionError:
            print("refused")
"""
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.count("refused")) == (0, 40), done.stderr


def test_a_stop_request_ends_the_work_at_once(four: Engine) -> None:
    start = time.monotonic()

    def stop() -> None:
        if time.monotonic() > start + 1.0:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(four.map(partial(time.sleep), [300.0], what="sleeps", check_stop=stop))
    assert list(four.map(_refuse, [5], what="counts")) == [5], "the worker is free again"


def test_the_job_that_hands_shards_to_ray_is_one_process(tmp_path: Path) -> None:
    spec = infer_spec(tmp_path, tmp_path, tmp_path, runtime=FOUR)
    assert runtime_of(spec).ranks == 4
    assert runtime_of(spec.model_copy(update={"engine": "ray"})).ranks == 1


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray is not installed.*\[ray\]"):
        list(Engine("ray").map(_refuse, [1], what="counts"))


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline.cli.main", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(REPO)} | environment
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_a_cluster_that_is_not_there_is_one_line(labelled: Path) -> None:
    done = command("verify", labelled / "store", "--engine", "ray", RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Ray at 127.0.0.1:1: cannot be reached")
    assert len(done.stderr.splitlines()) == 2


def test_the_command_works_on_a_cluster(labelled: Path, four: Engine, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    assert address.startswith("127.0.0.1:"), "loopback alone"
    options = ("--images-per-shard", str(SHARD), "--scales", "0.5,1", "--threads", "1", "--ranks", "2")
    start = ("label", "--images", labelled / "images", "--checkpoint", labelled / "model", "--out", tmp_path / "store")
    done = command(*start, *options, "--engine", "ray", RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "store") == folder_bytes(labelled / "store")


def test_a_command_that_is_killed_takes_its_own_ray_with_it(tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
from hmsa_core.io.engine import Engine
def work(path):
    pathlib.Path(path).touch()
    time.sleep(300)
list(Engine("ray").map(work, sys.argv[1:], what="waits"))
"""
    env = os.environ | {"PYTHONPATH": str(REPO), "RAY_MARK": str(tmp_path)}  # every process inherits it
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "begun")], env=env)
    wait_for("the command has begun", lambda: (tmp_path / "begun").exists())
    assert len(marked(tmp_path)) > 3
    process.kill()
    process.wait()
    wait_for("its processes end", lambda: not marked(tmp_path))


def marked(folder: Path) -> list[str]:
    """Processes that know RAY_MARK."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"RAY_MARK={folder}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found
