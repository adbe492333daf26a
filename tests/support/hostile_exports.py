"""Files that came back from other tools damaged, or that mean harm: some for each format, drawn with a seed.

    for kind, returned in hostile(fmt, out, folder, count, seed): ...   `returned` is what the import is given

`out` is an export of ours, which people would have corrected. Every file differs from a good one in a single place.
A kind that reads "what -> words" is refused with these words.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Maker = Callable[[Path, random.Random], Path]


def hostile(fmt: str, out: Path, folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """`count` drawn files in turn, then each fixed one; each in a folder of its own, which is taken away afterwards."""
    makers = _MAKERS[fmt] | _FIXED[fmt]
    for number, kind in enumerate([*islice(cycle(_MAKERS[fmt]), count), *_FIXED[fmt]]):
        place = Path(shutil.copytree(out, folder / f"{fmt}-{number}"))
        yield kind, makers[kind](place, random.Random(f"{seed} {fmt} {number}"))
        shutil.rmtree(place)


# -- bytes -------------------------------------------------------------------------------------------


def _truncated(path: Path, rng: random.Random) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) * 95 // 100)])
    return path


def _high_bit(path: Path, rng: random.Random) -> Path:
    """One byte of a text that is no text any more."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data) // 10, len(data) - 3)] ^= 0x80
    path.write_bytes(data)
    return path


_ODD = (b"\0", b"<", b"]", b'"', b"NaN", b"-1", b"9" * 40)


def _inserted(path: Path, rng: random.Random, odd: Sequence[bytes] = _ODD) -> Path:
    """A few bytes more somewhere in the middle."""
    data = path.read_bytes()
    at = rng.randrange(len(data) // 10, len(data) * 9 // 10)
    path.write_bytes(data[:at] + rng.choice(odd) + data[at:])
    return path


def _flipped_png(path: Path, rng: random.Random) -> Path:
    """One bit of a PNG's pixels or their checksum."""
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4])
    data[start + rng.randrange(length + 4)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return path


def _giant_png(path: Path, rng: random.Random) -> Path:
    """A few bytes whose header promises a picture of gigabytes."""
    side = rng.randrange(40_000, 65_000)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def _other_size(path: Path, rng: random.Random) -> Path:
    with Image.open(path) as image:
        width, height = image.size
        image.resize((width + rng.randrange(1, 9), height), Image.Resampling.NEAREST).save(path)
    return path


def _one(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.iterdir()))


def _picture(damage: Maker, below: str, returned: str = "") -> Maker:
    """Damage one picture of a folder; the folder (or a file of it) is what comes back."""

    def make(out: Path, rng: random.Random) -> Path:
        damage(_one(out / below, rng), rng)
        return out / returned

    return make


def _floats(path: Path, _rng: random.Random) -> Path:
    with Image.open(path) as image:
        shape = image.size[::-1]
    Image.fromarray(np.full(shape, np.nan, np.float32)).save(path, format="TIFF")
    return path


def _secret(path: Path, _rng: random.Random) -> Path:
    """A link out of the folder."""
    path.unlink()
    path.symlink_to("/etc/passwd")
    return path


# -- CVAT --------------------------------------------------------------------------------------------


def _xml(change: Callable[[str, random.Random], str]) -> Maker:
    def make(out: Path, rng: random.Random) -> Path:
        path = out / "annotations.xml"
        path.write_text(change(path.read_text("utf-8"), rng), "utf-8")
        return path

    return make


def _in_mask(key: str, value: Callable[[random.Random], str]) -> Maker:
    """Another value for an attribute of one mask."""

    def change(text: str, rng: random.Random) -> str:
        at = rng.choice([i for i in range(len(text)) if text.startswith("<mask ", i)])
        start = text.index(f' {key}="', at) + len(key) + 3
        return text[:start] + value(rng) + text[text.index('"', start) :]

    return _xml(change)


def _in_image(text: str, inside: str, rng: random.Random) -> str:
    at = rng.choice([i for i in range(len(text)) if text.startswith("</image>", i)])
    return text[:at] + inside + text[at:]


def _zip(change: Callable[[bytes, random.Random], bytes] = lambda data, _: data, inside: str = "") -> Maker:
    """CVAT's own zip file: its bytes are changed, or `inside` stands in an image of the XML."""

    def make(out: Path, rng: random.Random) -> Path:
        text = (out / "annotations.xml").read_text("utf-8")
        if inside:
            text = _in_image(text, inside, rng)
        with zipfile.ZipFile(out / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../../evil.txt", "out of here")
            archive.writestr("annotations.xml", text)
        (out / "a.zip").write_bytes(change((out / "a.zip").read_bytes(), rng))
        return out / "a.zip"

    return make


def _flipped_member(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    start, end = data.rindex(b"PK\x03\x04") + 60, data.index(b"PK\x01\x02")
    found[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(found)


_CVAT: dict[str, Maker] = {
    "truncated": lambda out, rng: _truncated(out / "annotations.xml", rng),
    "truncated zip": _zip(lambda data, rng: data[: rng.randrange(len(data) // 2, len(data) - 1)]),
    "bit flip": lambda out, rng: _high_bit(out / "annotations.xml", rng),
    "bit flip in a zip": _zip(_flipped_member),
    "inserted text": lambda out, rng: _inserted(out / "annotations.xml", rng, (b"\0", b"<")),
    "huge counts -> runs of a mask": _in_mask("rle", lambda rng: f"0, {rng.randrange(10**12, 10**15)}"),
    "a count of 5000 digits -> no cvat file": _in_mask("rle", lambda _: "9" * 5000),
    "a box far away -> lies outside": _in_mask("left", lambda rng: str(rng.randrange(10**3, 10**30))),
    "path escape -> is not of the export": _xml(lambda text, rng: text.replace(' name="', f' name="../../../etc/passwd{rng.randrange(99)}', 1)),
    "wrong size -> 40x24 there": _xml(lambda text, rng: text.replace(' width="40"', f' width="{rng.randrange(41, 10**9)}"', 1)),
    "nan -> corners in the picture": _xml(lambda text, rng: _in_image(text, '<polygon label="car" points="0,0;nan,3;5,inf"/>', rng)),
    "no class -> is none of": _in_mask("label", lambda rng: f"tram{rng.randrange(99)}"),
    "deep nesting -> is not supported": _xml(lambda text, rng: _in_image(text, "<a>" * rng.randrange(10**4, 10**5), rng)),
    "zip bomb": _zip(inside=" " * (65 << 20)),
    "zip bomb of masks": _zip(inside='<mask label="car" rle="0, 960" left="0" top="0" width="40" height="24"/>' * 150_000),
    "an image repeated": _xml(lambda t, _: t.replace("</image>", '</image><image name="drive0 &amp; &lt;0>.png" width="40" height="24"/>')),
    "entities -> document type": _xml(lambda t, _: t.replace("<annotations>", '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotations>')),
}  # fmt: skip

_AN_IMAGE = '<annotations><image id="0" name="drive0 &amp; &lt;0>.png" width="40" height="24">{}</image></annotations>'
_A_MASK = '<mask label="car" rle="{}" left="{}" top="0" width="{}" height="2" z_order="0"/>'
_TEXTS = {
    "document type": '<!DOCTYPE x SYSTEM "file:///etc/passwd">' + _AN_IMAGE.format(""),
    "runs of a mask": _AN_IMAGE.format(_A_MASK.format("16, -8", 0, 4)),
    "lies outside": _AN_IMAGE.format(_A_MASK.format("4, 4", 38, 4)),
    "<cuboid> is not supported": _AN_IMAGE.format('<cuboid label="car"/>'),
    "more regions than": _AN_IMAGE.format(_A_MASK.format("0, 80", 0, 40) * 13000),
    "<track> is not supported": "<annotations><track/></annotations>",
    "<a> is not supported": "<a>" * 100_000,
    "damaged": "",
}


def _in_a_zip(made: Maker) -> Maker:
    return lambda out, rng: _zip()(made(out, rng).parent, rng)


_TEXT_MAKERS = {f"a text -> {message}": _xml(lambda _text, _rng, new=text: new) for message, text in _TEXTS.items()}
_ZIP_MAKERS = {kind.replace("text", "zip"): _in_a_zip(make) for kind, make in _TEXT_MAKERS.items()}

# -- JSON of Label Studio and COCO -------------------------------------------------------------------


def _json(file: str, change: Callable[[Any, random.Random], Any], returned: str = "") -> Maker:
    def make(out: Path, rng: random.Random) -> Path:
        value = json.loads((out / file).read_text("utf-8"))
        for task in value if isinstance(value, list) else []:  # as Label Studio exports it
            task["annotations"] = [{"result": task.pop("predictions")[0]["result"], "completed_by": {"email": "kim"}}]
        changed = change(value, rng)
        (out / (returned or file)).write_text(json.dumps(value if changed is None else changed), "utf-8")
        return out / (returned or file)

    return make


def _deep(path: Path, rng: random.Random) -> Path:
    depth = rng.randrange(10**4, 10**6)
    path.write_text("[" * depth + "]" * depth)
    return path


def _sparse(path: Path, rng: random.Random) -> Path:
    """Far more bytes than are read, none of them on the disk."""
    with path.open("wb") as file:
        file.truncate(rng.randrange(1 << 30, 1 << 34))
    return path


def _studio(change: Callable[[dict[str, Any], random.Random], Any]) -> Maker:
    return _json("tasks.json", lambda tasks, rng: change(rng.choice(tasks), rng) and None, "export.json")


def _exported(damage: Maker) -> Maker:
    made = _json("tasks.json", lambda _tasks, _rng: None, "export.json")
    return lambda out, rng: damage(made(out, rng), rng)


def _region(task: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = rng.choice(task["annotations"][0]["result"])
    return found


_STUDIO: dict[str, Maker] = {
    "truncated": _exported(_truncated),
    "bit flip": _exported(_high_bit),
    "inserted text": _exported(lambda path, rng: _inserted(path, rng, (b"\0", b'"'))),
    "huge counts -> runs of a region": _studio(
        lambda t, rng: _region(t, rng)["value"].update(rle=[255] * rng.randrange(5, 500))
    ),
    "a huge number -> no label-studio file": _studio(
        lambda t, rng: _region(t, rng)["value"]["rle"].append(rng.randrange(10**20, 10**40))
    ),
    "runs that end early -> no label-studio file": _studio(
        lambda t, rng: _region(t, rng)["value"].update(rle=[0, 0, 15, 0, 255, 255])
    ),
    "more runs than pixels -> runs of a region": _studio(
        lambda t, rng: _region(t, rng)["value"].update(rle=[0, 0, 15, 0] * 10**4)
    ),
    "path escape -> is not of the export": _studio(
        lambda t, rng: t["data"].update(file=f"../../../etc/passwd{rng.randrange(99)}")
    ),
    "wrong size -> not of a picture": _studio(
        lambda t, rng: _region(t, rng).update(original_width=rng.randrange(41, 10**9))
    ),
    "nan": _studio(lambda t, rng: _region(t, rng)["value"]["rle"].insert(rng.randrange(9), float("nan"))),
    "nan as a size": _studio(lambda t, rng: _region(t, rng).update(original_height=float("nan"))),
    "no class -> is none of": _studio(
        lambda t, rng: _region(t, rng)["value"].update(brushlabels=[f"tram{rng.randrange(99)}"])
    ),
    "deep nesting": _exported(_deep),
    "bomb": _exported(_sparse),
}


def _annotation(change: Callable[[dict[str, Any], random.Random], Any]) -> Maker:
    return _json("panoptic.json", lambda value, rng: change(rng.choice(value["annotations"]), rng) and None)


_COCO: dict[str, Maker] = {
    "truncated": lambda out, rng: _truncated(out / "panoptic.json", rng),
    "truncated picture": _picture(_truncated, "panoptic", "panoptic.json"),
    "bit flip": lambda out, rng: _high_bit(out / "panoptic.json", rng),
    "bit flip in a picture": _picture(_flipped_png, "panoptic", "panoptic.json"),
    "inserted text": lambda out, rng: _inserted(out / "panoptic.json", rng, (b"\0", b'"')),
    "huge counts -> is not in the JSON file": _annotation(
        lambda a, rng: a["segments_info"][0].update(id=rng.randrange(10**20, 10**40))
    ),
    "path escape -> plain file name": _annotation(
        lambda a, rng: a.update(file_name=f"../../../etc/passwd{rng.randrange(99)}")
    ),
    "another picture -> is not of the export": _json(
        "panoptic.json", lambda v, rng: rng.choice(v["images"]).update(file_name="../x.png")
    ),
    "wrong size": _picture(_other_size, "panoptic", "panoptic.json"),
    "nan": _annotation(lambda a, _: a["segments_info"][0].update(category_id=float("nan"))),
    "nan as a picture": _picture(_floats, "panoptic", "panoptic.json"),
    "no class": _json("panoptic.json", lambda v, rng: v["categories"][rng.randrange(9)].update(name="tram")),
    "deep nesting": lambda out, rng: _deep(out / "panoptic.json", rng),
    "bomb": _picture(_giant_png, "panoptic", "panoptic.json"),
    "bomb of JSON": lambda out, rng: _sparse(out / "panoptic.json", rng),
}

# -- masks and tables --------------------------------------------------------------------------------

_FIFTYONE: dict[str, Maker] = {
    "truncated": _picture(_truncated, "labels"),
    "bit flip": _picture(_flipped_png, "labels"),
    "inserted text": _picture(_inserted, "labels"),
    "huge counts": _picture(_giant_png, "labels"),
    "path escape -> no image of the export": _picture(
        lambda path, rng: path.rename(path.with_name(f"x..%2f{rng.randrange(10**6)}.png")), "labels"
    ),
    "a link out of the folder": _picture(_secret, "labels"),
    "wrong size -> pixels": _picture(_other_size, "labels"),
    "nan": _picture(_floats, "labels"),
    "bomb": _picture(_sparse, "labels"),
}


def _table(out: Path) -> Path:
    return next((out / "data").glob("*.parquet"))


def _row(change: Callable[[dict[str, Any], random.Random], Any]) -> Maker:
    def make(out: Path, rng: random.Random) -> Path:
        path = _table(out)
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(rng.choice(rows), rng)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
        return out

    return make


def _flipped_page(out: Path, rng: random.Random) -> Path:
    """One bit of the page of labels."""
    path = _table(out)
    data = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    about = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "label.bytes")
    start = about.dictionary_page_offset or about.data_page_offset
    data[start + 60 + rng.randrange(about.total_compressed_size - 60)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return out


def _as_label(data: Callable[[bytes, random.Random], bytes]) -> Maker:
    """Other bytes in place of one label."""
    return _row(lambda row, rng: row["label"].update(bytes=data(row["label"]["bytes"], rng)))


def _png(make: Maker) -> Callable[[bytes, random.Random], bytes]:
    """Damage for a picture's file, done to its bytes."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "label.png")
            path.write_bytes(data)
            return make(path, rng).read_bytes()

    return changed


def _repeated(out: Path, rng: random.Random) -> Path:
    """A small file in which one label of a megabyte stands in each of many rows: gigabytes."""
    path, count = _table(out), rng.randrange(2000, 4000)
    label = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([bytes(1 << 20)], pa.binary()))
    label = pa.StructArray.from_arrays([label, pa.array([""] * count)], names=["bytes", "path"])
    names = pq.read_table(path, columns=["name"])["name"][:1].to_pylist() * count
    pq.write_table(pa.table({"name": names, "label": label}), path, store_schema=False)
    return out


def _nested(out: Path, rng: random.Random) -> Path:
    path, kind = _table(out), pa.int8()
    for _ in range(rng.randrange(50, 90)):
        kind = pa.list_(kind)
    pq.write_table(pa.table({"name": ["a"], "label": pa.array([None], kind)}), path)
    return out


_HUGGINGFACE: dict[str, Maker] = {
    "truncated": lambda out, rng: _truncated(_table(out), rng) and out,
    "bit flip": _flipped_page,
    "bit flip in a picture": _as_label(_png(_flipped_png)),
    "inserted text": _as_label(_png(_inserted)),
    "huge counts": _as_label(_png(_giant_png)),
    "path escape": _row(lambda row, rng: row.update(name=f"../../../etc/passwd{rng.randrange(99)}")),
    "wrong size": _as_label(_png(_other_size)),
    "nan -> expected the columns": lambda out, _: (
        pq.write_table(pa.table({"name": ["a"], "label": [float("nan")]}), _table(out)) or out
    ),
    "no label -> has no bytes": _row(lambda row, _: row["label"].update(bytes=None)),
    "deep nesting": _nested,
    "bomb": _repeated,
}


def _bytes(value: int, shape: tuple[int, int] = (24, 40)) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(data, "PNG")
    return data.getvalue()


def _mask(data: bytes) -> Maker:
    return _picture(lambda path, _rng: path.write_bytes(data) and path, "labels")


_FIXED: dict[str, dict[str, Maker]] = {
    "cvat": _TEXT_MAKERS | _ZIP_MAKERS,
    "label-studio": {
        "two classes -> has 2 classes": _studio(
            lambda t, rng: _region(t, rng)["value"].update(brushlabels=["car", "road"])
        )
    },
    "coco-panoptic": {},
    "huggingface": {
        "an unknown class -> are not ids of": _as_label(lambda _data, _rng: _bytes(19)),
        "as many pixels -> is (12, 80)": _as_label(lambda _data, _rng: _bytes(0, (12, 80))),
        "nothing -> label of": _as_label(lambda _data, _rng: b""),
    },
    "fiftyone": {
        "an unknown class -> are not ids of": _mask(_bytes(20)),
        "the last value -> are not ids of": _mask(_bytes(255)),
        "no picture -> not a PNG": _mask(b"x"),
    },
}

_MAKERS = {
    "cvat": _CVAT,
    "label-studio": _STUDIO,
    "coco-panoptic": _COCO,
    "huggingface": _HUGGINGFACE,
    "fiftyone": _FIFTYONE,
}
TOOLS = tuple(_MAKERS)  # formats that come back
