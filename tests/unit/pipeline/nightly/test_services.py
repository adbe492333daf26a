"""Server and worker of one workspace: ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.nightly import up
from pipeline.nightly.services import Services


def test_a_server_that_runs_on_another_port_is_told_at_once(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / ".orchestrate/port.json", {"port": 4300})
    Services(tmp_path).check_same_port()
    Services(tmp_path, port=4300).check_same_port()
    with pytest.raises(ConfigError, match="runs on port 4300, not 4200") as refused:
        Services(tmp_path, port=4200).check_same_port()
    assert "make orchestrate-stop" in refused.value.hint


def test_without_a_checkout_the_missing_deployment_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setattr(up, "REPO", tmp_path / "site-packages")
    with pytest.raises(ConfigError, match="no deployment there") as refused:
        up.up(Services(tmp_path / "ws"), wait_s=1.0)
    assert "copy prefect.yaml" in refused.value.hint
    assert not (tmp_path / "ws" / ".orchestrate").exists()
