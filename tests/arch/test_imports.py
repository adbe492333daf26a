"""Imports go one way; the pipeline and the command line load no torch; each stage of the table is whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

# Each package's folders, lowest first, as docs/design.md lists them. A module belongs to the longest name that it begins
# with and imports its own folder and those before it.
LAYERS = {
    line.split()[0]: line.split()[1:]
    for line in (REPO / "docs" / "design.md")
    .read_text("utf-8")
    .split("<!-- layers -->\n```\n")[1]
    .split("```")[0]
    .splitlines()
}
SERVER = ("pipeline.page.server", "pipeline.page.files")
FOREIGN_TO_CORE = {"dvc", "prefect", "fastapi", "uvicorn", "starlette", "pipeline", "research", "examples"}


def _sources(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for package in LAYERS for path in _sources(package)}


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


def _layer(module: str) -> int:
    package, _, rest = module.partition(".")
    hits = [i for i, part in enumerate(LAYERS[package]) if f"{rest}.".startswith(f"{part}.")]
    assert hits, f"{module} lies in no folder of docs/design.md"
    return max(hits, key=lambda i: len(LAYERS[package][i]))


def _is_module(name: str) -> bool:
    path = REPO.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


# The public API, `hmsa_core/__init__.py`, stands above all layers and loads its names when they are asked for. Imports
# inside functions and those for type checkers count like all others.
@pytest.mark.parametrize(
    "path", [p for package in LAYERS for p in _sources(package) if p.parent.name != package], ids=_module
)
def test_a_folder_imports_only_folders_that_are_listed_before_it(path: Path) -> None:
    module = _module(path)
    package = module.split(".")[0]
    for name in _imports(path):
        if name.startswith(f"{package}.") and _is_module(name):
            assert _layer(name) <= _layer(module), f"{path}: must not import {name}, which is above it"


@pytest.mark.parametrize("path", _sources("hmsa_core"), ids=_module)
def test_the_core_knows_nothing_of_the_pipeline(path: Path) -> None:
    for name in _imports(path):
        assert name.split(".")[0] not in FOREIGN_TO_CORE, f"{path}: imports {name}"


@pytest.mark.parametrize("package", LAYERS)
def test_no_module_lies_loose_and_no_folder_is_missing_in_the_list(package: str) -> None:
    loose = {p.stem for p in (REPO / package).glob("*.py")} - {"__init__"}
    folders = {p.parent.name for p in (REPO / package).glob("*/__init__.py")}
    assert folders | loose == {part.split(".")[0] for part in LAYERS[package]}
    assert not (package == "pipeline" and loose)


def _cycles(graph: dict[str, set[str]]) -> list[str]:
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


# Imports inside functions count.
def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {n for n in _imports(path, without_types=True) if n in MODULES and n != module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"  # packages look names up when they are asked for
    }
    assert _cycles(graph) == []


def _folder(module: str) -> str:
    """The folder of a module; a module that is listed beside the folders of its package stands for itself."""
    return module if MODULES[module].parent.name in LAYERS else _module(MODULES[module].parent)


# Imports inside functions and those for type checkers count, and so do those between a folder and its sub-folder.
def test_no_folder_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if module not in LAYERS:  # the public API stands above all
            imported = {_folder(name) for name in _imports(path) if name in MODULES and name not in LAYERS}
            graph.setdefault(_folder(module), set()).update(imported - {_folder(module)})
    assert _cycles(graph) == []


@pytest.mark.parametrize("path", _sources("pipeline"), ids=_module)
def test_the_pipeline_holds_no_tensor_code(path: Path) -> None:
    tensor_code = [n for n in _imports(path) if n.split(".")[0] in {"torch", "torchvision", "safetensors"}]
    assert not tensor_code, f"{path}: imports {tensor_code}; start a job of hmsa_core instead"


def _loaded(code: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))"]
    return set(subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=True).stdout.split())


def test_the_command_line_starts_without_torch_numpy_or_pydantic() -> None:
    loaded = _loaded("import pipeline.cli.main")
    assert not loaded & {"torch", "numpy", "pydantic", "pyarrow", "cv2", "yaml", "ruamel.yaml", "dvc", "prefect"}


def test_a_stage_takes_its_lock_before_anything_heavy_is_imported() -> None:
    loaded = _loaded("import pipeline.cli.stage")
    assert not loaded & {"torch", "numpy", "pydantic", "pyarrow", "cv2", "yaml", "ruamel.yaml"}
    assert not _loaded("from pipeline.workspace import params; params.Params.of_profile('tiny')") & {
        "torch",
        "cv2",
        "pyarrow",
    }


def test_no_stage_and_no_params_module_loads_torch() -> None:
    names = [_module(p) for p in sorted((REPO / "pipeline" / "stages").glob("*.py"))]
    loaded = _loaded(
        "import "
        + ", ".join(
            [*names, "pipeline.workspace.params", "pipeline.workspace.new_workspace", "pipeline.jobs.launcher", *SERVER]
        )
    )
    assert not loaded & {"torch", "torchvision"}


def test_every_subcommand_module_exists_and_starts_without_torch() -> None:
    from pipeline.cli.main import COMMANDS

    modules = [module for module, _ in COMMANDS.values()]
    assert "torch" not in _loaded(f"import {', '.join(modules)}")
    light = [f"pipeline.cli.{name}" for name in ("label", "predict", "evaluate")]
    assert not _loaded(f"import {', '.join(light)}") & {"torch", "numpy", "cv2", "pyarrow"}


def test_every_row_of_the_table_of_stages_has_a_module_and_a_section() -> None:
    from pipeline.stages import module_of
    from pipeline.workspace.params import Params
    from pipeline.workspace.table import TABLE

    for row in TABLE:
        assert {"run", "disk_estimate"} <= set(dir(module_of(row.name)))
        assert row.section in Params.model_fields
