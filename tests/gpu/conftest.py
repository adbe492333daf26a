"""Tests that need CUDA (`make test-gpu`): collected everywhere, skipped with one reason where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, is_there = Path(__file__).parent, torch.cuda.is_available()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            for said in ("Synchronization debug mode is a prototype", ".*Profiler clears events"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{said}"))  # torch's, of the tools that tests use
            if not is_there:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))
