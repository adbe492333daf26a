"""Imports go one way; the pipeline and the command line load no torch; each stage of the table is whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

# The layers of the core, lowest first. A part imports its own layer and those below it.
LAYERS = (
    {"hmsa_core", "hmsa_core.io"},
    {"hmsa_core.taxonomy"},
    # The names of trunks that settings know are those of the files in models/trunks; nothing of torch is loaded.
    {f"hmsa_core.{part}" for part in ("config", "models", "losses", "labels", "data", "metrics")},
    {"hmsa_core.leaks", "hmsa_core.lineage", "hmsa_core.runtime", "hmsa_core.spec"},
    {"hmsa_core.inference"},
    {"hmsa_core.training"},
    {"hmsa_core.job"},
)
SERVER = ("pipeline.inspector.server", "pipeline.inspector.export")
FOREIGN_TO_CORE = {"dvc", "prefect", "fastapi", "uvicorn", "starlette", "pipeline", "research", "examples"}


def _sources(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path, *, without_types: bool = False) -> Iterator[str]:
    """Names a module imports; `without_types` leaves those of TYPE_CHECKING blocks out."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    nodes = _at_run_time(tree) if without_types else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            yield from _at_run_time(node)


def _part(module: str) -> str:
    """`hmsa_core.labels.store.reader` -> `hmsa_core.labels`."""
    return ".".join(module.split(".")[:2])


def _layer(module: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if _part(module) in parts)


# The public API, `hmsa_core/__init__.py`, stands above all layers and loads its names when they are asked for.
@pytest.mark.parametrize(
    "path", [p for p in _sources("hmsa_core") if p.parent.name != "hmsa_core" or p.stem != "__init__"], ids=_module
)
def test_the_core_knows_nothing_of_the_pipeline_and_imports_downwards_only(path: Path) -> None:
    here = _layer(_module(path))
    for name in _imports(path):
        assert name.split(".")[0] not in FOREIGN_TO_CORE, f"{path}: imports {name}"
        if name.startswith("hmsa_core.") and (REPO / "hmsa_core" / name.split(".")[1]).exists():
            assert _layer(name) <= here, f"{path}: must not import {name}, which is above it"


def _cycles(packages: tuple[str, ...]) -> list[str]:
    """Cycles of imports, those inside functions counted, those for type checkers alone not."""
    sources = {_module(p): p for package in packages for p in _sources(package)}
    graph = {
        module: {n for n in _imports(path, without_types=True) if n in sources and n != module}
        for module, path in sources.items()
        if path.name != "__init__.py"  # packages look names up when they are asked for
    }
    found: list[str] = []
    state: dict[str, int] = {}

    def visit(module: str, trail: list[str]) -> None:
        state[module] = 1
        for other in sorted(graph.get(module, ())):
            if state.get(other) == 1:
                found.append(" -> ".join([*trail[trail.index(other) :], other]))
            elif other not in state:
                visit(other, [*trail, other])
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module, [module])
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert _cycles(("hmsa_core", "pipeline")) == []


@pytest.mark.parametrize("path", _sources("pipeline"), ids=_module)
def test_the_pipeline_holds_no_tensor_code(path: Path) -> None:
    tensor_code = [n for n in _imports(path) if n.split(".")[0] in {"torch", "torchvision", "safetensors"}]
    assert not tensor_code, f"{path}: imports {tensor_code}; start a job of hmsa_core instead"


def _loaded(code: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))"]
    return set(subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=True).stdout.split())


def test_the_command_line_starts_without_torch_numpy_or_pydantic() -> None:
    loaded = _loaded("import pipeline.cli.main")
    assert not loaded & {"torch", "numpy", "pydantic", "pyarrow", "cv2", "yaml", "dvc", "prefect"}


def test_a_stage_takes_its_lock_before_anything_heavy_is_imported() -> None:
    loaded = _loaded("import pipeline.cli.stage")
    assert not loaded & {"torch", "numpy", "pydantic", "pyarrow", "cv2", "yaml"}
    assert not _loaded("from pipeline import params; params.Params.of_profile('tiny')") & {"torch", "cv2", "pyarrow"}


def test_no_stage_and_no_params_module_loads_torch() -> None:
    names = [_module(p) for p in sorted((REPO / "pipeline" / "stages").glob("*.py"))]
    loaded = _loaded("import " + ", ".join([*names, "pipeline.params", "pipeline.init", "pipeline.launcher", *SERVER]))
    assert not loaded & {"torch", "torchvision"}


def test_every_subcommand_module_exists_and_starts_without_torch() -> None:
    from pipeline.cli.main import COMMANDS

    modules = [module for module, _ in COMMANDS.values()]
    assert "torch" not in _loaded(f"import {', '.join(modules)}")
    light = [f"pipeline.cli.{name}" for name in ("label", "predict", "evaluate")]
    assert not _loaded(f"import {', '.join(light)}") & {"torch", "numpy", "cv2", "pyarrow"}


def test_every_row_of_the_table_of_stages_has_a_module_a_section_and_a_version() -> None:
    from pipeline.params import Params, VersionsConfig
    from pipeline.stages import TABLE, module_of

    for row in TABLE:
        assert {"run", "disk_estimate"} <= set(dir(module_of(row.name)))
        assert row.section in Params.model_fields
        assert row.section in VersionsConfig.model_fields
