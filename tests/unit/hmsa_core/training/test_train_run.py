"""Training runs from outside: stages that build on each other, lineage, errors that say how to fix them."""

from __future__ import annotations

import gc
import re
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hmsa_core.io.atomic import read_json, sha256_file, write_json
from hmsa_core.io.errors import ConfigError, DecodeError, HmsaError, IntegrityError, TrainingError
from hmsa_core.labels import LabelStoreWriter
from hmsa_core.lineage import Lineage, lineage_of_checkpoint
from hmsa_core.models import build, load, read_meta, save
from hmsa_core.runtime.progress import read_log
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.spec import Selection, ValidationData
from hmsa_core.training import run as train
from hmsa_core.training import train_spec as train_spec_of
from hmsa_core.training import trainer
from hmsa_core.training.data import open_run_data
from hmsa_core.training.parallel import DdpReplicas
from hmsa_core.training.state import StateStore
from hmsa_core.training.trainer import Trainer
from tests.support.ranks import run_ranks
from tests.support.training import (
    CLASSES,
    class_table,
    events,
    log_of,
    pseudo_data,
    run,
    train_spec,
    write_data,
    write_store,
)

pytestmark = pytest.mark.long

WORLD = ("road", "building", "car", "sky", "bench", "lamp", "dog")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    write_data(folder, prefix="world", images=4, first_seed=50, names=WORLD)
    write_data(folder, prefix="extra", images=5, first_seed=100)
    write_data(folder, prefix="held", images=2, first_seed=200, role="calibrate")
    return folder


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("pretrain")
    return run(
        train_spec(data, work, index="world", stage="teacher-pretrain", model__kind="single", epochs=1, ema_decay=0.0)
    )


@pytest.fixture(scope="module")
def teacher(data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(train_spec(data, tmp_path_factory.mktemp("teacher"), init_from=pretrained, epochs=1))


@pytest.fixture(scope="module")
def store(data: Path, teacher: Path) -> Path:
    return write_store(data, data / "store", teacher=read_meta(teacher)["weights_sha256"])


def test_pretraining_teacher_student_and_control_build_on_each_other(
    data: Path, pretrained: Path, teacher: Path, store: Path, tmp_path: Path
) -> None:
    assert load(pretrained).num_classes == len(WORLD)
    first = load(teacher)
    assert (first.kind, first.num_classes) == ("hierarchical", len(CLASSES))
    given = {"stage": "student-train", "init_from": teacher, "epochs": 2}
    pseudo = {"pseudo": pseudo_data(data, store), "pseudo__fine_only_epochs": 1}
    student = train_spec(data, tmp_path / "student", **given, **pseudo)
    control = train_spec(data, tmp_path / "control", **given)
    run(student)
    run(control)
    epochs = events(student, "epoch")
    assert [(e["images"], e["pseudo"]) for e in epochs] == [(8, 4), (8, 0)], "half and half, then fine labels only"
    assert [e["pseudo"] for e in events(control, "epoch")] == [0, 0]
    assert events(student, "start")[0]["steps"] == events(control, "start")[0]["steps"]
    # The student's lineage lists everything, through teacher and pseudo labels.
    found = lineage_of_checkpoint(student.work / "model")
    names = {image.name: image.source for image in found.images.values()}
    assert sum(name.startswith("world_") for name in names) == 4
    assert {n for n, source in names.items() if source == "pseudo"} == {f"extra_{i:03d}" for i in range(5)}
    assert sum(n.startswith("toy_") and s == "fine" for n, s in names.items()) == 8
    assert list(found.parents) == [read_meta(teacher)["weights_sha256"], read_meta(pretrained)["weights_sha256"]]
    assert found.unknown == ()
    row = next(image for image in found.images.values() if image.name == "toy_003")
    assert (row.sequence, row.frame, row.phash, row.root) == ("toy_0", 3, f"{3:016x}", "target")
    meta = read_meta(student.work / "model")["lineage"]
    assert (meta["images"], meta["asked_by"], meta["machine"]["ranks"]) == (17, "a test", 1)


def test_heads_with_another_class_count_start_anew_and_are_named_in_the_log(teacher: Path) -> None:
    (start,) = (line for line in read_log(teacher.parent / "log.jsonl") if line["event"] == "start")
    named = " ".join(start["initialised_fresh"])
    assert "ocr.cls_head (7 classes in the checkpoint, 4 here)" in named
    assert "scale_attn (not in the checkpoint)" in named


def test_the_teacher_of_a_store_is_named_if_it_is_given_and_unknown_if_it_is_not(
    data: Path, teacher: Path, store: Path, tmp_path: Path
) -> None:
    other = write_store(data, tmp_path / "store", teacher="f" * 64)
    found = lineage_of_checkpoint(run(train_spec(data, tmp_path / "a", pseudo=pseudo_data(data, other), epochs=1)))
    assert found.parents == ("f" * 64,)
    assert "images of its teacher (ffffffffffffffff) are not listed" in found.unknown[0]
    given = {"teacher": teacher, "pseudo": pseudo_data(data, store)}  # the student does not start from it
    found = lineage_of_checkpoint(run(train_spec(data, tmp_path / "b", epochs=1, **given)))
    assert read_meta(teacher)["weights_sha256"] in found.parents
    assert found.unknown == ()
    assert any(image.name.startswith("world_") for image in found.images.values())


def test_a_changed_lineage_list_is_refused(teacher: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(teacher, copy)
    lineage = Lineage.load(copy / "lineage.json")
    lineage.images.popitem()
    lineage.save(copy / "lineage.json")
    with pytest.raises(IntegrityError, match=r"lineage\.json: SHA-256 is not the one"):
        lineage_of_checkpoint(copy)
    (copy / "lineage.json").unlink()
    with pytest.raises(IntegrityError, match="missing"):
        lineage_of_checkpoint(copy)
    write_json(copy / "lineage.json", {"format": "other", "version": 1})
    with pytest.raises(IntegrityError, match="not a hmsa-lineage file"):
        Lineage.load(copy / "lineage.json")


def test_a_checkpoint_without_a_list_says_that_its_images_are_unknown(data: Path, tmp_path: Path) -> None:
    bare = build("single", trunk="hrnet_micro", num_classes=4, head="paper")
    save(bare, tmp_path / "imported", class_table=None, lineage={"source": "somewhere"})
    found = lineage_of_checkpoint(run(train_spec(data, tmp_path / "work", init_from=tmp_path / "imported", epochs=1)))
    assert len(found.images) == 8
    assert len(found.parents) == 1
    assert "what they learned from is not listed" in found.unknown[0]


def test_validation_changes_no_weight_and_images_are_brought_to_the_long_edge(data: Path, tmp_path: Path) -> None:
    held = ValidationData(selection=Selection(index=data / "held.parquet"))
    specs = [train_spec(data, tmp_path / str(v is None), epochs=2, long_edge=192, validation=v) for v in (None, held)]
    assert len({sha256_file(run(spec) / "model.safetensors") for spec in specs}) == 1
    assert [line["images"] for line in events(specs[1], "validation")] == [2, 2]


def test_the_average_is_what_is_saved_and_the_record_names_steps_and_settings(teacher: Path) -> None:
    state = teacher.parent / "state" / "step-00000004"
    files = (teacher / "model.safetensors", state / "ema.safetensors", state / "model.safetensors")
    weights, average, last = (load_file(file)["backbone.conv1.weight"] for file in files)
    assert torch.equal(weights, average)
    assert not torch.equal(average, last)
    meta = read_json(teacher / "model.json")
    assert (meta["extra"]["averaged"], meta["extra"]["steps"]) == (True, 4)
    assert meta["class_table"]["name"] == "toy"
    assert meta["inference"]["scales"] == [0.5, 1.0, 2.0]
    assert meta["lineage"]["config"]["optimiser"]["lr"] == 0.05


def test_a_loss_that_is_not_finite_stops_with_step_checkpoint_and_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(data, tmp_path, checkpoint_every=2)
    real = Trainer._loss
    seen: list[tuple[int, tuple[str, ...]]] = []
    passes = Trainer._pass

    def one_pass(self: Trainer, batch: Any) -> None:
        seen.append((self.step, batch.names))
        passes(self, batch)

    def loss(self: Trainer, *batch: Any) -> Any:
        found = real(self, *batch)
        return replace(found, total=found.total * torch.nan) if self.step == 5 else found

    monkeypatch.setattr(Trainer, "_pass", one_pass)
    monkeypatch.setattr(Trainer, "_loss", loss)
    with pytest.raises(TrainingError, match=r"not finite at step 5 \(epoch 1\)") as caught:
        run(spec)
    name = next(names for step, names in seen if step == 5)[0]
    assert f"on images {name};" in caught.value.message
    assert "last good checkpoint: step 4" in caught.value.message
    assert caught.value.exit_code == 6
    assert StateStore(tmp_path / "state", key="").steps() == [2, 4]


def test_weights_that_are_not_finite_are_never_saved_as_a_good_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(data, tmp_path, checkpoint_every=3)
    real = Trainer._update

    def update(self: Trainer) -> None:
        real(self)
        if self.step == 6:
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(torch.inf)

    monkeypatch.setattr(Trainer, "_update", update)
    with pytest.raises(TrainingError, match=r"is not finite after step 6; last good checkpoint: step 3"):
        run(spec)
    assert StateStore(tmp_path / "state", key="").steps() == [3]


def test_out_of_memory_names_the_crop_that_would_fit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(data, tmp_path, crop=(192, 256))
    real = Trainer._loss

    def loss(self: Trainer, images: torch.Tensor, *rest: Any) -> Any:
        if images.shape[1] * images.shape[2] > 128 * 192:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return real(self, images, *rest)

    monkeypatch.setattr(Trainer, "_loss", loss)
    with pytest.raises(TrainingError, match="out of memory on cpu at step 0") as caught:
        run(spec)
    assert "a crop of 128x192 would fit" in caught.value.message


def test_an_image_too_large_to_validate_on_is_named_and_the_training_goes_on_without(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ValidationData(selection=Selection(index=data / "held.parquet"), every_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "predict", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
        )
        with pytest.raises(TrainingError, match=r"out of memory on image \w+ of \d+x\d+ pixels") as caught:
            run(train_spec(data, tmp_path, epochs=2, validation=held))
    assert "validate_every to 0" in caught.value.hint
    run(spec := train_spec(data, tmp_path, epochs=2))
    assert [line["step"] > 0 for line in events(spec, "start")] == [False, True]


def test_the_pass_that_ran_out_of_memory_is_gone_before_smaller_crops_are_tried(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its activations are most of what fills the memory."""
    lost: list[weakref.ref[torch.Tensor]] = []
    real = Trainer._loss

    def loss(self: Trainer, *batch: Any) -> Any:
        found = real(self, *batch)
        lost.append(weakref.ref(found.total))
        return found

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def search(*_: object) -> None:
        gc.collect()
        assert [one() for one in lost] == [None]

    monkeypatch.setattr(Trainer, "_loss", loss)
    monkeypatch.setattr(trainer.torch.autograd, "backward", fail)
    monkeypatch.setattr(trainer, "largest_fitting_crop", search)
    with pytest.raises(TrainingError, match="no crop of 64 pixels or more fits either") as caught:
        run(train_spec(data, tmp_path, crop=(64, 96)))
    assert "that size" not in caught.value.hint


@pytest.fixture
def gloo(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("position", [0, -1])  # the last and the first gradient of a backward pass
def test_out_of_memory_in_the_backward_pass_of_ddp_names_the_crop_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gloo: None, position: int
) -> None:
    """DDP's hooks hang on the parameters, and the pass that failed has called some of them."""
    spec = train_spec(data, tmp_path / "work", crop=(128, 128))
    failures = iter([torch.OutOfMemoryError("CUDA out of memory")])

    def fail(gradient: torch.Tensor) -> None:
        for error in failures:
            raise error

    def replicate(model: torch.nn.Module, ranks: Ranks, *, compiled: bool) -> DdpReplicas:
        list(model.parameters())[position].register_hook(fail)
        return DdpReplicas(model, ranks)

    monkeypatch.setattr(trainer, "replicate", replicate)
    with pytest.raises(TrainingError, match="a crop of 96x96 would fit"):
        run(spec)


def test_accumulated_passes_equal_one_large_pass_but_for_batch_norm(data: Path, tmp_path: Path) -> None:
    """Counts and crops are the same however a batch is cut into passes."""
    lines = []
    for batch in (1, 2, 4):
        spec = train_spec(data, tmp_path / str(batch), global_batch=4, batch_per_rank=batch, epochs=1)
        run(spec)
        lines.append(events(spec, "epoch")[0]["pixels"])
    assert lines[0] == lines[1] == lines[2]


@pytest.mark.parametrize("source", ["teacher", "human"])
def test_the_weight_acts_on_human_pixels_of_auto_labelled_crops_alone(
    data: Path, store: Path, tmp_path: Path, source: str
) -> None:
    labels = store if source == "teacher" else write_store(data, tmp_path / "store", source=source, human=1)

    def weights(name: str, **changes: Any) -> dict[str, Any]:
        spec = train_spec(
            data,
            tmp_path / name,
            pseudo=pseudo_data(data, labels),
            epochs=1,
            global_batch=8,
            batch_per_rank=8,
            model__dropout=0.0,
            optimiser__momentum=0.0,
            optimiser__weight_decay=0.0,
            ema_decay=0.0,
            **changes,
        )
        return load_file(run(spec) / "model.safetensors")

    double, plain, none = (weights(f"w{w}", pseudo__human_weight=w) for w in (2.0, 1.0, 0.0))
    learned = [name for name in plain if "running" not in name and "tracked" not in name]
    moved = any(not torch.equal(plain[name], none[name]) for name in learned)
    assert moved == (source == "human")
    for name in learned:  # one step of plain SGD: linear in the weight
        torch.testing.assert_close(plain[name], (double[name] + none[name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("human", "weight"), [(0, 1.0), (1, 99.0), (4, 24.0), (60, 1.0)])
def test_human_pixels_weigh_at_most_as_much_as_all_others(
    data: Path, tmp_path: Path, human: int, weight: float
) -> None:
    labels = write_store(data, tmp_path / "store", human=human)
    spec = train_spec(data, tmp_path, pseudo=pseudo_data(data, labels), epochs=1, pseudo__human_weight=100.0)
    run(spec)
    assert events(spec, "start")[0]["human_weight"] == weight


def test_training_learns(data: Path, tmp_path: Path) -> None:
    spec = train_spec(
        data,
        tmp_path,
        epochs=16,
        global_batch=4,
        batch_per_rank=4,
        optimiser__lr=0.3,
        loss__main="cross_entropy",
        model__dropout=0.0,
        ema_decay=0.0,
        augment__blur=0.0,
        augment__colour=0.0,
        validation=ValidationData(selection=Selection(index=data / "held.parquet"), every_epochs=8),
    )
    run(spec)
    losses = [line["loss"] for line in events(spec, "epoch")]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    scores = events(spec, "validation")
    assert [line["epoch"] for line in scores] == [8, 16]
    assert scores[-1]["mean_iou"] > scores[0]["mean_iou"] + 0.05
    assert set(scores[0]["iou"]) == set(CLASSES)


def test_class_heads_start_small_for_sigmoids_and_at_the_usual_spread_for_softmax(data: Path, tmp_path: Path) -> None:
    def spread(loss: str) -> float:
        spec = train_spec(data, tmp_path, loss__main=loss)
        model, _ = train.make_model(spec, 4, Ranks(0, 1, torch.device("cpu")))
        return float(list(model.ocr.cls_head.modules())[-1].weight.detach().std())

    assert spread("rmi") < 0.02 < min(spread("cross_entropy"), spread("jaccard"))


def test_a_validation_is_due_where_one_step_ends_several_epochs(data: Path, tmp_path: Path) -> None:
    held = ValidationData(selection=Selection(index=data / "held.parquet"), every_epochs=2)
    spec = train_spec(data, tmp_path, epochs=9, global_batch=24, batch_per_rank=2, validation=held)
    run(spec)
    assert [line["epoch"] for line in events(spec, "validation")] == [3, 6, 9]


def test_the_log_holds_what_a_person_asks_about_a_run(data: Path, tmp_path: Path) -> None:
    spec = train_spec(data, tmp_path, epochs=2, loss__per_scale_weight=0.05)
    run(spec)
    line = events(spec, "train")[0]
    for key in ("loss", "main", "bce", "rmi", "aux", "scale_0.5", "lr", "images_per_s", "data_wait", "memory_mb"):
        assert isinstance(line[key], float), key
    assert 0.0 <= line["data_wait"] <= 1.0
    epoch = events(spec, "epoch")[0]
    assert set(epoch["pixels"]) == set(CLASSES)
    assert sum(epoch["pixels"].values()) > 0
    assert epoch["plan"]["crops"] == 8
    assert len(log_of(tmp_path)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1, "global_batch": 16}, "8 crops in 1 epochs do not fill one global batch of 16"),
        ({"optimiser__nesterov": True, "optimiser__momentum": 0.0}, "nesterov needs"),
        ({"crop": (64, 64), "model__train_scales": (0.25, 1.0)}, r"one position on the coarsest grid at scale 0\.25"),
        ({"crop": (32, 64)}, "crop 32x64 leaves one position .* at least 66 pixels, or batch_per_rank at least 2"),
        ({"model__trunk": "deeplabv3_resnet50"}, "deeplabv3_resnet50 pools to one position.* at least 2"),
        ({"model__context": "psp"}, "context psp pools to one position"),
        ({"runtime__precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_settings_that_cannot_train_are_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_spec_of(train_spec(data, tmp_path, **changes))
    assert re.search(message, f"{caught.value.message} {caught.value.hint}")


def test_the_smallest_crops_that_batch_norm_can_train_on_are_trained_on(data: Path, tmp_path: Path) -> None:
    run(train_spec(data, tmp_path / "two", crop=(32, 64), batch_per_rank=2, epochs=1))
    run(train_spec(data, tmp_path / "wide", crop=(32, 66), epochs=1))


def test_images_that_teach_and_judge_no_image_and_an_unknown_root_are_refused(data: Path, tmp_path: Path) -> None:
    spec, toy = train_spec(data, tmp_path), Selection(index=data / "toy.parquet")
    none = spec.fine.model_copy(update={"selection": toy.model_copy(update={"roles": ("report",)})})
    for change, message in (
        ({"validation": ValidationData(selection=toy)}, "8 images are learned from as well, first toy_000"),
        ({"fine": none}, "no image with a fine label passes the selection"),
        ({"roots": {"other": data}}, "root 'target' is not given"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(spec.model_copy(update=change))


def test_raw_labels_other_classes_and_unknown_images_do_not_teach(data: Path, store: Path, tmp_path: Path) -> None:
    with LabelStoreWriter(tmp_path / "raw", {}, classes=class_table()) as writer:
        writer.add("extra_000", np.zeros((64, 96), np.uint8), np.ones((64, 96), np.float32))
    other = write_store(data, tmp_path / "other", index="world")
    for labels, index, message in (
        (tmp_path / "raw", "extra", "holds raw labels"),
        (other, "extra", "its classes"),
        (store, "held", "5 images are not in"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(train_spec(data, tmp_path / "work", pseudo=pseudo_data(data, labels, index=index)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changed_after_indexing_is_named_with_its_own_error(tmp_path: Path, workers: int) -> None:
    write_data(tmp_path, images=2)
    cv2.imwrite(str(tmp_path / "toy" / "toy_001.png"), np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(HmsaError, match=r"toy_001\.png") as caught:
        run(train_spec(tmp_path, tmp_path / "work", runtime__workers=workers))
    assert isinstance(caught.value, (IntegrityError, DecodeError))
    assert caught.value.exit_code in (3, 4)
    assert "\n" not in caught.value.message


@pytest.mark.fault
def test_a_loader_process_that_is_killed_ends_the_run_with_a_reason(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing
    import os
    import signal

    spec = train_spec(data, tmp_path, runtime__workers=1, epochs=20)
    real = Trainer._update

    def update(self: Trainer) -> None:
        real(self)
        if self.step == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    monkeypatch.setattr(Trainer, "_update", update)

    def target(rank: int) -> None:  # a fork: torch goes on reporting the dead worker for as long as it lives
        try:
            run(spec)
        except TrainingError as error:
            reported = "a loader process died" in error.message and "runtime.workers" in error.hint
            os._exit(error.exit_code if reported else 3)

    assert run_ranks(1, target) == [6]


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    spec = train_spec(data, tmp_path_factory.mktemp("plain"), epochs=1, epoch_samples=4)
    return (run(spec) / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser__nesterov": True},
        {"optimiser__momentum": 0.0},
        {"optimiser__weight_decay": 0.1},
        {"optimiser__clip_norm": 0.01},
        {"optimiser__warmup_steps": 9},
        {"loss__rmi_ignore": "masked"},
        {"loss__main": "released_bce"},
        {"loss__aux": "released_bce"},
        {"model__train_scales": (0.5, 1.0, 2.0)},
        {"seed": 6},
    ],
)
def test_each_option_changes_the_result(data: Path, tmp_path: Path, plain: bytes, change: dict[str, Any]) -> None:
    spec = train_spec(data, tmp_path, epochs=1, epoch_samples=4, **change)
    assert (run(spec) / "model.safetensors").read_bytes() != plain


@pytest.mark.parametrize("change", [{"runtime__activation_checkpointing": True}, {"model__train_scales": (1.0, 0.5)}])
def test_recomputed_activations_and_the_usual_scales_written_out_change_no_bit(
    data: Path, tmp_path: Path, plain: bytes, change: dict[str, Any]
) -> None:
    model = run(train_spec(data, tmp_path, epochs=1, epoch_samples=4, **change))
    assert (model / "model.safetensors").read_bytes() == plain
    assert load(model).config.training_scales == (0.5, 1.0)


def test_the_number_of_ranks_that_batch_norm_sees_is_part_of_the_key(data: Path, tmp_path: Path) -> None:
    spec = train_spec(data, tmp_path / "work")
    alone = Ranks(0, 1, torch.device("cpu"))
    keys = {n: open_run_data(spec, replace(alone, norm_ranks=n)).key for n in (1, 8, 32)}
    assert len(set(keys.values())) == 3
    assert open_run_data(spec, replace(alone, world=4)).key == keys[1], "nor does the number of ranks count by itself"
