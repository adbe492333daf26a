"""Server and worker of one workspace: ports, and what is told before anything starts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client import orchestration
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Scheduled

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.night import prefect_services
from pipeline.night.prefect_services import Services, up
from pipeline.night.reaper import reap
from tests.support.ranks import free_port


def test_a_server_that_runs_on_another_port_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    used = free_port()
    atomic.write_json(tmp_path / ".orchestrate/port.json", {"port": used})
    assert Services(tmp_path).port == used
    with Services(tmp_path).lock("server"):  # as a running server holds it
        Services(tmp_path).check_port()
        with pytest.raises(ConfigError, match=f"runs on port {used}, not 1") as refused:
            Services(tmp_path, port=1).check_port()
        assert "make orchestrate-stop" in refused.value.hint
    Services(tmp_path, port=free_port()).check_port()


def test_a_start_that_is_interrupted_has_left_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_UI_URL", raising=False)

    def interrupted(*_: object, env: dict[str, str], **_more: object) -> None:
        assert env["PREFECT_UI_URL"] == f"http://127.0.0.1:{used}", "a notification links to the run"
        raise KeyboardInterrupt

    monkeypatch.setattr(prefect_services.subprocess, "Popen", interrupted)
    used = free_port()
    (tmp_path / ".orchestrate").mkdir()
    with pytest.raises(KeyboardInterrupt):
        Services(tmp_path, port=used).start("server", "server", "start")
    assert Services(tmp_path).port == used


def test_without_a_checkout_the_missing_deployment_is_reported_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setattr(prefect_services, "REPOSITORY", tmp_path / "site-packages")
    with pytest.raises(ConfigError, match="no deployment there") as refused:
        up(Services(tmp_path / "ws"))
    assert "copy prefect.yaml" in refused.value.hint
    assert not (tmp_path / "ws" / ".orchestrate").exists()


class _Server:
    """Runs of a server, and what becomes of them; asked in Prefect's own words."""

    def __init__(self, runs: list[FlowRun]) -> None:
        self.runs, self.states = runs, dict[UUID, str]()

    async def __aenter__(self) -> _Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    async def read_flow_runs(self, flow_filter: Any, flow_run_filter: Any, sort: Any = None) -> list[FlowRun]:
        before = flow_run_filter.expected_start_time
        due = [r for r in self.runs if before is None or r.expected_start_time <= before.before_]  # type: ignore[operator]
        found = [run for run in due if run.state_type in flow_run_filter.state.type.any_]
        return sorted(found, key=lambda run: run.expected_start_time) if sort else found  # type: ignore[arg-type, return-value]

    async def set_flow_run_state(self, run: UUID, state: State[Any], *, force: bool) -> None:
        assert force
        self.states[run] = state.name or ""


def test_after_days_off_only_the_newest_missed_night_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nightly, weekly = uuid4(), uuid4()

    def planned(
        days: float, *, by_hand: bool = False, workspace: Path = tmp_path, deployment: UUID = nightly
    ) -> FlowRun:
        at = datetime.now(UTC) + timedelta(days=days)
        given = {"parameters": {"workspace": str(workspace)}, "auto_scheduled": not by_hand}
        state = {"state": Scheduled(scheduled_time=at), "state_type": "SCHEDULED", "expected_start_time": at}
        return FlowRun(id=uuid4(), flow_id=uuid4(), deployment_id=deployment, **state, **given)

    missed = [planned(-1), planned(-3), planned(-2)]
    others = [planned(1), planned(-4, by_hand=True), planned(-5, workspace=tmp_path / "other")]
    others.append(planned(-4, deployment=weekly))
    server = _Server([*missed, *others])
    monkeypatch.setattr(orchestration, "get_client", lambda: server)
    assert reap(tmp_path) == ["2 missed nights are cancelled: the newest that is due will run"]
    assert server.states == dict.fromkeys((run.id for run in missed[1:]), "Cancelled")
    server.runs = missed[:1]
    assert reap(tmp_path) == []
