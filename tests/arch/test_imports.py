"""Imports go one way; the pipeline and the command line load no torch; stages, dvc.yaml and commands agree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from research.ablation.code import group_files

REPO = Path(__file__).resolve().parents[2]

# What each part may import of our own packages (itself and everything to the right of its arrow).
BASE = {
    "hmsa_core",
    "hmsa_core.io.errors",
    "hmsa_core.io.atomic",
    "hmsa_core.io.locks",
    "hmsa_core.io.process",
    "hmsa_core.config",
    "hmsa_core.taxonomy",
}
LEAVES = {"models", "losses", "labels", "data", "metrics"}
BELOW_ENGINE = {f"hmsa_core.{leaf}" for leaf in LEAVES}
FOREIGN_TO_CORE = {"dvc", "prefect", "fastapi", "uvicorn", "starlette", "pipeline"}


def _sources(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path, *, at_start_only: bool = False) -> Iterator[str]:
    """Names a module imports; with `at_start_only` those outside functions and TYPE_CHECKING blocks."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    nodes = _top_level(tree) if at_start_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_typing:
            continue
        yield node
        yield from _top_level(node)


def _part(module: str) -> str:
    """`hmsa_core.labels.store.reader` -> `hmsa_core.labels`."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("path", _sources("hmsa_core"), ids=_module)
def test_the_core_knows_nothing_of_the_pipeline_and_imports_downwards_only(path: Path) -> None:
    here = _part(_module(path))
    allowed = {here} | BASE
    if here == "hmsa_core.runtime":
        allowed |= BELOW_ENGINE
    for name in _imports(path):
        assert name.split(".")[0] not in FOREIGN_TO_CORE, f"{path}: imports {name}"
        is_own = name.startswith("hmsa_core.") and (REPO / "hmsa_core" / name.split(".")[1]).exists()
        if here.removeprefix("hmsa_core.") in LEAVES and is_own and _part(name) in BELOW_ENGINE:
            continue  # leaves may use each other (labels read class tables of data, ...) but never the engine
        if is_own:
            assert _part(name) in allowed, f"{path}: {here} must not import {name}"


@pytest.mark.parametrize("path", _sources("pipeline"), ids=_module)
def test_the_pipeline_holds_no_tensor_code(path: Path) -> None:
    tensor_code = [n for n in _imports(path) if n.split(".")[0] in {"torch", "torchvision", "safetensors"}]
    assert not tensor_code, f"{path}: imports {tensor_code}; start a job of hmsa_core.runtime instead"


def _loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        cwd=REPO,
        check=True,
    )
    return set(done.stdout.split())


def test_the_command_line_starts_without_torch_numpy_or_pydantic() -> None:
    loaded = _loaded("import pipeline.cli.main")
    assert not loaded & {"torch", "numpy", "pydantic", "pyarrow", "cv2", "yaml", "dvc", "prefect"}


def test_a_stage_takes_its_lock_before_anything_heavy_is_imported() -> None:
    loaded = _loaded("import pipeline.cli.stage")
    assert not loaded & {"torch", "numpy", "pydantic", "pyarrow", "cv2", "yaml"}


def test_no_stage_and_no_params_module_loads_torch() -> None:
    names = [_module(p) for p in sorted((REPO / "pipeline" / "stages").glob("*.py"))]
    loaded = _loaded("import " + ", ".join([*names, "pipeline.params", "pipeline.init", "pipeline.launcher"]))
    assert not loaded & {"torch", "torchvision"}


def test_every_subcommand_module_exists_and_starts_without_torch() -> None:
    from pipeline.cli.main import COMMANDS

    modules = ", ".join(module for module, _ in COMMANDS.values())
    assert "torch" not in _loaded(f"import {modules}")


def test_stages_dvc_yaml_params_and_the_command_name_the_same_nine_stages() -> None:
    from pipeline.params import Params, VersionsConfig
    from pipeline.stages import STAGES, section_of

    assert len(STAGES) == 9
    dvc = yaml.safe_load((REPO / "dvc.yaml").read_text())
    assert tuple(dvc["stages"]) == STAGES
    for name, stage in dvc["stages"].items():
        assert stage["cmd"] == f"exec autolabel stage {name}"
        assert (REPO / "pipeline" / "stages" / f"{section_of(name)}.py").is_file()
        assert section_of(name) in Params.model_fields
        assert section_of(name) in VersionsConfig.model_fields


# What a training, an evaluation or labels are made with and that decides none of their numbers: files, processes,
# settings (they are in a cell's key themselves), logs.
DECIDES_NOTHING = {
    "hmsa_core": "atomic config digested errors locks process trees",
    "hmsa_core.data": "containers containers_jpeg headers index layout spec tables",
    "hmsa_core.runtime": "clock context distributed job lineage logs memory meters outcome progress slurm spec state validate",
    "hmsa_core.labels": "final_counts manifest parquet plans receipts schema sealed shards shift sidecar spec store verify",
}


@pytest.mark.parametrize(
    ("groups", "roots"),
    [
        (("train",), ["hmsa_core.training.train"]),
        (("evaluate", "labels", "train"), ["hmsa_core.inference.evaluate"]),
        (
            ("labels", "evaluate", "train"),
            ["hmsa_core.labels.thresholds.measure", "hmsa_core.labels.finalise", "hmsa_core.inference.infer"],
        ),
    ],
)
def test_what_decides_a_cell_of_an_ablation_is_in_its_key(groups: tuple[str, ...], roots: list[str]) -> None:
    """A file that is imported anew is named in the key's groups, or above."""
    known = {_module(REPO / path) for path in group_files(groups)}
    passed_over = {f"{package}.{name}" for package, names in DECIDES_NOTHING.items() for name in names.split()}
    found: set[str] = set()
    todo = list(roots)
    while todo:
        module = todo.pop()
        path = REPO / (module.replace(".", "/") + ".py")
        if module not in found | passed_over and path.is_file() and module.startswith("hmsa_core."):
            found.add(module)
            todo += _imports(path)
    assert found - known == set()
