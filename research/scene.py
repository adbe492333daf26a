"""A cheaper scene: CamVid with fewer fine labels and smaller pictures, to find out in minutes what matters.

python -m research.scene ../shared/camvid workspaces/scene-15 --fine 15 --height 180
python -m research.ablate pays --prepare --workspace workspaces/scene-15 --tables workspaces/scene-15

Every n-th fine label stays. The other pictures become unlabelled ones, and their labels join `ceiling/`, which holds
true labels of unlabelled pictures. Crops shrink with the pictures. Calibration and report pictures stay in their roles.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from hmsa_core.io.trees import new_tree
from pipeline.cli.main import run_command
from pipeline.night.parameters import set_keys
from pipeline.workspace.params import Params
from pipeline.workspace.yaml_text import read_yaml
from research.ablation.prepare import make_camvid_workspace

_FOLDERS = ("train/images", "train/labels", "train_coarse", "ceiling")
_HEIGHT = 360  # pixels of CamVid's pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("source", type=Path, help="CamVid's folder")
    parser.add_argument("out", type=Path, help="folder of the new workspace; the pictures lie next to it, in OUT-scene")
    parser.add_argument("--variant", default="default", choices=("default", "drive_shift"))
    parser.add_argument("--arrives", metavar="DRIVE", help="drive without fine labels; only its report pictures judge")
    parser.add_argument("--fine", type=int, required=True, help="fine labels that stay")
    parser.add_argument("--height", type=int, default=_HEIGHT, help="pixels; 360 = as it is")


def run(args: argparse.Namespace) -> int:
    """Write the folder."""
    splits = atomic.read_json(args.source / "splits.json")
    lists = splits[args.variant]
    whole = sorted(lists["fine"])
    usable = [name for name in whole if not (args.arrives and name.startswith(args.arrives))]
    if not 1 <= args.fine <= len(usable):
        raise ConfigError(f"--fine {args.fine}: {len(usable)} fine labels can stay")
    kept = {usable[i] for i in np.linspace(0, len(usable) - 1, args.fine).round().astype(int)}
    if args.arrives:
        judged = [name for name in lists["selection"] if name.startswith(args.arrives)]
        lists["guard"], lists["selection"] = sorted({*lists["guard"], *lists["selection"]} - {*judged}), judged
    freed = sorted(set(whole) - kept)
    lists["fine"], lists["unlabelled"] = sorted(kept), sorted({*lists["unlabelled"], *freed})
    lists["coarse"] = lists["unlabelled"]
    scene = args.out.resolve().with_name(f"{args.out.name}-scene")
    with new_tree(scene) as out:
        for folder in _FOLDERS:
            (out / folder).mkdir(parents=True)
        for folder in _FOLDERS:
            for path in sorted((args.source / folder).iterdir()):
                to = "ceiling" if folder == "train/labels" and path.stem in freed else folder
                _copy(path, out / to / path.name, args.height)
        shutil.copy(args.source / "classes.json", out)
        atomic.write_json(out / "splits.json", splits)
    make_camvid_workspace(args.out.resolve(), args.variant, None, scene)
    _set_recipe(args.out / "params.yaml", args.height / _HEIGHT, len(whole))
    sys.stdout.write(f"{args.out}: {len(kept)} fine, {len(lists['unlabelled'])} unlabelled pictures\n")
    return 0


def _set_recipe(params: Path, factor: float, crops: int) -> None:
    """Crops of the pictures' scale, and as many of them an epoch as with all fine labels."""
    document = read_yaml(params)
    settings = Params.parse(document)
    for section in ("teacher_train", "student_train"):
        values = getattr(settings, section)
        set_keys(
            document.values,
            {
                f"{section}.crop": [round(side * factor) for side in values.crop],
                f"{section}.epoch_samples": crops,
                f"{section}.sampling.tile": round(values.sampling.tile * factor),
            },
        )
    atomic.write_text(params, json.dumps(document.values, indent=1))


def _copy(source: Path, target: Path, height: int) -> None:
    """Copy a picture or a label map, brought to this height."""
    with Image.open(source) as picture:
        if picture.height == height:
            shutil.copy(source, target)
            return
        size = round(picture.width * height / picture.height), height
        how = Image.Resampling.BOX if picture.mode == "RGB" else Image.Resampling.NEAREST
        picture.resize(size, how).save(target, **({"quality": 95} if picture.mode == "RGB" else {}))


def main(arguments: list[str]) -> int:
    """Run the command; give its exit status."""
    return run_command("python -m research.scene", sys.modules[__name__], arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
