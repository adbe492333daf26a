"""One small generated set, shared by the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.streets import City, DemoSpec, generate

SMALL = DemoSpec(
    seed=5,
    size=(128, 64),
    cities=(
        City("train", "aachen", 3),
        City("train", "hamburg", 1, 2),
        City("val", "lindau", 2),
        City("test", "berlin", 2),
        City("train_extra", "bad-honnef", 3),
        City("train_extra", "augsburg", 2),
    ),
    vistas_training=4,
    vistas_validation=1,
    vistas_sizes=((96, 72), (72, 96)),
    vistas_v2=True,
    defects=True,
)


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `cityscapes` and `mapillary` of the small spec."""
    out = tmp_path_factory.mktemp("demo") / "set"
    generate(SMALL, out)
    return out
