"""Where nodes meet, what starts them, and the manifests for Kubernetes."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from hmsa_core.config import RuntimeConfig
from hmsa_core.io.errors import ConfigError, LockedError
from hmsa_core.io.process import JOB_GRACE_S
from pipeline.cli.main import COMMANDS
from pipeline.jobs import launcher, nodes
from pipeline.jobs.nodes import Meeting

REPO = Path(__file__).resolve().parents[3]


def test_a_rendezvous_is_told_by_the_environment_or_by_slurm_and_never_guessed() -> None:
    both = {"AUTOLABEL_RDZV_ENDPOINT": "node7:29500", "SLURM_JOB_NODELIST": "gpu1"}
    assert nodes.endpoint(2, both) == ("node7", 29500)
    assert nodes.endpoint(2, {"AUTOLABEL_RDZV_ENDPOINT": "[fd00::2]:29500"}) == ("fd00::2", 29500)
    assert nodes.endpoint(2, {"SLURM_JOB_NODELIST": "gpu[03-06,9]", "SLURM_JOB_ID": "42"}) == ("gpu03", 20042)
    with pytest.raises(ConfigError, match="no rendezvous is given"):
        nodes.endpoint(2, {})
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        nodes.endpoint(2, {"AUTOLABEL_RDZV_ENDPOINT": "node7"})


@pytest.mark.parametrize(
    ("host", "message"),
    [
        *((host, "loopback") for host in ("127.0.1.1", "::1", "localhost")),
        ("no-such-host.invalid", r"no way to the rendezvous no-such-host\.invalid:29500"),
    ],
)
def test_a_host_that_other_nodes_cannot_reach_is_no_rendezvous(host, message):
    with pytest.raises(ConfigError, match=message):
        Meeting(host, 29500, "x").local_address()


def test_the_interface_is_that_of_the_address():
    assert [nodes.interface_of(address) for address in ("127.0.0.1", "203.0.113.77")] == ["lo", ""]


def test_the_commands_that_start_all_nodes() -> None:
    many = RuntimeConfig(nodes=3, ranks=4, threads=2, workers=1)
    assert nodes.launch_prefix(many, {}) == []
    given = nodes.launch_prefix(many.model_copy(update={"launcher": "env A='b c' nice -n 1"}), {})
    assert given == ["env", "A=b c", "nice", "-n", "1"]
    for wrong in ("no-such-launcher -n 3", ""):
        with pytest.raises(ConfigError, match=r"runtime\.launcher is .*no such command"):
            nodes.launch_prefix(many.model_copy(update={"launcher": wrong}), {})


def test_srun_gets_a_task_a_node_with_all_cores_and_ends_all_when_one_fails(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    by_slurm = RuntimeConfig(nodes=3, ranks=4, threads=2, workers=1, launcher="srun")
    words = nodes.launch_prefix(by_slurm, {"PATH": str(tmp_path), "SLURM_CPUS_ON_NODE": "96"})
    expected = {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=96", "--kill-on-bad-exit=1"}
    assert words[0] == "srun"
    assert expected <= set(words)
    assert "--cpus-per-task=12" in nodes.launch_prefix(by_slurm, {"PATH": str(tmp_path)})


def test_each_start_of_a_job_has_a_record_of_its_own_that_counts_while_the_stage_runs(tmp_path: Path) -> None:
    work = tmp_path / "work" / "teacher-train" / "key"
    work.mkdir(parents=True)
    stale = work / "nodes-0.json"  # of a stage that was killed
    stale.write_text('{"endpoint": ["node7", 29500]}')
    assert nodes.open_meetings(tmp_path) == []
    with nodes.meetings(work, 2, {"AUTOLABEL_RDZV_ENDPOINT": "node7:29500"}) as another:
        first = another()
        assert nodes.open_meetings(tmp_path) == [first]
        assert Meeting.of(first) == Meeting("node7", 29500, first.stem)
        second = another()
        assert nodes.open_meetings(tmp_path) == [second]
        assert not nodes.is_open(first)
        with pytest.raises(LockedError), nodes.meetings(work, 2, {"AUTOLABEL_RDZV_ENDPOINT": "node7:29500"}):
            pass
    assert nodes.open_meetings(tmp_path) == []
    assert list(work.glob("nodes-*.json")) == []


def test_a_machine_joins_a_workspace_and_leaves_it_when_no_job_comes(tmp_path: Path) -> None:
    join = [sys.executable, "-m", "pipeline.cli.main", "join", str(tmp_path), "--idle", "0"]
    done = subprocess.run(join, capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stderr.count("\n")) == (2, 2)
    assert "not a workspace" in done.stderr
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    done = subprocess.run(join, capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stderr) == (0, f"{tmp_path}: waiting for jobs over several nodes\n")


def test_an_agent_of_one_node_meets_itself_on_loopback_and_several_use_their_own_address(monkeypatch) -> None:
    def value(words: list[str], name: str) -> str:
        return words[words.index(name) + 1]

    alone = launcher.agent_arguments(RuntimeConfig(ranks=2), Meeting())
    assert (value(alone, "--rdzv-endpoint"), value(alone, "--local-addr")) == ("127.0.0.1:0", "127.0.0.1")
    monkeypatch.setattr(Meeting, "local_address", lambda _: "10.0.0.2")
    two = launcher.agent_arguments(RuntimeConfig(nodes=2, lost_minutes=0.5), Meeting("fd00::2", 29500, "nodes-1"))
    assert (value(two, "--rdzv-endpoint"), value(two, "--local-addr")) == ("[fd00::2]:29500", "10.0.0.2")
    assert value(two, "--rdzv-conf") == "join_timeout=30,silent=30"
    assert value(two, "--rdzv-id") == "nodes-1"


def test_the_place_of_a_pod_is_not_taken_for_that_of_a_rank() -> None:
    of_pod = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MINE": "1"}
    environment = launcher.job_environment(RuntimeConfig(ranks=2), of_pod, Meeting())
    assert environment["MINE"] == "1"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(environment)


def test_a_store_listens_at_its_address_alone_and_a_node_that_counts_no_more_is_lost() -> None:
    from hmsa_core.runtime.rendezvous import PrefixStore, connect, listen, watch_nodes

    store = listen("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", store.port)
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", store.port))  # also of this machine
    messages: list[str] = []
    other_node = PrefixStore("alive", store)

    def open_store() -> Any:
        return PrefixStore("alive", connect("127.0.0.1", store.port, timedelta(seconds=5)))

    watch_nodes(open_store, 0, 2, 2.0, messages.append)
    begin = time.monotonic()
    while time.monotonic() - begin < 3.0:
        other_node.add("1", 1)
        time.sleep(0.2)
        assert messages == []
    while not messages and time.monotonic() - begin < 60.0:
        time.sleep(0.1)
    assert messages == ["node 0: nothing was heard of node 1 of 0 to 1 for 2 s"]


TEXT = (REPO / "examples/kubernetes/training.yaml").read_text()
MANIFEST = [yaml.safe_load(part) for part in TEXT.split("\n---\n")]


def test_the_manifest_has_what_its_pods_need() -> None:
    claim, job_set = MANIFEST
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    jobs = {job["name"]: job["template"]["spec"] for job in job_set["spec"]["replicatedJobs"]}
    assert job_set["spec"]["successPolicy"] == {"operator": "All", "targetReplicatedJobs": ["stage"]}
    assert all(job["parallelism"] == job["completions"] for job in jobs.values())
    runtime = RuntimeConfig.model_validate(yaml.safe_load(TEXT.split("runtime: ")[1].split("}")[0] + "}"))
    assert sum(job["parallelism"] for job in jobs.values()) == runtime.nodes
    for job in jobs.values():
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["restartPolicy"] in ("Never", "OnFailure")
        assert pod["terminationGracePeriodSeconds"] > JOB_GRACE_S
        assert container["resources"]["limits"]["nvidia.com/gpu"] == runtime.ranks
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        at = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert at["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert int(at["/dev/shm"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) > 5
        assert at["/workspace"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_commands_of_the_manifest_are_ours_and_the_stages_address_is_its_pods() -> None:
    (stage,), (node,) = (
        job["template"]["spec"]["template"]["spec"]["containers"] for job in MANIFEST[1]["spec"]["replicatedJobs"]
    )
    for container in (stage, node):
        name, *rest = container["args"]
        parser = ArgumentParser(exit_on_error=False)
        importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
        assert Path("/workspace") == parser.parse_args(rest).workspace
    names = [variable["name"] for variable in stage["env"]]
    assert names == ["POD_IP", "AUTOLABEL_RDZV_ENDPOINT"], "a variable is put into those that follow it"
    assert stage["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    where = stage["env"][1]["value"].replace("$(POD_IP)", "10.1.2.3")
    assert nodes.endpoint(4, {"AUTOLABEL_RDZV_ENDPOINT": where}) == ("10.1.2.3", 29400)
