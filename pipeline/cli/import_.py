"""Read label files of other tools into a raw label store, or corrections of people into the review file of one.

autolabel import refinement/train_extra labels/imported                 PNG + _prob.png, flat or by city
autolabel import masks/ labels/masks --classes my/classes.json          plain masks (highest confidence)
autolabel import gtCoarse/train labels/coarse                           *_labelIds.png
autolabel import annotations.xml labels/raw --corrections-of task/ --by kim   corrections of `autolabel export`

The format is recognised by what is in the folder, never by its name. Byte b of a _prob.png stands for a
confidence of at least b/255; thresholds keep exactly what the released loader keeps.

Corrections are the pixels in which RETURNED differs from the export. `pseudo-label` puts them above all else. What
is in conflict (other people, newer labels, other pictures) is named and left out; the rest is taken.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hmsa_core.inference.folder.label_folder import is_free
from hmsa_core.io.errors import ConfigError, InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add(
        "folder", type=Path, metavar="DIR", help="folder with PNG files, flat or one folder per city; or what came back"
    )
    add("store", type=Path, metavar="STORE", help="folder of the new store; or the store that was exported")
    text = "file of class names, or a public label set, such as mapillary_v1.2 or voc (cityscapes)"
    add("--classes", default="cityscapes", metavar="FILE", help=text)
    text = "what the files hold; auto: trainIds in plain masks, else the data set's ids"
    add("--ids", choices=["auto", "file", "train"], default="auto", help=text)
    add("--teacher", default="unknown", help="weight hash or name of what made the labels")
    add("--images-per-shard", type=int, default=256, metavar="N", help="default: %(default)s")
    add("--corrections-of", type=Path, metavar="OUT", help="the export that people corrected")
    add("--by", default="", metavar="NAME", help="who corrected, where the tool does not say")
    add("--when", default="", metavar="DATE", help="when, where the tool does not say")
    add("--overrule", action="store_true", help="take corrections that are in conflict, too")


def run(args: argparse.Namespace) -> int:
    """Import the labels into a store."""
    if args.corrections_of is not None:
        return _corrections(args)
    from hmsa_core.data.layouts import load_classes
    from hmsa_core.labels.importing import find_files, import_folder
    from hmsa_core.labels.store.format import MANIFEST
    from hmsa_core.runtime.progress import Progress

    classes = load_classes(Path(), args.classes)
    if (args.store / MANIFEST).exists():
        raise ConfigError(
            f"{args.store}: there is a label store already",
            hint="import into a new folder; for corrections of an export, give --corrections-of OUT",
        )
    if args.store.exists() and not (args.store.is_dir() and is_free(args.store, for_parts=True)):
        raise ConfigError(f"{args.store}: exists and is no label store", hint="import into a new folder")
    fmt, files = find_files(args.folder)
    with Progress(len(files), what=f"import {fmt}") as progress:
        given: dict[str, Any] = {"ids": args.ids, "images_per_shard": args.images_per_shard, "advance": progress.update}
        import_folder(args.folder, args.store, classes, lineage={"teacher": args.teacher}, **given)
    sys.stderr.write(f"{args.store}: {len(files)} images ({fmt}), classes of {classes.name} ({classes.num_classes})\n")
    return 0


def _corrections(args: argparse.Namespace) -> int:
    from hmsa_core.labels.corrections import Exported, bring_back
    from hmsa_core.labels.store.reader import LabelStore
    from hmsa_core.runtime.progress import Progress

    exported, store = Exported(args.corrections_of), LabelStore.open(args.store)
    with Progress(len(exported.images), what="import corrections") as progress:
        found = bring_back(
            args.folder, exported, store, by=args.by, when=args.when, overrule=args.overrule, advance=progress.update
        )
    sys.stderr.write(
        f"{args.store}: corrections of {len(found.corrected)} images ({found.pixels} pixels) taken, {found.known} "
        f"known already; {found.images} of {len(exported.images)} images came back\n"
    )
    if found.empty:
        sys.stderr.write(f"{found.empty} images came back without any label: taken for not looked at\n")
    if found.conflicts:
        sys.stderr.writelines(f"conflict: {each}\n" for each in found.conflicts)
        raise InputError(
            f"{len(found.conflicts)} images are in conflict, nothing of them was taken",
            hint="look at them; --overrule makes what came back the last word, but not on other pictures",
        )
    return 0
