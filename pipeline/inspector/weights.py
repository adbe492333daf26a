"""Scale weights of an image on demand: one process at a time, so that the server itself never imports torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from hmsa_core.errors import InputError, one_line
from hmsa_core.process import die_with_parent
from pipeline.inspector.view import StoreView

__all__ = ["WeightJobs"]

_KEEP = 8  # images whose weights stay on disk
_TIMEOUT_S = 900


class WeightJobs:
    """Starts `hmsa_core.engine.predict` for an image and serves what it wrote.

    Args:
        view: the store whose images are asked for.
        checkpoint: checkpoint folder.
    """

    def __init__(self, view: StoreView, checkpoint: Path) -> None:
        if not checkpoint.exists():
            raise InputError(f"{checkpoint}: checkpoint not found")
        self._view, self._checkpoint = view, checkpoint.resolve()
        self._folder = tempfile.TemporaryDirectory(prefix="autolabel-weights-")
        self._lock = threading.Lock()  # held while a process runs: one at a time
        self._states: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._numbers = 0

    def close(self) -> None:
        """Remove what was computed."""
        self._folder.cleanup()

    def start(self, name: str) -> dict[str, Any]:
        """Begin to compute the weights of an image, unless they are there or under way."""
        state = self._states.get(name)
        if state is None or "error" in state:
            path = self._view.picture_path(name)
            self._numbers += 1
            state = {"out": Path(self._folder.name) / str(self._numbers), "since": time.monotonic()}
            self._states[name] = state
            threading.Thread(target=self._work, args=(name, path, state), daemon=True).start()
            self._forget()
        return self.state(name)

    def _forget(self) -> None:
        for old in [n for n, s in self._states.items() if "scales" in s or "error" in s][:-_KEEP]:
            for file in self._states.pop(old)["out"].glob("*"):
                file.unlink()

    def _command(self, path: Path, out: Path) -> list[str]:
        return [
            sys.executable, "-m", "hmsa_core.engine.predict", "--checkpoint", str(self._checkpoint),
            "--out", str(out), "--weights-only", str(path),
        ]  # fmt: skip

    def _work(self, name: str, path: Path, state: dict[str, Any]) -> None:
        out: Path = state["out"]
        parent = os.getpid()
        with self._lock:
            try:
                done = subprocess.run(
                    self._command(path, out), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
                    preexec_fn=lambda: die_with_parent(parent=parent),  # noqa: PLW1509 - only prctl happens there
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                state["error"] = f"took longer than {_TIMEOUT_S} s"
                return
        if done.returncode != 0:
            state["error"] = one_line(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message")
            return
        state["scales"] = sorted((p.stem.removeprefix("weight-") for p in out.glob("weight-*.png")), key=float)

    def state(self, name: str) -> dict[str, Any]:
        """{"state": "running", "seconds"} or {"state": "done", "scales"}; a failure is an InputError."""
        state = self._states.get(name)
        if state is None:
            raise InputError(f"no weights of image {name!r} were asked for")
        if "error" in state:
            raise InputError(f"scale weights of {name!r}: {state['error']}")
        if "scales" in state:
            return {"state": "done", "scales": state["scales"]}
        return {"state": "running", "seconds": int(time.monotonic() - state["since"])}

    def plane(self, name: str, scale: str) -> bytes:
        """Grey PNG of the weight of one scale."""
        state = self._states.get(name, {})
        if scale not in state.get("scales", ()):
            raise InputError(f"no weight of scale {scale!r} for image {name!r}")
        return bytes((state["out"] / f"weight-{scale}.png").read_bytes())
