"""FiftyOne: the layout of its type ImageSegmentationDirectory, with confidences next to it.

Masks hold trainId + 1: FiftyOne shows 0 as background, here what is ignored. `confidence/` holds floor(255 p) as for
the released layout; `open_in_fiftyone.py` adds it as a Heatmap field.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from hmsa_core.data.decode import read_label
from hmsa_core.data.walk import LABEL_SUFFIXES, stem_of, walk
from hmsa_core.io.atomic import write_bytes, write_text
from hmsa_core.io.errors import InputError
from hmsa_core.labels.formats._item import About, Item, shifted
from hmsa_core.labels.formats._returned import Exported, Returned
from hmsa_core.labels.formats.released import prob_of
from hmsa_core.labels.store.format import png_bytes

_LOG = logging.getLogger(__name__)
_SCRIPT = '''"""Open this export in FiftyOne: `python open_in_fiftyone.py`."""

from pathlib import Path

import fiftyone as fo

HERE = Path(__file__).resolve().parent
dataset = fo.Dataset.from_dir(
    dataset_dir=str(HERE), dataset_type=fo.types.ImageSegmentationDirectory, label_field="autolabel"
)
dataset.mask_targets["autolabel"] = {targets}
for sample in dataset.iter_samples(autosave=True):
    heat = HERE / "confidence" / (Path(sample.filepath).stem + ".png")
    sample["confidence"] = fo.Heatmap(map_path=str(heat), range=[0, 255])
dataset.save()

if __name__ == "__main__":
    fo.launch_app(dataset).wait()
'''


def write(folder: Path, about: About, items: Iterator[Item]) -> None:
    """`data/`, `labels/`, `confidence/` and the script."""
    targets = {i + 1: name for i, name in enumerate(about.classes.classes)}
    write_text(folder / "open_in_fiftyone.py", _SCRIPT.replace("{targets}", repr(targets)))
    for item in items:
        write_bytes(folder / "data" / item.file, item.picture)
        ids = shifted(item.label)
        write_bytes(folder / "labels" / f"{item.name}.png", png_bytes(ids))
        write_bytes(folder / "confidence" / f"{item.name}.png", png_bytes(prob_of(about.store, item.label, item.code)))


def read(path: Path, exported: Exported) -> Iterator[Returned]:
    """Masks of `labels/` (or a folder of such masks, as FiftyOne's export of the type writes them)."""
    folder = path / "labels" if (path / "labels").is_dir() else path
    if not folder.is_dir():
        raise InputError(f"{path}: no folder of masks")
    count = exported.classes.num_classes
    classes = exported.classes.with_ids(range(1, count + 1), (0,))
    there = walk(folder, LABEL_SUFFIXES)
    for note in there.notes():
        _LOG.warning("%s: %s", folder, note)
    for file in there.paths():
        name = stem_of(file)
        if name not in exported.images:
            raise InputError(f"{file}: is no image of the export {exported.path}")
        height, width = exported.size(name)
        label = read_label(file, classes, max_pixels=height * width)
        yield Returned(name, exported.check(name, label, str(file)))
