"""The ranks of a job: number and device of this process, and messages between the ranks.

Ranks are started by torchrun (any number of nodes through its rendezvous), by Slurm's `srun` with one task per rank, or
the job has one rank. NCCL carries tensors on GPUs; small control messages, and everything on CPUs, go through gloo.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from hmsa_core.config import RuntimeConfig
from hmsa_core.io.errors import ConfigError
from hmsa_core.io.process import StopRequest
from hmsa_core.runtime.progress import JsonLog, Progress

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Limit of control messages: the last shard of one rank may take most of a day, and the agent handles dead ranks.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks."""

    rank: int
    world: int  # number of processes over all nodes
    device: torch.device
    control: dist.ProcessGroup | None = None  # for control messages; None = the default group
    norm_ranks: int = 1  # ranks whose crops batch norm sees together, and their group (None = all ranks)
    norm_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank (rank 0) writes the files of the job."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks are here (a control message: it does not wait for a GPU)."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1, dtype=torch.int32), group=self.control)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank; all ranks call it."""
        if self.world == 1:
            return flag
        message = torch.tensor([int(flag)], dtype=torch.int64)
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.control)
        return bool(message.item())

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Return the (small, picklable) values of all ranks, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.control)
        return found

    def broadcast(self, value: T) -> T:
        """Return the (small, picklable) value of rank 0 on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def stop(self) -> None:
        """Leave the process group, if there is one."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _choose_device(requested: str, local_rank: int) -> torch.device:
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "device is cuda, but torch finds no GPU",
            hint="use auto or cpu (--device, or runtime.device in params.yaml)",
        )
    count = torch.cuda.device_count()
    # A batch system may show each task only one GPU: then that GPU has number 0 in each task.
    if local_rank >= count > 1:
        raise ConfigError(
            f"rank {local_rank} of this node has no GPU: {count} are visible", hint=f"set runtime.ranks to {count}"
        )
    device = torch.device("cuda", min(local_rank, count - 1))
    torch.cuda.set_device(device)
    return device


def start_ranks(runtime: RuntimeConfig, env: Mapping[str, str] | None = None) -> Ranks:
    """Choose the device, set torch's threads and meet the other ranks.

    Raises:
        ConfigError: no such device, or an impossible precision for it.
    """
    env = os.environ if env is None else env
    world, rank = int(env.get("WORLD_SIZE", "1")), int(env.get("RANK", "0"))
    local_rank = int(env.get("LOCAL_RANK", str(rank)))
    torch.set_num_threads(runtime.thread_count)
    device = _choose_device(runtime.device, local_rank)
    if runtime.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU", hint="use bf16 or fp32 on CPUs")
    if runtime.precision == "fp32":
        # A GPU would round convolutions to 10 bits and still call them float32; bf16 is the setting for speed.
        torch.backends.cudnn.allow_tf32 = False
    if world == 1 or device.type == "cpu":
        if world > 1:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return Ranks(rank, world, device)
    _meet_on_gpus(device, runtime.lost_minutes)
    control = cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=_PATIENCE))
    ranks = Ranks(rank, world, device, control)
    size, group = norm_group(ranks, runtime.sync_norm)
    return replace(ranks, norm_ranks=size, norm_group=group)


def _meet_on_gpus(device: torch.device, minutes: float) -> None:
    # NCCL gives up later than the watchdog, which can report the work of the rank.
    timeout = datetime.timedelta(minutes=2 * minutes)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=device)
    except dist.DistBackendError as error:
        if "Duplicate GPU" not in str(error):
            raise
        raise ConfigError(
            "two ranks of a node see the same GPU and no other",
            hint="set runtime.ranks to the GPUs of a node, or let the batch system give each task a GPU of its own",
        ) from error


def norm_group(ranks: Ranks, wanted: str) -> tuple[int, dist.ProcessGroup | None]:
    """Number of ranks whose crops batch norm sees together (world, node, off), and their group; all ranks call it.

    Raises:
        ConfigError: "node", and the nodes have different numbers of ranks.
    """
    if wanted == "off":
        return 1, None
    hosts = ranks.gather(socket.gethostname()) if wanted == "node" else [""] * ranks.world
    nodes = [[rank for rank, host in enumerate(hosts) if host == name] for name in dict.fromkeys(hosts)]
    sizes = {len(members) for members in nodes}
    if len(sizes) > 1:
        raise ConfigError(
            f"runtime.sync_norm is node, but nodes have {', '.join(map(str, sorted(sizes)))} ranks: their batch norms"
            " would see different numbers of crops",
            hint="start the same number of ranks on each node, or set runtime.sync_norm to world or off",
        )
    if len(nodes) == 1:
        return ranks.world, None
    group, _ = dist.new_subgroups_by_enumeration(nodes)
    return sizes.pop(), cast("dist.ProcessGroup", group)


@dataclass(frozen=True)
class JobContext:
    """Context of a job, made by `hmsa_core.job`; a job's `run(spec, context)` reads it."""

    ranks: Ranks
    runtime: RuntimeConfig
    stop: StopRequest = field(default_factory=StopRequest)  # set by SIGTERM or SIGINT on this rank
    log: JsonLog = field(default_factory=lambda: JsonLog(None))  # real on rank 0 only
    beat: Callable[[], None] = lambda: None  # a training calls it to report progress

    @classmethod
    def of(cls, work: Path, ranks: Ranks, runtime: RuntimeConfig, stop: StopRequest) -> JobContext:
        """The context of a job that logs into `work/log.jsonl`."""
        return cls(ranks, runtime, stop, JsonLog(work / "log.jsonl" if ranks.is_main else None))

    @classmethod
    def alone(cls, runtime: RuntimeConfig, work: Path | None = None, stop: StopRequest | None = None) -> JobContext:
        """The context of work in this process alone, as one rank; with a folder `work`, it logs there."""
        ranks, stop = start_ranks(runtime, {}), stop or StopRequest()
        return cls(ranks, runtime, stop) if work is None else cls.of(work, ranks, runtime, stop)

    def progress(self, total: int, *, what: str, unit: str = "images", initial: int = 0) -> Progress:
        """Progress on standard error, silent on all ranks but the first."""
        return Progress(total, what=what, unit=unit, initial=initial, enabled=self.ranks.is_main)
