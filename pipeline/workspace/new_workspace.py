"""Make a workspace: params.yaml of a profile, dvc.yaml, git and DVC set up, demo data generated."""

from __future__ import annotations

import getpass
import importlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, InputError, one_line
from pipeline.workspace.dvc_yaml import render_dvc_yaml
from pipeline.workspace.params import PROFILES, Params
from pipeline.workspace.registry import TEACHER_STAGE
from pipeline.workspace.settings import profile_text, resolved_text
from pipeline.workspace.table import CURRENT
from pipeline.workspace.workspace import SETTINGS
from pipeline.workspace.yaml_text import read_yaml

GENERATED = ("tiny", "demo")  # profiles whose data `autolabel demo-data` makes
GIVE_NAME = "export USER=me LOGNAME=me HOME=/a/folder/that/can/be/written"
CAMVID_ENV = "AUTOLABEL_CAMVID"
_HERE = Path(__file__).resolve().parent
_LOG = logging.getLogger(__name__)
_UNFINISHED = ".autolabel-init"  # exists while `init` makes a workspace, so that a killed `init` can be repeated
_DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n    autostage = true\n"
_IDENTITY = ("-c", "user.name=autolabel", "-c", "user.email=autolabel@localhost", "-c", "commit.gpgsign=false")


@dataclass(frozen=True)
class InitRequest:
    """Arguments of `autolabel init`."""

    folder: Path
    profile: str
    data: Path | None = None  # root of the target data set (tiny, demo: a folder made by `demo-data`)
    pretrain_data: Path | None = None
    make_data: bool = True
    deterministic: bool = False  # settings of the runtime do not depend on this machine
    planned: Mapping[str, str] = field(default_factory=dict)  # files of a plan (profile own), params.yaml among them


def init_workspace(request: InitRequest) -> bool:
    """Make the workspace and return True; of a finished one, make git or DVC that are missing: False if neither is.

    After a kill, `init` continues and writes only missing files, because people may have edited the others.

    Raises:
        ConfigError: unknown profile. InputError: the folder holds other things, or the data are missing.
    """
    folder = request.folder.resolve()
    roots: dict[str, str] = {}
    is_finished = _is_finished(folder, request.profile)
    if request.profile not in PROFILES and not request.planned and not is_finished:
        raise ConfigError(f"unknown profile {request.profile!r}: expected one of {', '.join(PROFILES)}")
    if is_finished or (folder / "params.yaml").exists():
        _check_same_roots(request, folder)
    else:
        roots = _data_roots(request, folder)
    if is_finished:  # it may be a copy without its hidden folders
        return _set_up_version_control(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _UNFINISHED).exists():
        atomic.write_text(folder / _UNFINISHED, request.profile + "\n")
    _write_files(folder, request, roots)
    _set_up_version_control(folder)
    if request.profile in GENERATED and request.make_data:
        profile_root = Params.of_profile(request.profile).data.target.root  # params.yaml may name other data by now
        if _root_in(folder, "target") == profile_root:
            generate_data(folder / "data" / "demo", request.profile)
    (folder / _UNFINISHED).unlink()
    return True


def generate_data(out: Path, profile: str, *, workers: int = 2) -> None:
    """Generate a profile's street scenes in the folder `out` with the checkout's generator, `examples/streets`.

    Raises:
        ConfigError: the package was installed without a checkout, which alone holds the generator.
    """
    checkout = _HERE.parents[1]
    if not (checkout / "examples" / "streets").is_dir():
        raise ConfigError(
            f"profile {profile}: the street generator is not part of the installed package",
            hint="install from a clone of the repository (`make setup`), or give your own images with --data",
        )
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    streets = importlib.import_module("examples.streets")
    streets.generate(streets.default_spec(profile), out, workers)


def generate_plain(out: Path, profile: str, *, workers: int = 2) -> None:
    """Generate a profile's street scenes as the plain folders `out`/{images,labels,new}; errors as `generate_data`.

    Raises:
        InputError: `out` exists and is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: holds other things", hint="choose an empty or a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made:
        generate_data(Path(made) / "streets", profile, workers=workers)
        plain = importlib.import_module("examples.streets.plain")
        plain.write_plain(Path(made) / "streets" / "cityscapes", Path(made) / "plain")
        out.mkdir(exist_ok=True)
        (Path(made) / "plain").replace(out)


def _template(name: str) -> str:
    return _HERE.joinpath("templates", name).read_text("utf-8")


def _is_finished(folder: Path, profile: str) -> bool:
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder")
    names = {p.name for p in folder.iterdir()} - {".git"}  # a folder with a fresh repository counts as empty
    if _UNFINISHED in names:
        _check_same_profile(folder, profile)
        return False
    if not names:
        return False
    if {"params.yaml", "dvc.yaml"} <= names:
        there = read_yaml(folder / "params.yaml").values.get("profile")
        if there == profile:
            return True
        raise InputError(f"{folder}: is already a workspace of profile {there}", hint="choose another folder")
    raise InputError(
        f"{folder}: holds other things ({', '.join(sorted(names)[:3])}...) and is not a workspace",
        hint="choose an empty or a new folder",
    )


def _check_same_profile(folder: Path, profile: str) -> None:
    """Refuse another profile for an unfinished workspace: files of two profiles do not fit together."""
    begun = one_line((folder / _UNFINISHED).read_text("utf-8", errors="replace"))
    if begun != profile:
        there = f"of profile {begun}, not {profile}" if begun else "that names no profile"
        hint = f"--profile {begun} goes on with it; or choose another folder" if begun else "choose another folder"
        raise InputError(f"{folder}: holds an unfinished workspace {there}", hint=hint)


def _check_same_roots(request: InitRequest, folder: Path) -> None:
    """Refuse a data path that differs from the one in use: `init` would ignore the new path without a message."""
    if request.data is None and request.pretrain_data is None:
        return
    for name, root in _data_roots(request, folder).items():
        used = _root_in(folder, name)
        if used is None or (folder / str(used)).resolve() != (folder / root).resolve():
            raise InputError(
                f"{folder}: is a workspace already, its data.{name}.root is {used}, not {root}",
                hint=f"change data.{name}.root in its params.yaml, or choose another folder",
            )


def _root_in(folder: Path, name: str) -> object:
    """Read data.NAME.root from params.yaml; None where the key is missing."""
    here: object = read_yaml(folder / "params.yaml").values
    for key in ("data", name, "root"):
        here = here.get(key) if isinstance(here, dict) else None
    return here


def _data_roots(request: InitRequest, folder: Path) -> dict[str, str]:
    """Values for data.target.root and data.pretrain.root where they differ from those of the profile."""
    roots: dict[str, str] = {}
    if request.profile in GENERATED and request.data is not None:
        base = _existing(request.data)
        roots = {"target": str(base / "cityscapes"), "pretrain": str(base / "mapillary")}
        if lacking := next((Path(root).name for root in roots.values() if not Path(root).is_dir()), None):
            raise InputError(
                f"{base}: no folder {lacking}; profile {request.profile} takes what `autolabel demo-data` made",
                hint="your own images: autolabel init DIR --images DIR --labels DIR (docs/own-data.md)",
            )
    elif request.profile == "camvid":
        roots["target"] = _camvid_root(request, folder)
    elif request.data is not None:
        roots["target"] = str(_existing(request.data))
    if request.pretrain_data is not None:
        if request.profile == "camvid":
            raise ConfigError("profile camvid has no pretraining set: --pretrain-data does not apply")
        roots["pretrain"] = str(_existing(request.pretrain_data))
    return roots


def _existing(path: Path) -> Path:
    where = path.expanduser().resolve()
    if not where.is_dir():
        raise InputError(f"{where}: data folder not found")
    return where


def _camvid_root(request: InitRequest, folder: Path) -> str:
    given = request.data or (Path(os.environ[CAMVID_ENV]) if os.environ.get(CAMVID_ENV) else None)
    if given is not None:
        return str(_existing(given))
    default = (_HERE.parents[1] / ".." / "shared" / "camvid").resolve()
    if not (default / "splits.json").is_file():
        raise InputError(f"{default}: CamVid is not there", hint=f"give its folder: --data PATH, or {CAMVID_ENV}=PATH")
    # Relative, so that checkout and data can move together.
    return os.path.relpath(default, folder)


def _write_files(folder: Path, request: InitRequest, roots: dict[str, str]) -> None:
    """Write each missing file; an existing file is complete, and people may have edited it."""
    profile, params = request.profile, folder / "params.yaml"
    if not params.exists() and not request.planned:
        atomic.write_text(params, profile_text(profile, roots, deterministic=request.deterministic))
    for name, text in request.planned.items():
        if not (folder / name).exists():
            atomic.write_text(folder / name, text)
    settings = Params.load(params)
    files = {
        "dvc.yaml": render_dvc_yaml(settings.data),
        SETTINGS: resolved_text(settings),
        ".gitignore": _template("gitignore"),
        ".dvcignore": _template("dvcignore"),
        "README.md": _template("README.md").replace("@PROFILE", profile),
        "policies/README.md": _template("policies.md"),
        # `autolabel serve` appends to this file. The first line holds no mark: DVC keeps warning about an empty file.
        "labels/raw.review.jsonl": '{"id": "0", "name": "", "withdraws": ""}\n',
        CURRENT: json.dumps({"teacher": TEACHER_STAGE}, indent=1) + "\n",
    }
    for name, text in files.items():
        if not (folder / name).exists():
            atomic.write_text(folder / name, text)


def _set_up_version_control(folder: Path) -> bool:
    """Make what is missing of git and DVC; whether anything was."""
    there = (folder / ".git").exists(), (folder / ".dvc" / "config").exists()
    if shutil.which("git") is None:
        _LOG.warning("git is not installed: the workspace works, but `dvc metrics diff` and `dvc exp` need it")
    own_git = shutil.which("git") is not None and not _in_git_tree(folder)
    if own_git and not (folder / ".git").exists():
        _run(["git", "init", "-q", "-b", "main"], folder)
    _set_up_dvc(folder)
    if own_git and not _git(folder, "rev-parse", "-q", "--verify", "HEAD"):
        _run(["git", "add", "-A"], folder)
        _run(["git", *_IDENTITY, "commit", "-q", "--no-verify", "-m", "Workspace"], folder)
    return there != ((folder / ".git").exists(), (folder / ".dvc" / "config").exists())


def _set_up_dvc(folder: Path) -> None:
    if importlib.util.find_spec("dvc") is None:
        _LOG.warning("DVC is not installed: `autolabel run` runs the stages in order without it")
        return
    own_git, config = (folder / ".git").exists(), folder / ".dvc" / "config"
    if config.exists() and not _git(folder, "rev-parse") and "no_scm" not in config.read_text("utf-8"):
        _run([sys.executable, "-m", "dvc", "config", "core.no_scm", "true"], folder)
    if config.exists() or (not own_git and any((parent / ".dvc").is_dir() for parent in folder.parents)):
        return
    if fault := without_name():
        raise InputError(f"{folder}: {fault}", hint=GIVE_NAME)
    options = [] if own_git else ["--subdir"] if _git(folder, "rev-parse") else ["--no-scm"]
    shutil.rmtree(folder / ".dvc", ignore_errors=True)
    _run([sys.executable, "-m", "dvc", "init", *options], folder)
    atomic.write_text(config, _DVC_CONFIG + ("    no_scm = true\n" if "--no-scm" in options else ""))


def without_name() -> str:
    """Why DVC stops for this user; "" where it does not. Containers run as ids that /etc/passwd does not list."""
    try:
        getpass.getuser(), Path.home()
    except (KeyError, OSError, RuntimeError) as error:
        return f"user id {os.getuid()} has no name or no home here, DVC stops at it ({one_line(error)})"
    return ""


def _in_git_tree(folder: Path) -> bool:
    """Whether the folder belongs to a surrounding repository that does not ignore it."""
    if (folder / ".git").exists():
        return False  # the folder is itself a repository
    return _git(folder, "rev-parse", "--is-inside-work-tree") and not _git(folder, "check-ignore", "-q", str(folder))


def _git(folder: Path, *arguments: str) -> bool:
    return shutil.which("git") is not None and _ended(["git", *arguments], folder).returncode == 0


def _run(command: list[str], folder: Path) -> None:
    done = _ended(command, folder)
    if done.returncode != 0:
        said = one_line((done.stderr or done.stdout).partition("Having any troubles?")[0])[-300:]
        raise InputError(f"{folder}: `{' '.join(command[:3])}` failed: {said}")


def _ended(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # A git hook that calls this program sets GIT_DIR and similar variables: git would use the hook's repository.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
