"""`autolabel label` into a folder that is there: threads stay those of the first run, and what is not ours is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.config import RuntimeConfig
from hmsa_core.inference.folder import infer_job
from hmsa_core.io.errors import InterruptedRunError
from hmsa_core.io.process import StopRequest
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.spec import InferSpec, save_spec
from pipeline.cli.inference_options import _THREADS
from pipeline.jobs import launcher
from tests.support.inference import job_context, noise_image, save_model
from tests.support.training import folder_bytes

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    for seed, name in enumerate(("one", "two")):
        (root / "frames" / name).mkdir(parents=True)
        Image.fromarray(noise_image(seed, 16, 24)).save(root / "frames" / name / f"{name}.png")
    save_model(root / "model", scales=[1.0], flip=False)
    return root


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[RuntimeConfig]:
    """Jobs run in this process; how each would have used the machine."""
    found: list[RuntimeConfig] = []

    def run_job(spec: InferSpec, *, stop: object) -> None:
        found.append(spec.config.runtime)
        save_spec(spec.work / "spec.json", spec)
        infer_job.run(spec, job_context(spec.work))

    monkeypatch.setattr(launcher, "run_job", run_job)
    for name in (*_THREADS, "OMP_WAIT_POLICY"):  # the command sets them for its job
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    return found


def label(folder: Path, out: Path, *more: str) -> list[str]:
    """The arguments of the command."""
    given = {"images": folder / "frames", "checkpoint": folder / "model", "out": out, "device": "cpu"}
    return ["label", *(part for name, value in given.items() for part in (f"--{name}", str(value))), *more]


def test_threads_are_all_cores_whatever_the_number_of_processes(folder, tmp_path, started, said):
    for ranks in (1, 2, 4):
        said(*label(folder, tmp_path / f"on-{ranks}", "--ranks", str(ranks)))
    assert [(one.ranks, one.threads) for one in started] == [(1, CORES), (2, CORES), (4, CORES)]


def test_a_store_is_gone_on_with_by_the_threads_that_it_was_begun_with(folder, tmp_path, started, said):
    begun = CORES + 1
    said(*label(folder, tmp_path / "store", "--threads", str(begun)))
    before = folder_bytes(tmp_path / "store")
    error = said(*label(folder, tmp_path / "store")).err
    assert f"--threads {begun}, as this store was begun (there are {CORES} cores)" in error
    assert [one.threads for one in started] == [begun, begun]
    error = said(*label(folder, tmp_path / "store", "--threads", str(CORES)), status=2).err
    assert f"--threads {CORES}: this store was begun with --threads {begun}\nhint: leave" in error
    assert len(started) == 2
    assert folder_bytes(tmp_path / "store") == before
    options = tmp_path / "store.work" / "options.json"
    options.write_text("{")
    assert f"error: {options}: not valid JSON" in said(*label(folder, tmp_path / "store"), status=4).err


def test_before_the_first_label_another_number_of_threads_is_taken(folder, tmp_path, started, monkeypatch, said):
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "run_job", lambda _spec, *, stop: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            said(*label(folder, tmp_path / "store", "--threads", "1"))
    said(*label(folder, tmp_path / "store", "--threads", "2"))
    assert started[0].threads == 2


def test_a_store_is_gone_on_with_by_shards_of_the_size_that_it_was_begun_with(folder, tmp_path, said):
    out = tmp_path / "store"
    said(*label(folder, out, "--images-per-shard", "2"))
    whole = folder_bytes(out)
    said(*label(folder, out))
    assert folder_bytes(out) == whole, "an audit is bound to the manifest's digest"
    error = said(*label(folder, out, "--images-per-shard", "3"), status=2).err
    assert "--images-per-shard 3: this store was begun with --images-per-shard 2\nhint: leave" in error


@pytest.mark.parametrize(("wanted", "used"), [(None, "passive"), ("active", "active")])
def test_threads_wait_asleep_unless_the_user_wants_otherwise(folder, tmp_path, monkeypatch, wanted, used, said):
    if wanted:
        monkeypatch.setenv("OMP_WAIT_POLICY", wanted)
    said(*label(folder, tmp_path / "store"))
    assert os.environ["OMP_WAIT_POLICY"] == used


@pytest.mark.parametrize(
    "file", ["holiday.png", "lost+found/#12", "sidecar/letter.txt", "receipts/tax.json", ".hidden", "shard-1/a.parquet"]
)
def test_what_took_the_place_of_a_deleted_store_is_never_touched(folder, tmp_path, said, file):
    out = tmp_path / "store"
    said(*label(folder, out))
    shutil.rmtree(out)
    (out / file).parent.mkdir(parents=True)
    (out / file).write_bytes(b"dear")
    assert "exists and is no label store" in said(*label(folder, out), status=2).err
    shutil.rmtree(tmp_path / "store.work")
    said(*label(folder, out), status=2)
    assert folder_bytes(out) == {file: b"dear"}


def test_a_file_system_that_was_just_made_is_an_empty_folder(folder, tmp_path, said):
    out = tmp_path / "store"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (out / "lost+found").mkdir(mode=0o700)
        said(*label(folder, out))
        assert (out / "manifest.json").is_file()
        said(*label(folder, out))
        assert (out / "lost+found").is_dir()
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=True)


def test_what_changed_or_went_since_it_was_labelled_is_said_and_stops_nothing_else(folder, tmp_path, said):
    mine, out = tmp_path / "mine", tmp_path / "store"
    shutil.copytree(folder / "model", mine / "model")
    (mine / "frames").mkdir()
    for i in range(3):
        Image.fromarray(noise_image(i, 32, 48)).save(mine / "frames" / f"f{i}.png")
    said(*label(mine, out))
    before = LabelStore.open(out).read("f0")[0]
    Image.fromarray(noise_image(7, 32, 48)).save(mine / "frames" / "f0.png")
    (mine / "frames" / "f1.png").unlink()
    Image.fromarray(noise_image(8, 32, 48)).save(mine / "frames" / "new.jfif", "JPEG")
    (mine / "frames" / "notes.heic").write_bytes(b"no picture that is read here")
    printed = said(*label(mine, out))
    assert "left out: f0: has changed since it was labelled; the store keeps the old label" in printed.err
    assert "of the store's images 1 are gone from the folder or cannot be used any more, f1 first" in printed.err
    assert "not looked at: files of other kinds (.heic 1)" in printed.err
    assert "1 images labelled, 3 were labelled before, 1 left out" in printed.out
    store = LabelStore.open(out)
    assert sorted(store.names()) == ["f0", "f1", "f2", "new"]
    np.testing.assert_array_equal(store.read("f0")[0], before)
    for i in (2, 9):
        Image.fromarray(noise_image(20 + i, 32, 48)).save(mine / "frames" / f"f{i}.png")
    error = said(*label(mine, out), status=3).err  # two of four: the names of a drive are used again for the next one
    assert "2 of 4 images have changed since they were labelled, 'f0' first" in error


def test_a_publication_that_was_cut_short_is_gone_on_with_and_without_its_work_refused(folder, tmp_path, said):
    out = tmp_path / "store"
    said(*label(folder, out))
    whole = folder_bytes(out)
    (out / "manifest.json").unlink()
    (out / "receipts" / f".shard-00000.json.{2**22 + 1}-01234567.tmp").write_bytes(b"{")  # its writer is dead
    (out / "sidecar" / "kept-00112233.parquet").write_bytes(b"of the store that was there before")
    said(*label(folder, out))
    assert folder_bytes(out) == whole
    (out / "manifest.json").unlink()
    (tmp_path / "store.work" / "store" / "manifest.json").unlink()
    error = said(*label(folder, out), status=2).err
    assert "exists and is no label store" in error, "nothing was published from there"
    shutil.rmtree(tmp_path / "store.work")
    assert "exists and is no label store" in said(*label(folder, out), status=2).err


def test_a_stop_while_images_are_checked_is_heard_there(folder, tmp_path, started, monkeypatch, said):
    with monkeypatch.context() as at_start:
        at_start.setattr(StopRequest, "install", lambda self: (self.request(), self)[1])
        error = said(*label(folder, tmp_path / "out"), status=InterruptedRunError.exit_code).err
    assert not started, "no job was started"
    assert "stopped while images were checked" in error
    said(*label(folder, tmp_path / "out"))
