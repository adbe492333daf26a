"""Settings that say `auto`: what is fastest on this processor, found by timing a few passes of the model itself.

The choice is part of a training's key and of its lineage. It is written into the work folder, so that an interrupted
training goes on with it.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from hmsa_core.inference.prepared import cpu_has_bf16
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.losses import training_loss
from hmsa_core.models import build
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import TrainSpec

CHOICE = "runtime.json"
_CROP = (128, 192)  # pixels; larger crops are timed at this size
_BATCH = 2
_SECONDS = 2.0  # of timing, for all candidates together
_MARGIN = 0.95  # of the time of the usual choice: another one has to be clearly faster
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def settle_runtime(spec: TrainSpec, context: JobContext) -> TrainSpec:
    """Replace `auto` in the settings of the runtime; all ranks call it. GPUs take bf16 and channels_last."""
    runtime = spec.config.runtime
    asked = {"threads": runtime.threads, "precision": runtime.precision, "channels_last": runtime.channels_last}
    if "auto" not in asked.values():
        return spec
    chosen = context.ranks.broadcast(_choice(spec, context, asked) if context.is_main else {})
    torch.set_num_threads(chosen["threads"])
    settled = runtime.model_copy(update=chosen)
    return spec.model_copy(update={"config": spec.config.model_copy(update={"runtime": settled})})


def _choice(spec: TrainSpec, context: JobContext, asked: dict[str, Any]) -> dict[str, Any]:
    path = spec.work / CHOICE
    known = read_json(path) if path.exists() else {}
    if known.get("asked") != asked:
        known = {"asked": asked} | _measure(spec, context, asked)
        write_json(path, known)
        context.log.write("runtime", **known)
    return dict(known["chosen"])


def _measure(spec: TrainSpec, context: JobContext, asked: dict[str, Any]) -> dict[str, Any]:
    threads = {"threads": spec.config.runtime.thread_count}
    if context.device.type == "cuda":
        on_gpu: dict[str, Any] = {"precision": "bf16" if torch.cuda.is_bf16_supported() else "fp16"}
        on_gpu |= {"channels_last": True, **threads}
        return {"chosen": on_gpu | {name: value for name, value in asked.items() if value != "auto"}, "timed": []}
    usual = ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    precisions = usual if asked["precision"] == "auto" else (asked["precision"],)
    formats = (True, False) if asked["channels_last"] == "auto" else (asked["channels_last"],)
    candidates: list[dict[str, Any]] = [
        {"precision": precision, "channels_last": last} for precision, last in itertools.product(precisions, formats)
    ]
    if len(candidates) == 1:
        return {"chosen": candidates[0] | threads, "timed": []}
    seconds = [_seconds_a_pass(spec, candidate, _SECONDS / len(candidates)) for candidate in candidates]
    fastest = min(range(len(candidates)), key=seconds.__getitem__)
    best = fastest if seconds[fastest] < _MARGIN * seconds[0] else 0
    timed = [candidate | {"seconds": round(s, 4)} for candidate, s in zip(candidates, seconds, strict=True)]
    processor = {"processor": torch.backends.cpu.get_cpu_capability(), "bf16": cpu_has_bf16()}
    return {"chosen": candidates[best] | threads, "timed": timed, **processor}


def _seconds_a_pass(spec: TrainSpec, candidate: dict[str, Any], budget: float) -> float:
    """Fastest of a few forward and backward passes on noise."""
    config = spec.config
    height, width = (min(asked, most) for asked, most in zip(config.crop, _CROP, strict=True))
    layout = torch.channels_last if candidate["channels_last"] else torch.contiguous_format
    dtype = DTYPES[candidate["precision"]]
    with torch.random.fork_rng():
        model = build(**config.model.options(), num_classes=19).train()
        model.to(memory_format=layout)
        images = torch.randn(_BATCH, 3, height, width).to(memory_format=layout)
        labels = torch.randint(0, 19, (_BATCH, height, width))
        best, end = float("inf"), time.perf_counter() + budget
        for count in itertools.count():
            start = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                output = model(images)
            torch.autograd.backward(training_loss(output, labels, config.loss).total)
            best = min(best, time.perf_counter() - start) if count else best  # the first one prepares kernels
            if count and time.perf_counter() > end:
                return best
    raise AssertionError("unreachable")
