"""PNG pairs of NVIDIA's released labels, by city: ids and _prob.png, floor(255 p).

They have no 255 label: ignored pixels get the ignored id and probability 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from hmsa_core.labels.formats._folder import Files, update_folder
from hmsa_core.labels.formats._item import About, Item, Labels
from hmsa_core.labels.formats.cityscapes import IMAGE_ENDING, folder_of, refuse_twins, stem
from hmsa_core.labels.store.codes import EDGE_VALUES, NUM_CODES, ConfidenceCode
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.taxonomy import IGNORE

IMPORTED_BYTES = "released 8-bit"  # lineage entry `confidence` of a store made from _prob.png files


def write(out: Path, about: About, items: Iterator[Item], *, flat: bool = False) -> None:
    """`CITY/NAME_leftImg8bit.png` and `CITY/NAME_leftImg8bit_prob.png`; `flat`: no folders of cities."""
    refuse_twins(about.names)

    def files(item: Item) -> Files:
        folder = "" if flat else folder_of(about, item.name)
        prob = prob_of(about.store, item.label, item.code)
        begin = stem(item.name) + IMAGE_ENDING
        return {(folder, f"{begin}_prob.png"): prob, (folder, f"{begin}.png"): about.ids(item.label)}

    update_folder(out, about, items, files)


def sure_codes(store: LabelStore, name: str, code: Labels) -> Labels:
    """Codes of one image as they are exported, the highest one where people drew."""
    if store.kind == "raw":
        return code
    # A code says how sure the teacher was; what people drew has none, and is no guess to be dropped.
    return np.where(
        np.isin(store.read_source(name), (SOURCES["human"], SOURCES["alike"])), np.uint8(NUM_CODES - 1), code
    )


def prob_of(store: LabelStore, label: Labels, code: Labels) -> Labels:
    """Bytes of confidence of one image, from its label and codes as they are exported."""
    imported = store.lineage.get("confidence") == IMPORTED_BYTES
    # Ignored pixels get byte 0 too: readers that drop by confidence alone drop them.
    return np.where(label == IGNORE, np.uint8(0), prob_bytes_of_codes(code, imported=imported))


def prob_bytes_of_codes(code: Labels, *, imported: bool = False) -> Labels:
    """Bytes for codes: floor(255 edge), so that no pixel claims more than its confidence was.

    `imported`: the codes were made from such bytes. Then the largest byte of each code's cell is given. From 0.9 on it
    is the original byte; below, a cell of the code holds two or three bytes.
    """
    return _byte_table(imported)[code]


@cache
def _byte_table(imported: bool) -> Labels:
    table = np.floor(EDGE_VALUES * 255 + 1e-9).astype(np.uint8)
    if imported:
        bytes_ = np.arange(256)
        codes = ConfidenceCode().encode((bytes_ / 255).astype(np.float32))
        table[codes] = bytes_  # later and so larger bytes win
    return table
