"""The project's errors, each with the exit status that docs/stages.md lists.

Every message is one line: what is wrong, where, and how to fix it. `pipeline.cli` prints `error: MESSAGE` (and
`hint: HINT`) to standard error and exits with `exit_code`; ranks of a job do the same.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


def one_line(text: object) -> str:
    """Fold any text to a single line, so that a message fits into one log line."""
    return " ".join(str(text).split())


def is_plain_name(name: str) -> bool:
    """Whether a name can stand in tables and messages: no control characters, no bytes that were no UTF-8."""
    return not any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in name)


def did_you_mean(name: str, known: Collection[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """The nearest of the known names, as it is spelt there, as a question; `otherwise` where none is near.

    Small and capital letters count as the same; `cutoff` is of difflib's ratio.
    """
    import difflib  # only for a mistake: this module is part of every start-up

    spelt = {one.lower(): one for one in sorted(known)}
    close = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=cutoff)
    return f"did you mean {spelt[close[0]]}?" if close else otherwise


class HmsaError(Exception):
    """Base of all errors that the project raises on purpose; `exit_code` is the process's exit status."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(one_line(message))
        self.hint = one_line(hint)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors of worker processes travel as pickles; the default calls __init__ without its named arguments.
        return _revive, (type(self), self.args, self.__dict__)

    @property
    def message(self) -> str:
        """The one-line message without the hint."""
        return str(self.args[0])


def _revive(kind: type[HmsaError], args: tuple[Any, ...], state: dict[str, Any]) -> HmsaError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ConfigError(HmsaError):
    """A parameter, option or job spec is wrong; nothing was started."""

    exit_code = 2


class InputError(HmsaError):
    """A file or folder that a user gave cannot be used."""

    exit_code = 3


class DecodeError(InputError):
    """One image or mask is refused; `reason` is the short code of the quarantine table."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class LayoutError(InputError):
    """A data set folder has none of the known layouts."""


class CheckpointError(InputError):
    """A weight file is refused before any of its tensors is used."""


class IntegrityError(HmsaError):
    """Bytes on disk differ from the digest that was recorded for them."""

    exit_code = 4


class StoreError(IntegrityError):
    """A label store, one of its shards or its manifest is truncated, changed or missing."""


class LeakageError(HmsaError):
    """More judged images than allowed are in the lineage of the model that they should judge."""

    exit_code = 5


class TrainingError(HmsaError):
    """Training cannot go on: the loss is not finite, or memory ran out."""

    exit_code = 6


class DeviceError(HmsaError):
    """A GPU, or the connection to another rank, failed; the training continues from its last saved state."""

    exit_code = 7


class LockedError(HmsaError):
    """Another process holds the lock; the message names it."""

    exit_code = 75


class NoSpaceError(HmsaError):
    """No space is left on the device; the last good state is intact."""

    exit_code = 28


class InterruptedRunError(HmsaError):
    """SIGTERM or SIGINT arrived; progress is saved and the same command continues from it."""

    exit_code = 143


_DEVICE_FAULTS = (
    "CUDA error",
    "CUDA driver error",
    "cuDNN error",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "NCCL error",
    "gloo/transport",  # a rank on another node is gone; on the same node, the agent reports the cause
    "ECC error",
)
_LASTING_FAULTS = (
    "out of memory",
    "device-side assert",
    "invalid configuration argument",
    "no kernel image",
)  # a restart would fail in the same way


def device_fault(error: BaseException) -> DeviceError | None:
    """Return the DeviceError for a failure of a GPU or NCCL that a restart may cure; None for other errors."""
    text = str(error)
    if not isinstance(error, RuntimeError) or any(fault in text for fault in _LASTING_FAULTS):
        return None
    if not any(fault in text for fault in _DEVICE_FAULTS):
        return None
    return DeviceError(
        f"a GPU or the way to another rank failed: {text.splitlines()[0][:300]}",
        hint="look at `nvidia-smi -q -d ECC` and `dmesg` (Xid) if it comes again",
    )


_HINTS = {
    errno.ENOSPC: "free space, run again",
    errno.EDQUOT: "free space, run again",
    errno.EROFS: "mount that file system so that it can be written",
    errno.EIO: "look at the disk: `dmesg` has more",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), run again",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`), run again",
}


def hint_of(error: OSError) -> str:
    """Return a hint how to fix an error of the system; "" where the fix depends on the file."""
    return _HINTS.get(error.errno or 0, "")


def translate_os_error(error: OSError, doing: str) -> HmsaError:
    """Turn an OSError into an HmsaError, so that a full disk always has the same exit status."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"no space left on device: {doing}{where}".rstrip(":"), hint=hint_of(error))
    return InputError(f"{doing}{where} failed: {error.strerror or error}", hint=hint_of(error))


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn the import error of an optional package into one line that names the command which installs it.

    Args:
        extra: name of the optional dependencies in pyproject.toml that the imports of the block belong to.

    Raises:
        ConfigError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("hmsa_core", "pipeline")):
            raise
        raise ConfigError(
            f"{error.name} is not installed; this command needs the optional packages [{extra}]",
            hint=f"pip install 'hmsa-autolabel[{extra}]'",
        ) from error
