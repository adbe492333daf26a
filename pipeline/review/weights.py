"""Scale weights of an image on demand: `autolabel predict`, one process at a time, so that no server imports torch."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from hmsa_core.io.errors import InputError, one_line
from hmsa_core.models.checkpoint import read_meta
from pipeline.review.view import StoreView

_KEEP = 8  # images whose weights stay on disk
_TIMEOUT_S = 900
_WEIGHT = re.compile(r"_weight_([0-9.]+)x\.png$")


class WeightJobs:
    """Starts `autolabel predict` for an image of a store and serves the weights that it wrote."""

    def __init__(self, view: StoreView, checkpoint: Path) -> None:
        read_meta(checkpoint)  # a mistake shows at the start, not when somebody asks for weights
        self._view, self._checkpoint = view, checkpoint.resolve()
        self._folder = tempfile.TemporaryDirectory(prefix="autolabel-weights-")
        self._asking = threading.Lock()  # one start for an image at a time
        self._lock = threading.Lock()  # held while a process runs: one at a time
        self._states: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._numbers = itertools.count(1)
        self._closed = False
        self._process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End the running process and remove all computed weights."""
        self._closed = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._folder.cleanup()

    def start(self, name: str) -> dict[str, Any]:
        """Start to compute an image's weights of each scale, unless they exist or are being computed."""
        with self._asking:
            state = self._states.get(name)
            if state is None or "error" in state:
                path = self._view.pictures.picture_path(name)
                out = Path(self._folder.name) / str(next(self._numbers))
                state = self._states[name] = {"out": out, "since": time.monotonic()}
                threading.Thread(target=self._work, args=(path, state), daemon=True).start()
                self._forget()
        return self.state(name)

    def _forget(self) -> None:
        for old in [n for n, s in self._states.items() if "scales" in s or "error" in s][:-_KEEP]:
            for file in self._states.pop(old)["out"].glob("*"):
                file.unlink()

    def _command(self, path: Path, out: Path) -> list[str]:
        program = [sys.executable, "-m", "pipeline.cli.main", "predict"]
        return [*program, str(path), "--checkpoint", str(self._checkpoint), "--out", str(out)]

    def _work(self, path: Path, state: dict[str, Any]) -> None:
        out: Path = state["out"]
        with self._lock:
            if self._closed:
                return
            self._process = subprocess.Popen(
                self._command(path, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            with self._process as process:
                try:
                    _, said = process.communicate(timeout=_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    state["error"] = f"took longer than {_TIMEOUT_S} s"
                    return
        if process.returncode != 0:
            state["error"] = _reason(said)
            return
        found = [_WEIGHT.search(file.name) for file in sorted(out.glob("*_weight_*x.png"))]
        state["scales"] = sorted((match[1] for match in found if match), key=float)
        if not state["scales"]:
            state["error"] = "this model's fusion has no weights"

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
        (file,) = state["out"].glob(f"*_weight_{scale}x.png")
        return bytes(file.read_bytes())


def _reason(stderr: str) -> str:
    """The line of the output that names the error."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return one_line((said or lines or ["it ended without a message"])[-1])
