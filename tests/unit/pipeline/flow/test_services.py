"""Server and worker of one workspace: ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core import atomic
from hmsa_core.errors import ConfigError
from pipeline.flow.services import Services


def test_a_server_that_runs_on_another_port_is_told_at_once(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / ".orchestrate/port.json", {"port": 4300})
    Services(tmp_path).check_same_port()
    Services(tmp_path, port=4300).check_same_port()
    with pytest.raises(ConfigError, match="runs on port 4300, not 4200") as refused:
        Services(tmp_path, port=4200).check_same_port()
    assert "make orchestrate-stop" in refused.value.hint
