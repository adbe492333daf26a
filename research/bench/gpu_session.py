"""All that a GPU is needed for, in less than nine minutes: tests, profile of a training step, torch's own ways.

    python -m research.bench.gpu_session [--out work/gpu-session] [--minutes 8.8] [--only step,infer]
    python -m research.bench.gpu_session --dry-run      (on a CPU: a tiny network, nothing compiled; shows that it runs)

Each part is a process with a time limit. Every figure is written when it is measured, so the session can be stopped
anywhere: `rows.jsonl` has the figures, `tables.md` the tables, `kernels.txt` the kernels of a step by their time,
`log.txt` all other output. W48, crops of 1024x2048, {0.5, 1}, bf16; times are medians of single steps.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from research.markdown import table

Run = Callable[[], object]
_HERE = [sys.executable, "-m", "research.bench.gpu_session"]
# Seconds at most; the last part takes what is left.
LIMITS = {"tests": 150, "card": 40, "step": 90, "infer": 90, "levers": 240}
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


class Scale(NamedTuple):
    """Sizes of a session: those of a GPU, or tiny ones for a dry run on a CPU."""

    device: str
    trunk: str
    size: tuple[int, int]
    crops: tuple[int, ...]
    repeats: int


ON_GPU = Scale("cuda", "hrnet_w48", (1024, 2048), (1, 2, 4), 8)
DRY = Scale("cpu", "timm:resnet18", (128, 128), (1,), 1)


# ---- Measuring


def measured(run: Run, scale: Scale, kernels: Path | None = None) -> dict[str, float]:
    """Time, launches, idle time of the card and peak memory of one run, after two runs that are not counted.

    `host_ms`: until the host has queued all. `idle`: share of the time in which no kernel runs.
    `operators`: torch's own operators. Launches and idle time are 0 on a CPU.
    """
    import torch

    is_gpu = scale.device == "cuda"
    wait: Run = torch.cuda.synchronize if is_gpu else int
    for _ in range(2):
        run()
    wait()
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    whole, queued = [], []
    for _ in range(scale.repeats):
        start = time.perf_counter()
        run()
        queued.append(time.perf_counter() - start)
        wait()
        whole.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e9 if is_gpu else 0.0
    seconds = statistics.median(whole)
    with torch.profiler.profile() as profile:
        run()
        wait()
    if kernels is not None:
        with kernels.open("a") as out:
            out.write(profile.key_averages().table(sort_by="self_cuda_time_total" if is_gpu else "self_cpu_time_total"))
    events = profile.events() or []
    on_card = [e.time_range for e in events if e.device_type.name == "CUDA"]
    busy = _covered([(span.start, span.end) for span in on_card]) / 1e6
    return {
        "ms": round(1e3 * seconds, 5),
        "host_ms": round(1e3 * statistics.median(queued), 2),
        "operators": sum(e.name.startswith("aten::") for e in events),
        "launches": sum(e.name in _LAUNCHES for e in events),
        "kernels": len(on_card),
        "idle": round(max(0.0, 1 - busy / seconds), 3) if is_gpu else 0.0,
        "peak_gb": round(peak, 2),
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def attempt(what: dict[str, Any], make: Callable[[], Run], scale: Scale, **given: Any) -> dict[str, Any]:
    """A row of figures; what this card or torch cannot do is a row that says so."""
    import torch

    from hmsa_core.runtime.memory import release_memory

    start = time.perf_counter()
    try:
        found = measured(make(), scale, **given)
        return what | found | {"start_s": round(time.perf_counter() - start, 1)}
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        return what | {"error": str(error).strip().partition("\n")[0][:160]}
    finally:
        torch.compiler.reset()
        release_memory(torch.device(scale.device))


# ---- Training steps


def trainer_step(scale: Scale, crops: int) -> Run:
    """A step as a training runs it."""
    from hmsa_core.config import RuntimeConfig
    from hmsa_core.runtime.ranks import start_ranks
    from research.bench.bench_train_step import batches, trainer

    runtime = RuntimeConfig(device=scale.device, precision="bf16")  # type: ignore[arg-type]
    one = trainer("hierarchical", scale.trunk, scale.size, crops, runtime, start_ranks(runtime))
    feed = batches(scale.size, crops)
    return lambda: one.run_step(feed)


class Levers(NamedTuple):
    """A plain step of the same network, with some of what may make it faster."""

    channels_last: bool = False
    fused: bool = False  # the optimiser
    graph: bool = False  # the whole step as one CUDA graph
    compiled: str = ""  # mode of torch.compile


def plain_step(scale: Scale, crops: int, levers: Levers) -> Run:
    """Forward pass, RMI, backward pass and update without the trainer, on crops that stay on the card."""
    import torch

    from hmsa_core.config import LossConfig
    from hmsa_core.losses import training_loss
    from hmsa_core.models import build

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if levers.channels_last else torch.contiguous_format
    model = build("hierarchical", trunk=scale.trunk, num_classes=19).to(scale.device)
    model = model.to(memory_format=layout).train()  # type: ignore[call-overload]  # torch's stub
    forward = _compiled(model, levers.compiled, scale)
    images = torch.randn(crops, 3, *scale.size).to(scale.device).contiguous(memory_format=layout)
    labels = torch.randint(0, 19, (crops, *(n // 16 for n in scale.size)))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2).to(scale.device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=levers.fused)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(scale.device, torch.bfloat16):
            output = forward(images)
        torch.autograd.backward(training_loss(output, labels, LossConfig()).total)
        optimiser.step()

    return _captured(step) if levers.graph and scale.device == "cuda" else step


def _compiled(function: Any, mode: str, scale: Scale) -> Any:
    import torch

    return torch.compile(function, mode=mode) if mode and scale.device == "cuda" else function


def _captured(step: Run) -> Run:
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def step_rows(scale: Scale, out: Path) -> Iterator[dict[str, Any]]:
    """The trainer's step at each number of crops, with its kernels."""
    for crops in scale.crops:
        yield attempt({"crops": crops}, lambda n=crops: trainer_step(scale, n), scale, kernels=out / "kernels.txt")  # type: ignore[misc]


def lever_rows(scale: Scale, _out: Path) -> Iterator[dict[str, Any]]:
    """The plain eager step, each lever alone, and together; last, at one crop, what torch.compile makes of it."""
    ways = {
        "plain": Levers(),
        "channels_last": Levers(channels_last=True),
        "fused optimiser": Levers(fused=True),
        "CUDA graph": Levers(graph=True),
        "all three": Levers(channels_last=True, fused=True, graph=True),
    }
    compiled = {f"compile {mode}": Levers(True, True, compiled=mode) for mode in ("default", "reduce-overhead")}
    few, many = scale.crops[0], scale.crops[-1]
    chosen = {(crops, name): levers for crops in (few, many) for name, levers in ways.items()}
    chosen |= {(few, name): levers for name, levers in compiled.items()}
    for (crops, name), levers in chosen.items():
        row = {"crops": crops, "step": name}
        yield attempt(row, lambda n=crops, one=levers: plain_step(scale, n, one), scale)  # type: ignore[misc]


# ---- Labelling, and the card


def infer_rows(scale: Scale, _out: Path) -> Iterator[dict[str, Any]]:
    """One pass of an image and its mirror image at scale 1: our fused path against torch's ways."""
    import torch

    from hmsa_core.inference.network.predictor import Predictor
    from hmsa_core.models import build

    pair = torch.randn(2, 3, *scale.size, device=scale.device)

    def ours() -> Run:
        predictor = Predictor(build("hierarchical", trunk=scale.trunk, num_classes=19).eval(), scale.device, "bf16")
        return lambda: predictor.run(pair, attention=True)

    def plain(mode: str) -> Run:
        model = build("hierarchical", trunk=scale.trunk, num_classes=19).eval().to(scale.device, torch.bfloat16)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        given = pair.to(torch.bfloat16, memory_format=torch.channels_last)
        forward = _compiled(model.forward_scale, mode, scale)
        return torch.no_grad()(lambda: forward(given))  # type: ignore[no-any-return]

    yield attempt({"way": "ours"}, ours, scale)
    for mode in ("", "reduce-overhead", "max-autotune"):
        yield attempt({"way": f"torch.compile {mode}" if mode else "eager"}, lambda mode=mode: plain(mode), scale)  # type: ignore[misc]


def card_rows(scale: Scale, _out: Path) -> Iterator[dict[str, Any]]:
    """What the card is and reaches: a matrix product, a copy, and ResNet-50 of timm and torchvision."""
    import timm
    import torch
    import torchvision

    is_gpu = scale.device == "cuda"
    yield {"what": torch.cuda.get_device_name() if is_gpu else "dry run", "value": torch.__version__, "unit": "torch"}
    side, count, batch, pixels = (8192, 1 << 30, 128, 224) if is_gpu else (64, 1 << 10, 2, 32)
    square = torch.randn(side, side, device=scale.device, dtype=torch.bfloat16)
    source = torch.empty(count, device=scale.device, dtype=torch.uint8)
    images = torch.randn(batch, 3, pixels, pixels, device=scale.device).to(memory_format=torch.channels_last)
    made = {"timm": timm.create_model("resnet50"), "torchvision": torchvision.models.resnet50()}

    def train(model: torch.nn.Module) -> Run:
        model.to(scale.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(scale.device, torch.bfloat16):
                found = model(images)
            torch.autograd.backward(found.float().square().mean())
            optimiser.step()

        return step

    checks: list[tuple[str, str, float, Callable[[], Run]]] = [
        (f"matrix product, {side} cubed, bf16", "TFLOP/s", 2e-12 * side**3, lambda: lambda: square @ square),
        ("copy, bytes read and written", "TB/s", 2e-12 * count, lambda: source.clone),
        *(
            (f"{name} resnet50, training, batch {batch}", "images/s", float(batch), lambda m=model: train(m))  # type: ignore[misc]
            for name, model in made.items()
        ),
    ]
    for what, unit, work, make in checks:
        row = attempt({"what": what, "unit": unit}, make, scale)
        yield row | ({} if "error" in row else {"value": round(1e3 * work / row["ms"], 2)})


PARTS: dict[str, Callable[[Scale, Path], Iterator[dict[str, Any]]]] = {
    "card": card_rows,
    "step": step_rows,
    "infer": infer_rows,
    "levers": lever_rows,
}


# ---- The session


def session(commands: dict[str, list[str]], out: Path, minutes: float, limits: dict[str, float]) -> bool:
    """Run parts one after another into a folder, each within its limit; whether all came to their end."""
    out.mkdir(parents=True, exist_ok=True)
    end, states = time.monotonic() + 60 * minutes, []
    with (out / "rows.jsonl").open("a") as rows, (out / "log.txt").open("a") as log:
        for name, command in commands.items():
            start = time.monotonic()
            # The tests print for people.
            state = _part(command, log if name == "tests" else rows, log, min(limits[name], end - start))
            states.append(state)
            rows.write(json.dumps({"part": "session", "name": name, "state": state}) + "\n")
            rows.flush()
            write_tables(out)
            sys.stderr.write(f"{name}: {state} ({time.monotonic() - start:.0f} s)\n")
    return set(states) == {"done"}


def _part(command: list[str], stdout: Any, stderr: Any, limit: float) -> str:
    if limit <= 0:
        return "no time left"
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    else:
        return f"failed with status {status}" if status else "done"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def write_tables(out: Path) -> None:
    """Write the rows that are there as one table a part."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for line in (out / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        parts.setdefault(row.pop("part"), []).append(row)
    lines = []
    for name, rows in parts.items():
        header = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"## {name}", *table(header, [[str(row.get(key, "")) for key in header] for row in rows]), ""]
    (out / "tables.md").write_text("\n".join(lines))


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work/gpu-session"), help="folder of the figures")
    parser.add_argument("--minutes", type=float, default=8.8, help="of the whole session, at most")
    parser.add_argument("--only", default=",".join(LIMITS), help="parts, with commas")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # the process of a part
    args = parser.parse_args(argv)
    if args.part:
        for row in PARTS[args.part](DRY if args.dry_run else ON_GPU, args.out):
            sys.stdout.write(json.dumps({"part": args.part, **row}) + "\n")
            sys.stdout.flush()
        return 0
    dry = ["--dry-run"] if args.dry_run else []
    commands = {
        "tests": [sys.executable, "-m", "pytest", "-q", "tests/gpu", *(["--collect-only"] if dry else [])],
        **{name: [*_HERE, "--part", name, "--out", str(args.out), *dry] for name in PARTS},
    }
    chosen = {name: commands[name] for name in args.only.split(",")}
    return 0 if session(chosen, args.out, args.minutes, LIMITS) else 1


if __name__ == "__main__":
    sys.exit(main())
