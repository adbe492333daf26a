"""Make a workspace: params.yaml of a profile, dvc.yaml, git and DVC set up, demo data generated."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, InputError, one_line
from pipeline.nightly.registry import TEACHER_STAGE
from pipeline.params import PROFILES, Params
from pipeline.settings import profile_text
from pipeline.stages import PRETRAIN_ROOT, TABLE
from pipeline.strict_yaml import Document, read_yaml

GENERATED = ("tiny", "demo")  # profiles whose data `autolabel demo-data` makes
CAMVID_ENV = "AUTOLABEL_CAMVID"
_PACKAGE = Path(__file__).resolve().parent
_LOG = logging.getLogger(__name__)
_UNFINISHED = ".autolabel-init"  # there while a workspace is being made: a killed `init` can be repeated
_DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n    autostage = true\n"
_IDENTITY = ("-c", "user.name=autolabel", "-c", "user.email=autolabel@localhost", "-c", "commit.gpgsign=false")


@dataclass(frozen=True)
class InitRequest:
    """What `autolabel init` was asked for."""

    folder: Path
    profile: str
    data: Path | None = None  # root of the target data set (tiny, demo: a folder made by `demo-data`)
    pretrain_data: Path | None = None
    make_data: bool = True
    deterministic: bool = False  # settings of the runtime do not depend on this machine


def init_workspace(request: InitRequest) -> bool:
    """Make the workspace; False when it was already there (then nothing is changed).

    After a kill, `init` continues: only what is missing is written, for people may have worked there since.

    Raises:
        ConfigError: unknown profile. InputError: the folder holds other things, or the data are not there.
    """
    if request.profile not in PROFILES:
        raise ConfigError(f"unknown profile {request.profile!r}: expected one of {', '.join(PROFILES)}")
    folder = request.folder.resolve()
    if _is_finished(folder, request.profile):
        _check_same_roots(request, folder)
        return False
    if (folder / "params.yaml").exists():  # of an unfinished one
        _check_same_roots(request, folder)
        roots = {}
    else:
        roots = _data_roots(request, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _UNFINISHED).exists():
        atomic.write_text(folder / _UNFINISHED, request.profile + "\n")
    _write_files(folder, request, roots)
    _set_up_version_control(folder)
    if request.profile in GENERATED and request.make_data and _is_own_data(folder, request.profile):
        generate_data(folder / "data" / "demo", request.profile)
    (folder / _UNFINISHED).unlink()
    return True


def generate_data(out: Path, profile: str, *, workers: int = 2) -> None:
    """Generate a profile's street scenes in the folder `out` with the checkout's generator, `examples/streets`.

    Raises:
        ConfigError: the package was installed without a checkout; the generator is no part of it.
    """
    checkout = _PACKAGE.parent
    if not (checkout / "examples" / "streets").is_dir():
        raise ConfigError(
            f"profile {profile}: the street generator is not part of the installed package",
            hint="install from a clone of the repository (`make setup`), or give your own images with --data",
        )
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    streets = importlib.import_module("examples.streets")
    streets.generate(streets.default_spec(profile), out, workers)


def render_dvc_yaml(*, has_pretrain: bool) -> str:
    """dvc.yaml of a workspace from the table of stages; a pretraining root is a dependency only where there is one."""
    lines = [*_template("dvc-head.txt").splitlines(), "stages:"]
    for row in TABLE:
        deps = [dep for dep in row.deps if has_pretrain or dep != PRETRAIN_ROOT]
        lines += [f"  {row.name}:", f"    desc: {row.description}", f"    cmd: exec autolabel stage {row.name}"]
        for key, values in (
            ("deps", deps),
            ("params", row.watched),
            ("outs", row.outs),
            ("metrics", [f"{row.metrics}: {{cache: false}}"]),
            ("plots", row.plots),
        ):
            lines += [f"    {key}:", *(f"      - {value}" for value in values)] if values else []
        lines.append("")
    return "\n".join(lines)


def _template(name: str) -> str:
    return _PACKAGE.joinpath("templates", name).read_text("utf-8")


def _is_finished(folder: Path, profile: str) -> bool:
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder")
    names = {p.name for p in folder.iterdir()} - {".git"}  # a fresh repository is as good as an empty folder
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
    """An unfinished workspace keeps its first profile: files of two profiles do not fit together."""
    begun = one_line((folder / _UNFINISHED).read_text("utf-8", errors="replace"))
    if begun != profile:
        there = f"of profile {begun}, not {profile}" if begun else "that names no profile"
        mend = f"--profile {begun} goes on with it; or choose another folder" if begun else "choose another folder"
        raise InputError(f"{folder}: holds an unfinished workspace {there}", hint=mend)


def _check_same_roots(request: InitRequest, folder: Path) -> None:
    """A path that is given again must be the one in use: it would be ignored in silence."""
    if request.data is None and request.pretrain_data is None:
        return
    document = read_yaml(folder / "params.yaml")
    for name, root in _data_roots(request, folder).items():
        used = _root_in(document, name)
        if used is None or (folder / str(used)).resolve() != (folder / root).resolve():
            raise InputError(
                f"{folder}: is a workspace already, its data.{name}.root is {used}, not {root}",
                hint=f"change data.{name}.root in its params.yaml, or choose another folder",
            )


def _root_in(document: Document, name: str) -> object:
    """data.NAME.root as it is written there; None where it is not."""
    here: object = document.values
    for key in ("data", name, "root"):
        here = here.get(key) if isinstance(here, dict) else None
    return here


def _data_roots(request: InitRequest, folder: Path) -> dict[str, str]:
    """Values for data.target.root and data.pretrain.root where they differ from the profile's own."""
    roots: dict[str, str] = {}
    if request.profile in GENERATED and request.data is not None:
        base = _existing(request.data)
        for part in ("cityscapes", "mapillary"):
            if not (base / part).is_dir():
                raise InputError(
                    f"{base}: no folder {part}; profile {request.profile} takes what `autolabel demo-data` made",
                    hint="for your own images: --no-data, then set data.target in params.yaml (docs/own-data.md)",
                )
        roots = {"target": str(base / "cityscapes"), "pretrain": str(base / "mapillary")}
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
    default = (_PACKAGE.parent / ".." / "shared" / "camvid").resolve()
    if not (default / "splits.json").is_file():
        raise InputError(f"{default}: CamVid is not there", hint=f"give its folder: --data PATH, or {CAMVID_ENV}=PATH")
    # Relative, so that checkout and data can move together.
    return os.path.relpath(default, folder)


def _write_files(folder: Path, request: InitRequest, roots: dict[str, str]) -> None:
    """Write each file that is not there yet; one that is there is whole, and may be somebody's work by now."""
    profile, data = request.profile, {name: {"root": root} for name, root in roots.items()}
    files = {
        "params.yaml": profile_text(profile, data, deterministic=request.deterministic),
        "dvc.yaml": render_dvc_yaml(has_pretrain=Params.of_profile(profile).data.pretrain is not None),
        ".gitignore": _template("gitignore"),
        ".dvcignore": _template("dvcignore"),
        "README.md": _template("README.md").replace("@PROFILE", profile),
        "policies/README.md": _template("policies.md"),
        # `autolabel serve` appends to it. Its first line says nothing: DVC warns about an empty file all the time.
        "labels/raw.review.jsonl": '{"id": "0", "name": "", "withdraws": ""}\n',
        "models/current.json": json.dumps({"teacher": TEACHER_STAGE}, indent=1) + "\n",
    }
    for name, text in files.items():
        if not (folder / name).exists():
            atomic.write_text(folder / name, text)


def _is_own_data(folder: Path, profile: str) -> bool:
    """Whether params.yaml names the target data that are generated, as its profile does."""
    return _root_in(read_yaml(folder / "params.yaml"), "target") == Params.of_profile(profile).data.target.root


def _set_up_version_control(folder: Path) -> None:
    if shutil.which("git") is None:
        _LOG.warning("git is not installed: the workspace works, but `dvc metrics diff` and `dvc exp` need it")
    own_git = shutil.which("git") is not None and not _in_git_tree(folder)
    if own_git and not (folder / ".git").exists():
        _run(["git", "init", "-q", "-b", "main"], folder)
    _set_up_dvc(folder)
    if own_git and not _has_commit(folder):
        _run(["git", "add", "-A"], folder)
        _run(["git", *_IDENTITY, "commit", "-q", "--no-verify", "-m", "Workspace"], folder)


def _set_up_dvc(folder: Path) -> None:
    if importlib.util.find_spec("dvc") is None:
        _LOG.warning("DVC is not installed: run the stages one by one with `autolabel stage NAME`")
        return
    if (folder / ".dvc" / "config").exists() or (not (folder / ".git").exists() and _dvc_above(folder)):
        return
    options = [] if (folder / ".git").exists() else ["--subdir"] if _git(folder, "rev-parse") else ["--no-scm"]
    shutil.rmtree(folder / ".dvc", ignore_errors=True)
    _run([sys.executable, "-m", "dvc", "init", "-q", *options], folder)
    atomic.write_text(
        folder / ".dvc" / "config", _DVC_CONFIG + ("" if "--no-scm" not in options else "    no_scm = true\n")
    )


def _dvc_above(folder: Path) -> bool:
    return any((parent / ".dvc").is_dir() for parent in folder.parents)


def _in_git_tree(folder: Path) -> bool:
    """Whether the folder belongs to a surrounding repository (one that git ignores does not)."""
    if (folder / ".git").exists():
        return False  # it is a repository of its own
    return _git(folder, "rev-parse", "--is-inside-work-tree") and not _git(folder, "check-ignore", "-q", str(folder))


def _has_commit(folder: Path) -> bool:
    return _git(folder, "rev-parse", "-q", "--verify", "HEAD")


def _git(folder: Path, *arguments: str) -> bool:
    if shutil.which("git") is None:
        return False
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, env=_clean_env(), capture_output=True, check=False).returncode == 0


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=_clean_env(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = one_line(done.stderr or done.stdout)[-300:]
        raise InputError(f"{folder}: `{' '.join(command[:3])}` failed: {said}")


def _clean_env() -> dict[str, str]:
    # A caller's hook sets GIT_DIR and friends: they would point our commands at its repository.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return env | {"DVC_NO_ANALYTICS": "1"}
