"""Hugging Face `datasets`: Parquet files with Image columns, `id2label.json` and a dataset card.

    datasets.load_dataset(OUT)   columns image, label (trainIds, 255 = ignore), confidence (codes), name, city

`confidence.json` has the edges of the codes: code k means a confidence of at least edges[k]. Nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from hmsa_core.data.decode import read_label_bytes
from hmsa_core.io.atomic import write_json, write_text
from hmsa_core.io.errors import InputError, StoreError
from hmsa_core.labels.formats._item import About, Item
from hmsa_core.labels.formats._returned import Exported, Returned
from hmsa_core.labels.store.codes import EDGES
from hmsa_core.labels.store.format import ParquetSink, full_lineage, parquet_errors, png_bytes

_FILE_IMAGES = 256
_GROUP_BYTES = 1 << 30  # of names and labels in a row group, as its footer says
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {
    **{name: {"_type": "Image"} for name in ("image", "label", "confidence")},
    **{name: {"dtype": "string", "_type": "Value"} for name in ("name", "city")},
}
_SCHEMA = pa.schema(
    [(name, _IMAGE if of["_type"] == "Image" else pa.string()) for name, of in _FEATURES.items()],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},  # as `datasets` writes and reads it
)


def write(folder: Path, about: About, items: Iterator[Item]) -> None:
    """`data/*.parquet`, `id2label.json`, `confidence.json` and `README.md`."""
    images = 0
    for number in count():
        first = next(items, None)
        if first is None:
            break
        with ParquetSink(folder / "data" / f"train-{number:05d}.parquet", _SCHEMA) as sink:
            for item in chain([first], islice(items, _FILE_IMAGES - 1)):
                city = str(about.store.row(item.name)["city"])
                sink.append(pa.Table.from_pylist([_row(item, city)], schema=_SCHEMA))
                images += 1
            sink.commit(folder)
    write_json(folder / "id2label.json", {str(i): name for i, name in enumerate(about.classes.classes)})
    write_json(folder / "confidence.json", {"edges": [str(edge) for edge in EDGES]})
    write_text(folder / "README.md", _card(about, images))


def _row(item: Item, city: str) -> dict[str, Any]:
    label, code = png_bytes(item.label), png_bytes(item.code)
    return {
        "image": {"bytes": item.picture, "path": item.file},
        "label": {"bytes": label, "path": f"{item.name}.png"},
        "confidence": {"bytes": code, "path": f"{item.name}_confidence.png"},
        "name": item.name,
        "city": city,
    }


def _card(about: About, images: int) -> str:
    """The dataset card: what the labels are, what made them, and the policy's figures by class."""
    head = {
        "task_categories": ["image-segmentation"],
        "tags": ["semantic-segmentation", "pseudo-labels"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    }
    lineage = full_lineage(about.store.lineage)
    facts = [f"- {key}: `{json.dumps(lineage[key], ensure_ascii=False)}`" for key in sorted(lineage)]
    stored = (about.store.manifest["policy"] or {}).get("thresholds", {})
    entries = {entry.name: entry for entry in about.policy.entries} if about.policy else {}
    rows = []
    for i, name in enumerate(about.classes.classes):
        threshold, known = stored.get(name, "none"), "as stored" if stored else "all labels"
        if name in entries:
            threshold, known = entries[name].threshold, json.dumps(entries[name].evidence, ensure_ascii=False)
        rows.append(f"| {i} | {name} | {threshold or 'withheld'} | {known.replace('|', '/')} |")
    target = (about.policy.evidence.get("target") or about.policy.settings.get("target")) if about.policy else None
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            "# Labels of a teacher network",
            f"{images} images with {len(rows)} classes of {about.classes.name}. A network made the labels"
            f"{'' if about.store.kind == 'raw' else ', and they are merged with those of people'}; 255 is ignored.",
            f"\nPrecision that the thresholds aim at: {target if target is not None else 'not stated'}. Policy: "
            f"{about.policy.digest if about.policy else (about.store.manifest['policy'] or {}).get('digest', 'none')}.",
            "\n| id | class | threshold | evidence |\n|---|---|---|---|",
            *rows,
            "\n## Made by",
            *facts,
            "\nThe licence of the pictures is that of their owner; this card states none.\n",
        ]
    )


def read(path: Path, exported: Exported) -> Iterator[Returned]:
    """Parquet files of a folder (or one file) with the columns `name` and `label`, as of `Dataset.to_parquet`."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no Parquet file below this folder")
    for file in files:
        try:
            with parquet_errors(file), pq.ParquetFile(file, page_checksum_verification=True) as table:
                yield from _of_file(file, table, exported)
        except StoreError as error:
            raise InputError(error.message, hint="write it again") from error


def _of_file(file: Path, table: pq.ParquetFile, exported: Exported) -> Iterator[Returned]:
    # Not by Arrow's types: pandas, polars and duckdb have other ones of text and bytes.
    if not {"name", "label.bytes"} <= {table.schema.column(i).path for i in range(len(table.schema))}:
        raise InputError(f"{file}: expected the columns name (string) and label (Image)")
    classes = exported.classes.of_train_ids()
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        columns = [about.column(i) for i in range(about.num_columns)]
        wanted = [c for c in columns if c.path_in_schema.split(".")[0] in ("name", "label")]
        if sum(c.total_uncompressed_size for c in wanted) > _GROUP_BYTES:
            raise InputError(f"{file}: row group {group} is too large", hint="write fewer rows a group")
        # A row at a time: a dictionary page can repeat one large label in every row.
        for rows in table.iter_batches(1, row_groups=[group], columns=["name", "label"], use_threads=False):
            (row,) = rows.to_pylist()
            name = row["name"]
            if name not in exported.images:
                raise InputError(f"{file}: image {str(name)[:200]!r} is not of the export {exported.path}")
            height, width = exported.size(name)
            where = f"{file} (label of {name})"
            data = (row["label"] or {}).get("bytes")
            if data is None:
                raise InputError(f"{where}: has no bytes", hint="write the labels themselves into the table, no paths")
            label = read_label_bytes(data, where, classes, max_pixels=height * width)
            yield Returned(name, exported.check(name, label, where))
