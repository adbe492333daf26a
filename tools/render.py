"""Write what follows from the table of stages and the typed settings: dvc.yaml, params.yaml, a table in docs/stages.md.

    python -m tools.render

Run it after a change of `pipeline.workspace.table.TABLE`, a description or profile demo; tests/arch fails until then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.workspace.dvc_yaml import render_dvc_yaml
from pipeline.workspace.params import Params
from pipeline.workspace.settings import profile_text
from pipeline.workspace.table import TABLE

REPO = Path(__file__).resolve().parents[1]
_TABLE = re.compile(r"(?<=<!-- table of stages: tools.render -->\n).*?(?=<!-- end -->)", re.DOTALL)


def stage_table() -> str:
    """The stages as a Markdown table."""
    rows = ["|stage|what it does|reads|settings besides its own|writes|", "|---|---|---|---|---|"]
    rows += [f"|`{r.name}`|{r.description}|{_names(r.deps)}|{_names(r.params)}|{_names(r.outs)}|" for r in TABLE]
    return "".join(f"{row}\n" for row in rows)


def _names(names: Iterable[str]) -> str:
    short = (name.removeprefix("data/index/").removesuffix(".parquet").strip("${}") for name in names)
    return ", ".join(f"`{name}`" for name in short)


def rendered() -> dict[Path, str]:
    """Each file that follows, with the text that it should have."""
    page = REPO / "docs" / "stages.md"
    return {
        REPO / "dvc.yaml": render_dvc_yaml(Params.of_profile("demo").data),
        REPO / "params.yaml": profile_text("demo"),
        page: _TABLE.sub(lambda _: stage_table(), page.read_text("utf-8")),
    }


if __name__ == "__main__":
    for path, text in rendered().items():
        path.write_text(text, "utf-8")
