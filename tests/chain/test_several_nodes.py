"""Training over several nodes: network namespaces with own addresses, started by a launcher or by `autolabel join`.

A node that is cut off sends nothing any more and closes nothing; only silence tells.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hmsa_core.runtime.progress import read_log
from hmsa_core.spec import TrainSpec, save_spec
from tests.support.jobs import REPO, last_logged_step
from tests.support.netns import Nodes, needs_namespaces, network
from tests.support.processes import processes_of
from tests.support.training import train_spec, write_data
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.chain, needs_namespaces]

STAGE = """
import logging, sys
from hmsa_core.io.errors import HmsaError
from hmsa_core.io.process import StopRequest
from hmsa_core.spec import load_spec
from pipeline.jobs import launcher
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    launcher.run_job(load_spec(sys.argv[1]), stop=StopRequest().install())
except HmsaError as error:
    sys.exit(f"error: {error.message}")
"""
JOIN = ["-m", "pipeline.cli.main", "join"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with network(3) as made:
        yield made


def spec_of(data: Path, workspace: Path, **changes: object) -> TrainSpec:
    """Two ranks; the folder is one of a workspace, where `autolabel join` looks for it."""
    for name in ("params.yaml", "dvc.yaml"):
        workspace.mkdir(parents=True, exist_ok=True)
        (workspace / name).touch()
    return train_spec(data, workspace / "work" / "teacher-train" / "key", epochs=15, checkpoint_every=7, **changes)


@contextmanager
def on(node: list[str], *command: str, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command on a node (`ip netns exec NAME`) or, with [], on the machine itself; it is gone afterwards."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"} | env
    with log.open("ab") as out:
        process = subprocess.Popen([*node, sys.executable, *command], env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def stage(spec: TrainSpec, nodes: Nodes | None = None, **env: str):
    """The stage of a job, on the first node; its folder's parent holds the log."""
    save_spec(spec.work.parent / "job.json", spec)
    where = ["ip", "netns", "exec", nodes.names[0]] if nodes else []
    reported = {"AUTOLABEL_RDZV_ENDPOINT": f"{nodes.address(0)}:29500"} if nodes else {}
    return on(where, "-c", STAGE, str(spec.work.parent / "job.json"), log=log_of(spec), **reported | env)


def join(spec: TrainSpec, nodes: Nodes, i: int, *options: str):
    workspace = spec.work.parents[2]
    return on(["ip", "netns", "exec", nodes.names[i]], *JOIN, str(workspace), *options, log=workspace / f"node{i}.log")


def log_of(spec: TrainSpec) -> Path:
    return spec.work.parent / "stage.log"


def finish(process: subprocess.Popen[bytes], spec: TrainSpec, timeout_s: float = 240.0) -> None:
    assert process.wait(timeout_s) == 0, log_of(spec).read_text()


@pytest.fixture(scope="module")
def one_node(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, set[str]]:
    """Weights of two ranks on one node, never interrupted, and the addresses that they used."""
    with network(1) as alone:
        spec = spec_of(data, tmp_path_factory.mktemp("one"), runtime__ranks=2)
        save_spec(spec.work.parent / "job.json", spec)
        where = ["ip", "netns", "exec", alone.names[0]]
        with on(where, "-c", STAGE, str(spec.work.parent / "job.json"), log=log_of(spec)) as process:
            wait_for("the first steps", lambda: trains(spec, process))
            used = alone.addresses(0)
            finish(process, spec)
    return weights_of(spec), used


def weights_of(spec: TrainSpec) -> bytes:
    return (spec.work / "model" / "model.safetensors").read_bytes()


def trains(spec: TrainSpec, process: subprocess.Popen[bytes], step: int = 1) -> bool:
    return last_logged_step(spec.work) >= step or process.poll() is not None


def test_a_stage_on_one_node_opens_no_port_to_a_network(one_node: tuple[bytes, set[str]]) -> None:
    assert one_node[1] == {"127.0.0.1"}


def words_of(program: str) -> set[str]:
    """Words of the command line of a running program."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            if any(word.endswith(f"/bin/{program}") for word in words[:2]):
                return set(words)
    return set()


def test_a_stage_starts_its_nodes_by_srun_is_stopped_on_both_and_goes_on_with_a_node_that_joins(
    data: Path, nodes: Nodes, one_node: tuple[bytes, set[str]], tmp_path: Path
) -> None:
    srun = nodes.launcher(tmp_path / "bin" / "srun", 2)
    spec = spec_of(data, tmp_path / "ws", runtime__nodes=2, runtime__launcher="srun")
    with stage(spec, nodes, PATH=f"{srun.parent}:{os.environ['PATH']}", SLURM_CPUS_ON_NODE="12") as process:
        wait_for("the first steps", lambda: trains(spec, process))
        assert [nodes.addresses(i) for i in (0, 1)] == [{nodes.address(0)}, {nodes.address(1)}]
        assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=12", "--kill-on-bad-exit=1"} <= words_of("srun")
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    assert "stopped on request" in log_of(spec).read_text()
    assert [nodes.processes(i) for i in (0, 1)] == [[], []]
    held = last_logged_step(spec.work)
    assert 0 < held < 60
    spec = spec_of(data, tmp_path / "ws", runtime__nodes=2)
    with join(spec, nodes, 1) as other:
        with stage(spec, nodes) as process:
            finish(process, spec)
        other.send_signal(signal.SIGTERM)
        assert other.wait(30) == 0
    assert weights_of(spec) == one_node[0]
    assert steps_of(spec).count(held) == 1, "it went on from there"
    assert not list(spec.work.glob("nodes-*.json"))


def steps_of(spec: TrainSpec) -> list[int]:
    return [int(line["step"]) for line in read_log(spec.work / "log.jsonl") if line["event"] == "train"]


def cut_off(spec: TrainSpec, nodes: Nodes, process: subprocess.Popen[bytes]) -> float:
    """Cut node 1 off in the middle, and wait until the stage starts the job again; the seconds that it took."""
    wait_for("some steps", lambda: trains(spec, process, 10))
    nodes.cut(1)
    seconds = wait_for(
        "the loss of the node is noticed", lambda: "start 2 of 3 from the last checkpoint" in log_of(spec).read_text()
    )
    assert last_logged_step(spec.work) < 60, "cut off in the middle"
    return seconds


@pytest.mark.slow
@pytest.mark.fault
def test_a_node_that_is_cut_off_and_comes_back_costs_minutes_and_changes_no_byte(
    data: Path, nodes: Nodes, one_node: tuple[bytes, set[str]], tmp_path: Path, record_property
) -> None:
    launcher = nodes.launcher(tmp_path / "bin" / "on-all", 2)
    spec = spec_of(data, tmp_path / "ws", runtime__nodes=2, runtime__launcher=str(launcher))
    with stage(spec, nodes) as process:
        seconds = cut_off(spec, nodes, process)
        held = last_logged_step(spec.work)
        nodes.reconnect(1)
        seconds += wait_for("it goes on", lambda: steps_of(spec)[-1] > held or process.poll() is not None)
        record_property("seconds from the cut to the next step", round(seconds))
        assert seconds < 180
        finish(process, spec)
    assert weights_of(spec) == one_node[0]


@pytest.mark.slow
@pytest.mark.fault
def test_another_machine_takes_the_place_of_one_that_is_lost_for_good(
    data: Path, nodes: Nodes, one_node: tuple[bytes, set[str]], tmp_path: Path, record_property
) -> None:
    spec = spec_of(data, tmp_path / "ws", runtime__nodes=2)
    with join(spec, nodes, 1), stage(spec, nodes) as process:
        seconds = cut_off(spec, nodes, process)
        held = last_logged_step(spec.work)
        with join(spec, nodes, 2, "--idle", "0"):  # it comes after the loss
            seconds += wait_for("it goes on", lambda: steps_of(spec)[-1] > held or process.poll() is not None)
            record_property("seconds from the cut to the next step", round(seconds))
            assert seconds < 180
            finish(process, spec)
        message = (tmp_path / "ws" / "node1.log").read_text()
        assert "node 1: nothing was heard of the rendezvous for 60 s" in message
        assert "Exception" not in message
        wait_for("the ranks that were cut off are gone", lambda: not processes_of(spec.work))
    assert weights_of(spec) == one_node[0]
