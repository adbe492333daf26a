"""Server and worker of one workspace: ports, and what is told before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.nightly import services
from pipeline.nightly.services import Services, up
from tests.support.nightly import free_port


def test_a_server_that_runs_on_another_port_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_a_checkout_the_missing_deployment_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setattr(services, "REPO", tmp_path / "site-packages")
    with pytest.raises(ConfigError, match="no deployment there") as refused:
        up(Services(tmp_path / "ws"))
    assert "copy prefect.yaml" in refused.value.hint
    assert not (tmp_path / "ws" / ".orchestrate").exists()
