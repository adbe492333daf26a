"""Read label files of other tools into a raw label store.

autolabel import refinement/train_extra labels/imported                 PNG + _prob.png, flat or by city
autolabel import masks/ labels/masks --classes my/classes.json          plain masks (highest confidence)
autolabel import gtCoarse/train labels/coarse                           *_labelIds.png

The format is recognised by what is in the folder, never by its name. Byte b of a _prob.png stands for a
confidence of at least b/255; thresholds keep exactly what the released loader keeps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.inference.labelling import is_free
from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from hmsa_core.taxonomy import ClassTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with PNG files, flat or one folder a city")
    parser.add_argument("store", type=Path, metavar="STORE", help="folder of the new store")
    parser.add_argument(
        "--classes",
        default="cityscapes",
        metavar="FILE",
        help="class file, or cityscapes, mapillary_v1.2, mapillary_v2.0; default cityscapes",
    )
    parser.add_argument(
        "--ids",
        choices=["auto", "file", "train"],
        default="auto",
        help="what the files hold; auto: trainIds in plain masks, else the data set's ids",
    )
    parser.add_argument("--teacher", default="unknown", help="weight hash or name of what made the labels")
    parser.add_argument("--images-per-shard", type=int, default=256, metavar="N", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Import."""
    from hmsa_core.labels.importing import find_files, import_folder
    from hmsa_core.labels.store.format import MANIFEST
    from hmsa_core.runtime.progress import Progress

    classes = _classes(args.classes)
    if (args.store / MANIFEST).exists():
        raise ConfigError(f"{args.store}: there is a label store already", hint="import into a new folder")
    if args.store.exists() and not (args.store.is_dir() and is_free(args.store, for_parts=True)):
        raise ConfigError(f"{args.store}: exists and is no label store", hint="import into a new folder")
    fmt, files = find_files(args.folder)
    with Progress(len(files), what=f"import {fmt}") as progress:
        import_folder(
            args.folder,
            args.store,
            classes,
            lineage={"teacher": args.teacher},
            ids=args.ids,
            images_per_shard=args.images_per_shard,
            advance=progress.update,
        )
    sys.stderr.write(f"{args.store}: {len(files)} images ({fmt}), classes of {classes.name} ({classes.num_classes})\n")
    return 0


def _classes(given: str) -> ClassTable:
    from hmsa_core import taxonomy

    if given == "cityscapes":
        return taxonomy.cityscapes()
    if given.startswith("mapillary_"):
        return taxonomy.mapillary(given.removeprefix("mapillary_"))
    return taxonomy.from_file(given)
