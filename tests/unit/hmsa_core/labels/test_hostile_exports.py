"""Two hundred damaged or hostile files that come back from other tools: each is refused by name and costs little."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from PIL import Image

from hmsa_core.io.errors import InputError
from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.corrections import Exported, bring_back
from hmsa_core.labels.exporting import export_store
from hmsa_core.labels.review import ReviewFile
from tests.support.hostile_exports import TOOLS, hostile
from tests.support.label_maps import maps, opened

SEED, EACH, SHAPE = 42, 40, (24, 40)  # forty drawn files of each of the five formats, and some fixed ones
NAMES = [f"drive{i % 3} & <{i}>" for i in range(6)]
MOST_MB = 400  # that a file may cost: far below what the bombs among them unpack to


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    folder = tmp_path_factory.mktemp("store")
    with LabelStoreWriter(folder / "raw", {"teacher": "0" * 64}) as writer:
        for i, name in enumerate(NAMES):
            Image.new("RGB", SHAPE[::-1], (i, i, i)).save(folder / f"{name}.png")
            writer.add(name, *maps(i, SHAPE))
    return opened(folder / "raw")


@pytest.mark.parametrize("fmt", TOOLS)
def test_forty_damaged_or_hostile_files_of_a_format_are_refused_by_name(
    store: LabelStore, tmp_path: Path, fmt: str
) -> None:
    export_store(store, tmp_path / "out", fmt, picture=lambda name: store.path.parent / f"{name}.png")
    exported, before = Exported(tmp_path / "out"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted, nameless = [], []
    for number, (kind, returned) in enumerate(hostile(fmt, tmp_path / "out", tmp_path / "hostile", EACH, SEED)):
        case = f"{number}: {kind}"
        try:
            bring_back(returned, exported, store, by="kim")
        except InputError as error:
            printed, words = error.message, kind.partition(" -> ")[2]
            if not printed.startswith(str(tmp_path / "hostile")) or len(printed) > 1000 or words not in printed:
                nameless.append(f"{case}: {printed}")
        else:
            accepted.append(case)
    assert (accepted, nameless) == ([], [])
    assert not ReviewFile(store.path).path.exists(), "nothing of a refused file is taken"
    assert not list(tmp_path.parent.rglob("evil.txt"))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MB
