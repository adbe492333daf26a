"""MkDocs hooks: the start page from README.md, the reference pages from the commands and the typed settings.

Links to files outside of docs/ become their paths: the site holds pages only. A link to a file that is not there fails.
"""

from __future__ import annotations

import argparse
import importlib
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pipeline.cli.main import COMMANDS
from pipeline.workspace.params import Params
from pipeline.workspace.settings import annotated
from tools.lock import REPO

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")
_README = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    made = {"index.md": _start(), "commands.md": _commands(), "settings.md": _settings()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Show links to files of the repository as their paths."""

    def path(found: re.Match[str]) -> str:
        if not (REPO / found[2]).exists():
            raise PluginError(f"{page.file.src_uri}: link to {found[2]}, which is not there")
        return found[1] if "`" in found[1] else f"{found[1]} (`{found[2]}`)"

    return _OUTSIDE.sub(path, markdown)


def _start() -> str:
    def inside(found: re.Match[str]) -> str:
        target = found[1]
        return f"]({target.removeprefix('docs/')})" if target.startswith("docs/") else f"](../{target})"

    return _README.sub(inside, (REPO / "README.md").read_text("utf-8"))


def _commands() -> str:
    parts = ["# Commands\n\nWhat `autolabel COMMAND --help` prints.\n"]
    for name, (module_name, _) in COMMANDS.items():
        module = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(
            prog=f"autolabel {name}",
            description=module.__doc__,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110),
        )
        module.add_arguments(parser)
        parts.append(f"## autolabel {name}\n```text\n{parser.format_help()}```\n")
    return "\n".join(parts)


def _settings() -> str:
    text = annotated(Params.of_profile("cityscapes")).lstrip()
    return f"# Settings\n\n`autolabel config show` of profile `cityscapes`.\n\n```yaml\n{text}```\n"
