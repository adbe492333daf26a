"""`autolabel init --images --labels` reads folders of many shapes, deals the images and chooses a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa_core import taxonomy
from hmsa_core.data.decode import read_label, read_picture
from hmsa_core.data.layouts import scan
from hmsa_core.data.roles import assign_blocks, assign_roles
from hmsa_core.data.source import RolesSpec
from hmsa_core.inference.teachers.sources import chosen_on
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.taxonomy import from_file
from pipeline.cli.main import main
from pipeline.plan import duration
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.reading import Folders
from pipeline.plan.recipe import Machine
from pipeline.stages import prepare
from pipeline.workspace.dvc_yaml import render_dvc_yaml
from pipeline.workspace.params import Params
from pipeline.workspace.workspace import Workspace
from tests.support.own_folders import (
    COLOURS,
    FURTHER_LAYOUTS,
    LAYOUTS,
    NAMES,
    SIZE,
    UserFolders,
    cvat,
    in_colours,
    one_drive,
    save,
    scene,
)

CPU = Machine(cores=2, memory=16.0)


def planned(folders: UserFolders) -> Plan:
    classes = folders.flags[1] if folders.flags else None
    return make_plan(Folders(folders.images, folders.labels, folders.new), classes=classes, machine=CPU)


def written(plan: Plan, folder: Path) -> Workspace:
    """The files of a plan as a workspace."""
    for name, text in plan.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Workspace(folder)


@pytest.mark.parametrize("layout", [*LAYOUTS, *FURTHER_LAYOUTS])
def test_a_folder_is_read_dealt_and_planned_without_an_edit(
    layout: Callable[[Path], UserFolders], tmp_path: Path
) -> None:
    folders = layout(tmp_path / "data")
    plan = planned(folders)
    assert tuple(plan.classes.names.values()) == folders.classes
    assert len(plan.reading.pairs.labels) == folders.labelled
    assert len(plan.reading.pairs.images) == folders.labelled + folders.waiting - len(plan.reading.new)
    ws = written(plan, tmp_path / "ws")
    source, params = ws.source("target"), ws.params  # params.yaml is valid
    found = scan(source)
    assert not found.refused
    roles = dict(zip((f.name for f in found.found), assign_roles(found.found, RolesSpec()), strict=True))
    assert roles == dict(zip((f.name for f in plan.roles.found), plan.roles.roles, strict=True))
    assert {"learn", "calibrate", "report", "unlabelled"} <= set(roles.values())
    by_split = {f.split: {roles[g.name] for g in found.found if g.split == f.split and g.label} for f in found.found}
    assert {split: {role} for split, role in folders.roles.items()}.items() <= by_split.items()
    waiting = [f for f in found.found if roles[f.name] == "unlabelled"]
    assert len(waiting) >= 1
    assert not any(f.label for f in waiting)
    assert len(set(assign_blocks(found.found, list(roles.values()), source))) >= 3
    # Each map is read, and shows what was drawn.
    for f in (f for f in found.found if f.label):
        label = read_label(Path(source.root) / f.label, found.classes)
        assert set(np.unique(label)) <= {*range(len(folders.classes)), 255}
        assert (label != 255).mean() > 0.9
    assert params.teacher_train.epochs >= 60
    height, width = params.teacher_train.crop
    assert height <= plan.values.size[0]
    assert width <= plan.values.size[1]
    assert height % 32 == width % 32 == 0


def test_the_same_folder_gives_the_same_plan_and_later_images_move_nobody(tmp_path: Path) -> None:
    folders = one_drive(tmp_path / "data")
    first, again = planned(folders), planned(folders)
    assert first.files() == again.files()
    ws = written(first, tmp_path / "ws")
    before = {f.name: f.role for f in scan(ws.source("target")).found}
    for n in range(60, 110):
        image, ids = scene(n, 2)
        save(folders.images / f"frame_{n:05d}.jpg", image)
        if n % 2 == 0:
            save(folders.labels / f"frame_{n:05d}.png", ids * 255)
    after = {f.name: f.role for f in scan(ws.source("target")).found}
    assert len(after) == len(before) + 50
    assert {name: after[name] for name in before} == before
    assert {after[name] for name in after.keys() - before.keys()} >= {"learn", "unlabelled"}
    save(folders.images / "frame_\udce4.png", image)  # bytes that are no UTF-8
    assert [found.reason for found in scan(ws.source("target")).refused] == ["bad-name"]


def _pairs(top: Path, count: int = 12) -> UserFolders:
    for n in range(count):
        image, ids = scene(n)
        save(top / "images" / f"a{n}.png", image)
        save(top / "labels" / f"a{n}.png", ids)
    return UserFolders(top / "images", top / "labels", (), count)


def _without_images(folders: UserFolders) -> None:
    for n in range(3):
        (folders.images / f"a{n}.png").unlink()


def _of_other_names(folders: UserFolders) -> None:
    for n, path in enumerate(sorted(folders.labels.iterdir())):
        path.rename(folders.labels / f"{'zyxwvutsrqpo'[n]}.png")


def _of_other_size(folders: UserFolders) -> None:
    save(folders.labels / "a3.png", scene(3)[1][:40])


def _void(folders: UserFolders) -> None:
    for path in folders.labels.iterdir():
        save(path, np.full(SIZE, 255, np.uint8))


def _photograph(folders: UserFolders) -> None:
    save(folders.labels / "a0.png", np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8))


def _soft_edges(folders: UserFolders) -> None:
    for path in folders.labels.iterdir():
        with Image.open(path) as picture:
            soft = picture.point(lambda value: 60 * value).resize((40, 30), Image.Resampling.BILINEAR)
        soft.resize(SIZE[::-1], Image.Resampling.BILINEAR).save(path)


def _many_classes(folders: UserFolders) -> None:
    for n, path in enumerate(sorted(folders.labels.iterdir())):
        spots = np.arange(SIZE[0] * SIZE[1] // 4).reshape(SIZE[0] // 2, SIZE[1] // 2).repeat(2, 0).repeat(2, 1)
        save(path, (spots % 24 + 22 * n).astype(np.uint8))


def _jpeg(folders: UserFolders) -> None:
    for path in sorted(folders.labels.iterdir()):
        path.unlink()
        save(path.with_suffix(".jpg"), scene(1)[1])


def _bmp_maps(folders: UserFolders) -> None:
    for path in sorted(folders.labels.iterdir()):
        path.unlink()
        save(path.with_suffix(".bmp"), scene(1)[1])


def _bmp_images(folders: UserFolders) -> None:
    for n in range(3):
        (folders.images / f"a{n}.png").rename(folders.images / f"a{n}.bmp")


def _deep_images(folders: UserFolders) -> None:
    for path in folders.images.iterdir():
        Image.fromarray(np.full(SIZE, 4000, np.uint16)).save(path)


def _of_bytes_that_are_no_utf_8(folders: UserFolders) -> None:
    for folder in (folders.images, folders.labels):
        (folder / "a0.png").rename(folder / "Stra\udcdfe.png")


def _bmp_images_in_another_folder(folders: UserFolders) -> None:
    for n in range(3):
        save(folders.images / "b" / f"a{n}.bmp", scene(20 + n)[0])


def _dummies(folders: UserFolders) -> None:
    for n in range(4):
        save(folders.labels / f"a{n}.png", np.full(SIZE, 255, np.uint8))


def _transparent(folders: UserFolders) -> None:
    save(folders.labels / "a2.png", np.dstack([in_colours(scene(2)[1]), scene(2)[1] * 60]))


def _copies_across_splits(folders: UserFolders) -> None:
    for split, quality in (("train", 0), ("val", 3)):
        for n in range(12):
            image, ids = scene(n)
            save(
                folders.images / split / f"{split}{n}.png",
                np.clip(image.astype(int) + quality, 0, 255).astype(np.uint8),
            )
            save(folders.labels / split / f"{split}{n}.png", ids)
    for n in range(12):
        (folders.images / f"a{n}.png").unlink()
        (folders.labels / f"a{n}.png").unlink()


def _without_a_name(folders: UserFolders) -> None:
    (folders.labels / "classes.txt").write_text("sky\nroad\ncar\n")


def _colour_without_a_name(folders: UserFolders) -> None:
    *named, _ = COLOURS.items()
    for n, path in enumerate(sorted(folders.labels.iterdir())):
        pixels = in_colours(scene(n)[1])
        pixels[:2] = 0  # black is taken as unlabelled
        save(path, pixels)
    (folders.labels / "labelmap.txt").write_text("".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in named))


def _large_id(folders: UserFolders) -> None:
    (folders.labels / "classes.txt").write_text("0 sky\n1 road\n2 car\n3 tree\n300 bus\n")


def _instances(folders: UserFolders) -> None:
    for path in folders.labels.iterdir():
        save(path, np.array([0, 7000, 26001, 26002], np.uint16)[np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 4])


def _one_class(folders: UserFolders) -> None:
    for path in folders.labels.iterdir():
        save(path, np.where(np.arange(SIZE[1]) < 20, 0, 255).astype(np.uint8)[None].repeat(SIZE[0], 0))
    (folders.labels / "classes.json").write_text('{"classes": [{"id": 0, "name": "road"}], "ignore_id": 255}')


def _two_forms(folders: UserFolders) -> None:
    save(folders.labels / "a1.png", in_colours(scene(1)[1]))


WRONG = {
    _without_images: ("3 of 12 label maps have no image, first a0.png", "add their images"),
    _of_other_names: ("no label map fits an image", "names of their images"),
    _of_other_size: ("1 label maps have another size than their image, first a3.png: 64x40", "size of the images"),
    _void: ("hold void pixels alone: value 255", "--void none"),
    _photograph: ("a0.png: .* different values in one label map", "exported as PNG"),
    _soft_edges: ("maps seem to be drawn or resized with soft edges, first a0.png: .* no 2x2 pixels", "by nearest"),
    _many_classes: ("255 classes, a label is one byte", "merge classes"),
    _bmp_maps: ("labels: 12 pictures have a format that is not read, first a0.bmp", "convert them to PNG"),
    _bmp_images: ("images: 3 pictures have a format that is not read, first a0.bmp", "convert them to PNG"),
    _deep_images: ("images cannot be read, first a0.png: 16 bits per channel are not supported", "to 8-bit RGB"),
    _of_bytes_that_are_no_utf_8: (r"Stra\\udcdfe.png': a name on this path holds .* no UTF-8", "rename it"),
    _bmp_images_in_another_folder: ("3 pictures have a format that is not read, first b/a0.bmp", "convert them to PNG"),
    _dummies: ("4 label maps show no class, first a0.png", "images without a label map are auto-labelled"),
    _transparent: ("1 label maps or their images cannot be read, first a2.png: has transparent pixels", "flatten it"),
    _jpeg: ("12 label maps are JPEG files", "as PNG"),
    _copies_across_splits: ("images of the judging splits look like images to learn from", "one split"),
    _without_a_name: (r"names no class for value 3 \(.* % of pixels, e.g. a0.png\)", "--void 3"),
    _colour_without_a_name: (
        "names no class for colour #",
        f"'--void 000000,{bytes(list(COLOURS.values())[-1]).hex()}'",
    ),
    _large_id: (r"classes.txt: class 'bus' has id 300, ids are 0 to 255", "renumber it there and in the label maps"),
    _instances: ("16-bit values up to 26002", "folder of class ids; else renumber the classes"),
    _one_class: ("the label maps show road and void pixels alone", "second class"),
    _two_forms: ("a1.png holds colours, maps before it ids", "one form"),
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_wrong_folder_gives_one_line_with_the_cure_and_writes_nothing(
    spoil: Callable[[UserFolders], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = _pairs(tmp_path / "data")
    spoil(folders)
    with pytest.raises(InputError, match=WRONG[spoil][0]) as error:
        planned(folders)
    assert WRONG[spoil][1] in error.value.hint
    assert main(["init", str(tmp_path / "ws"), *folders.arguments]) == 1 + (InputError.exit_code - 1)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 2
    assert not (tmp_path / "ws").exists()


def test_flags_settle_values_without_a_name(tmp_path: Path) -> None:
    folders = _pairs(tmp_path)
    _without_a_name(folders)
    plan = make_plan(Folders(folders.images, folders.labels), void=frozenset({3}), machine=CPU)
    assert list(plan.classes.names.values()) == ["sky", "road", "car"]
    # Names of a list count from 1 where 0 is no class.
    plan = make_plan(Folders(folders.images, folders.labels), void=frozenset({0}), machine=CPU)
    assert plan.classes.names == {1: "sky", 2: "road", 3: "car"}
    written(plan, tmp_path / "ws")
    table = from_file(tmp_path / "ws" / "data" / "classes.json")
    assert table.classes == ("sky", "road", "car")
    assert table.id_to_train[:4].tolist() == [255, 0, 1, 2]


@pytest.mark.parametrize(
    ("image", "label", "line"),
    [
        ("my image {n}.png", "my image {n}.png", "my image {n}.png"),
        ("{n}_rgb.png", "{n}_mask.png", "{n}"),
        ("{drive}/{frame}.png", "{drive}/{frame}.png", "{drive}/{frame}"),
        ("{drive}/{frame}.png", "{drive}/{frame}.png", "img/{drive}/{frame}.png lab/{drive}/{frame}.png"),
    ],
)
def test_lists_of_splits_name_images_by_folder_space_or_shared_name(
    image: str, label: str, line: str, tmp_path: Path
) -> None:
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for n in range(30):
        pixels, ids = scene(n)
        names = {"n": n, "drive": f"drive_{n % 3}", "frame": n // 3}
        save(tmp_path / "images" / image.format(**names), pixels)
        save(tmp_path / "labels" / label.format(**names), ids)
        lines[("train", "val", "test")[n % 3]].append(line.format(**names))
    for split, rows in lines.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(rows))
    folders = UserFolders(tmp_path / "images", tmp_path / "labels", (), 30)
    plan = planned(folders)
    assert plan.source.split_roles == {"val": "calibrate", "test": "report"}
    counts = {role: len(plan.roles.images(role)) for role in ("learn", "unlabelled", "calibrate", "report")}
    assert counts["calibrate"] == counts["report"] == counts["learn"] + counts["unlabelled"] == 10
    (tmp_path / "test.txt").write_text("elsewhere.png")
    assert f"{tmp_path / 'test.txt'} names no image: " in " | ".join(planned(folders).findings.notes)


def test_a_folder_whose_label_maps_are_gone_is_named(tmp_path: Path) -> None:
    folders = _pairs(tmp_path / "data", 30)
    ws = written(planned(folders), tmp_path / "ws")
    for path in folders.labels.glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="no image with a fine label has role learn") as error:
        prepare.run(ws)
    assert error.value.hint == f"label maps named * belong in {folders.labels}"


def test_what_weakens_a_plan_is_said_with_the_cure(tmp_path: Path) -> None:
    folders = _pairs(tmp_path, 30)
    for n in range(30):
        image, ids = scene(n)
        save(folders.images / f"a{n}.png", image)
        save(folders.labels / f"a{n}.png", np.minimum(ids, 2) if n else ids)
    (folders.labels / "a29.png").unlink()
    save(folders.images / "test" / "t0.png", scene(30)[0])
    (folders.images / "more.gif").touch()
    (folders.images / "a0.heic").touch()  # a0.png is the same picture
    notes = " | ".join(planned(folders).findings.notes)
    assert "2 of 31 images have no label map, first a29.png, test/t0.png: they count as new images" in notes
    assert "1 images without a label map are in a split that judges, first test__t0: they are guards" in notes
    assert "all labels lie in one sequence as names tell (a): what is measured holds for its place" in notes
    assert "1 pictures have a format that is not read, first more.gif: convert them to PNG" in notes
    assert "class_3: in fewer than two blocks: label images of other places" in notes
    assert "a promise needs 20: thresholds are estimates" in notes


def test_an_image_near_the_judges_and_a_value_that_hardly_occurs_are_named(tmp_path: Path) -> None:
    folders = UserFolders(tmp_path / "images", tmp_path / "labels", (), 30)
    for n in range(30):
        image, ids = scene(n)
        ids[0, 0] = 77 if n == 3 else ids[0, 0]
        save(folders.images / f"a{2 * n}.png", image)
        save(folders.labels / f"a{2 * n}.png", ids)
        save(folders.images / f"a{2 * n + 1}.png", scene(n + 100)[0])
    plan = planned(folders)
    notes = " | ".join(plan.findings.notes)
    near = [f for f in plan.roles.images("guard") if not f.label]
    assert len(near) + len([f for f in plan.roles.images("unlabelled") if not f.label]) == 30
    assert near
    assert f"{len(near)} images without a label map are too near to images that judge" in notes
    assert "value 77 (0.0" in notes
    assert "in one label map alone: correct the map, or say --void" in notes
    for f in plan.roles.images("unlabelled"):
        (folders.images / f"{f.name}.png").unlink()
    plan = planned(folders)  # guards are the only images without a label map
    assert plan.roles.images("unlabelled", labelled=True)
    assert "no new images to label: " in " | ".join(plan.findings.notes)


def test_black_that_a_file_names_is_a_class_and_said(tmp_path: Path) -> None:
    folders = cvat(tmp_path)
    for path in (tmp_path / "SegmentationClass").glob("*.png"):
        pixels = read_picture(path)[1].copy()
        pixels[:4] = 0
        save(path, pixels)
    plan = planned(folders)
    assert "background" in plan.classes.names.values()
    assert "is class background, as" in " | ".join(plan.findings.notes)
    made = make_plan(Folders(folders.images, folders.labels), void=frozenset({0}), machine=CPU)
    assert "background" not in made.classes.names.values()
    folders = _pairs(tmp_path / "ids")
    (folders.labels / "classes.txt").write_text("Background\nsky\nwall\nfloor\n")
    notes = " | ".join(make_plan(Folders(folders.images, folders.labels), machine=CPU).findings.notes)
    assert "value 0 (" in notes
    assert "is class Background, as" in notes
    assert "--void 0 makes it unlabelled" in notes
    (folders.labels / "classes.txt").write_text("grass\nsky\nwall\nfloor\n")
    for path in folders.labels.glob("*.png"):
        save(path, read_picture(path)[1])
    notes = " | ".join(make_plan(Folders(folders.images, folders.labels), machine=CPU).findings.notes)
    assert "is class" not in notes, "number 0 of ids that were saved in three channels is no black"


def test_a_palette_says_the_classes_though_its_black_has_no_name(tmp_path: Path) -> None:
    folders = _pairs(tmp_path)
    for n in range(12):
        ids = scene(n)[1] + 1
        ids[:2] = 0
        save(folders.labels / f"a{n}.png", ids, [0, 0, 0, *(part for colour in COLOURS.values() for part in colour)])
    rows = [*COLOURS.items(), ("bus", (1, 2, 3))]  # five names, and values 0 to 4
    (folders.labels / "labelmap.txt").write_text("".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in rows))
    with pytest.raises(InputError, match="names no class for value 0") as error:
        planned(folders)
    assert "--void 0" in error.value.hint
    plan = make_plan(Folders(folders.images, folders.labels), void=frozenset({0}), machine=CPU)
    assert plan.classes.names == dict(enumerate(COLOURS, 1))


def test_a_projects_class_file_two_folders_up_is_found(tmp_path: Path) -> None:
    for n in range(18):
        image, ids = scene(n)
        save(tmp_path / "ds0" / "img" / f"p{n}.png", image)
        save(tmp_path / "ds0" / "masks_human" / f"p{n}.png", in_colours(ids))
    rows = [{"title": f"my {name}", "color": f"#{r:02x}{g:02x}{b:02x}"} for name, (r, g, b) in COLOURS.items()]
    (tmp_path / "meta.json").write_text(json.dumps({"classes": rows, "tags": []}))
    plan = make_plan(Folders(tmp_path / "ds0" / "img", tmp_path / "ds0" / "masks_human"), machine=CPU)
    assert sorted(plan.classes.names.values()) == sorted(f"my {name}" for name in COLOURS)


def test_the_expected_time_counts_each_crop_and_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(_pairs(tmp_path, 30))
    monkeypatch.setattr(duration, "seconds_a_crop", lambda config: 2.0)
    monkeypatch.setattr(duration, "seconds_a_megapixel", lambda model, runtime: 0.0)
    params = written(plan, tmp_path / "ws").params
    learn = len(plan.roles.images("learn", labelled=True))
    crops = [config.epochs * (config.epoch_samples or learn) for config in (params.teacher_train, params.student_train)]
    starts = 8.0 * 9
    assert duration.expected_seconds(plan) == pytest.approx(starts + 2.0 * (crops[0] + 2 * crops[1])), "and the control"
    monkeypatch.setattr(duration, "seconds_a_crop", lambda config: 0.0)
    monkeypatch.setattr(duration, "seconds_a_megapixel", lambda model, runtime: 3.0)
    once = duration.expected_seconds(plan) - starts
    plan.values.sizes = [(2 * height, width) for height, width in plan.values.sizes]
    assert duration.expected_seconds(plan) - starts == pytest.approx(2 * once)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = _pairs(tmp_path / "data", 30)
    assert main(["init", str(tmp_path / "ws"), *folders.arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for part in ("images     30 in", "classes    class_0, class_1, class_2, class_3", "learn", "teacher_train.epochs"):
        assert part in out
    assert not (tmp_path / "ws").exists()


def test_the_workspace_is_made_once_and_its_commands_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = _pairs(tmp_path / "data", 30)
    command = ["init", str(tmp_path / "ws"), *folders.arguments]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "workspace of your own images\nnext: cd " in err
    assert "\ntime       about " in out
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "\ntime       " not in out, "nobody waits for a measurement of a workspace that is there"
    assert "already a workspace of your own images; nothing changed" in err
    assert "not as in this plan" not in err
    assert main([*command, "--classes", "voc"]) == 0
    assert "not as in this plan: data/classes.json; edit there" in capsys.readouterr().err
    assert main(["config", "diff", "--workspace", str(tmp_path / "ws")]) == 0
    assert "teacher_train.epochs: 200 -> " in capsys.readouterr().out
    assert main(["doctor", "--workspace", str(tmp_path / "ws")]) in (0, 1)
    assert "broken" not in "".join(line for line in capsys.readouterr().out.splitlines() if "data target" in line)
    stages = (tmp_path / "ws" / "dvc.yaml").read_text()
    assert "- ${data.target.root}/${data.target.labels}\n" in stages
    assert "- ${data.target.root}\n" not in stages, "other folders next to these would start the chain"


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ([], "expected either --images or --profile"),
        (["--images", ".", "--profile", "tiny"], "expected either --images or --profile"),
        (["--profile", "tiny", "--labels", "."], "--labels belongs to --images"),
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--images", "images"], "no label maps are given"),
        (["--images", "images", "--labels", "labels", "--new", "images"], "is given as --images and as --new"),
        (["--images", "images", "--labels", "labels", "--classes", "camvit"], "--classes camvit: no such file"),
        (["--images", "images", "--labels", "labels", "--void", "x"], "--void x: expected values"),
    ],
)
def test_wrong_arguments_are_one_line(
    given: list[str], wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pairs(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "ws", *given]) > 0
    assert wrong in capsys.readouterr().err
    assert not (tmp_path / "ws").exists()


def test_images_of_one_place_stay_together_by_folder_time_and_likeness(tmp_path: Path) -> None:
    folders = _pairs(tmp_path / "few", 12)  # twins of each picture under names that say nothing
    names = ["qa", "wb", "ec", "rd", "te", "yf", "ug", "ih", "oi", "pj", "ak", "sl"]
    for n, name in enumerate(names):
        (folders.images / f"a{n}.png").rename(folders.images / f"{name}.png")
        (folders.labels / f"a{n}.png").rename(folders.labels / f"{name}.png")
        twin = np.clip(scene(n)[0].astype(int) + 2, 0, 255).astype(np.uint8)
        save(folders.images / f"z{name}.png", twin)
        save(folders.labels / f"z{name}.png", scene(n)[1])
    plan = planned(folders)
    roles = dict(zip((f.name for f in plan.roles.found), plan.roles.roles, strict=True))
    assert "look alike" in plan.roles.how
    assert all(roles[name] == roles[f"z{name}"] for name in names)
    assert plan.files()["data/images.csv"].startswith("name,split,sequence,frame\n")


def test_a_public_label_set_is_known_by_its_colours_and_by_name(tmp_path: Path) -> None:
    folders = _pairs(tmp_path)
    camvid = np.array(
        [(128, 128, 128), (128, 64, 128), (64, 0, 128), (128, 128, 0), (0, 0, 0), (60, 40, 222)], np.uint8
    )
    for n in range(12):
        ids = scene(n)[1].copy()
        ids[0], ids[1] = 4, 5
        save(folders.labels / f"a{n}.png", camvid[ids])
    plan = planned(folders)
    assert plan.classes.where == "camvid"
    assert plan.classes.names[0x404000] == "Pedestrian"
    assert "Void" not in plan.classes.names.values()
    named = make_plan(Folders(folders.images, folders.labels), classes="camvid", machine=CPU)
    assert named.classes.names == plan.classes.names
    # Cityscapes has one colour for several kinds of void, and for pole and polegroup.
    cityscapes = np.array(
        [(0, 0, 0), (128, 64, 128), (70, 70, 70), (153, 153, 153), (70, 130, 180), (0, 0, 142)], np.uint8
    )
    for n in range(12):
        save(folders.labels / f"a{n}.png", cityscapes[np.arange(SIZE[0])[:, None] // 8 % 6 + np.zeros(SIZE, int)])
    plan = planned(folders)
    assert list(plan.classes.names.values()) == list(taxonomy.cityscapes().classes)


def test_json_classes_keep_their_groups_and_colours(tmp_path: Path) -> None:
    folders = _pairs(tmp_path)
    rows = [{"id": i, "name": n, "colour": list(COLOURS[n]), "group": "nature"} for i, n in enumerate(NAMES)]
    (tmp_path / "classes.json").write_text(json.dumps({"ignore_id": 9, "classes": rows}))
    save(folders.labels / "a0.png", np.where(scene(0)[1] == 3, 9, scene(0)[1]).astype(np.uint8))
    plan = planned(folders)
    written(plan, tmp_path / "ws")
    table = from_file(tmp_path / "ws" / "data" / "classes.json")
    assert table.groups == ("nature",) * 4
    assert table.id_to_train[9] == taxonomy.IGNORE
    assert table.colours == tuple(COLOURS.values())
    assert Params.load(tmp_path / "ws" / "params.yaml").data.target.kind == "plain"


def test_another_network_labels_with_a_student_or_without_label_maps(tmp_path: Path) -> None:
    folders = _pairs(tmp_path / "data", 30)
    teacher = f"scores:{tmp_path}"
    ws = written(make_plan(Folders(folders.images, folders.labels), teacher=teacher, machine=CPU), tmp_path / "with")
    params = ws.params
    assert params.teacher_train.skip
    assert params.auto_infer.teacher == (teacher,)
    onnx = make_plan(Folders(folders.images, folders.labels), teacher=f"onnx:{tmp_path}/net.onnx", machine=CPU)
    chosen = {c.key: c.value for c in onnx.choices}
    assert (chosen["auto_infer.scales"], chosen["auto_infer.flip"]) == ([1.0], False), "all that a fixed size allows"
    assert (params.student_train.init, params.student_train.epochs) == ("pretrained", 120)
    assert params.student_train.model.trunk_weights == "package:efficientnet-lite0"
    assert (params.pseudo_label.threshold, params.student_train.pseudo.share) == (0.0, 0.75)
    file = {"classes": list(NAMES), "members": [{"teacher": teacher}]}
    for images, said in ([], False), ([sha256_file(path) for path in folders.images.iterdir()], True):
        (tmp_path / "adopted.yaml").write_text(json.dumps(file | {"images": images}))
        adopted = str(tmp_path / "adopted.yaml")
        plan = make_plan(Folders(folders.images, folders.labels), teacher=adopted, machine=CPU)
        assert any("images of role report `autolabel adopt` has chosen" in note for note in plan.findings.notes) == said
    drawn = tmp_path / "data" / "coarse"
    drawn.mkdir()
    (folders.labels / "a0.png").rename(drawn / "a0.png")
    merged = make_plan(Folders(folders.images, folders.labels, coarse=drawn), teacher=teacher, machine=CPU)
    assert {c.key: c.value for c in merged.choices}["pseudo_label.threshold"] == 0.9
    with pytest.raises(ConfigError, match="which classes the labels shall have is not known"):
        make_plan(Folders(folders.images), teacher=teacher, machine=CPU)
    plan = make_plan(Folders(folders.images), classes="voc", teacher=teacher, machine=CPU)
    ws = written(plan, tmp_path / "without")
    assert {f.role for f in scan(ws.source("target")).found} == {"unlabelled"}
    assert scan(ws.source("target")).classes.classes[:2] == ("background", "aeroplane")
    stages = yaml.safe_load(render_dvc_yaml(ws.params.data))["stages"]
    assert list(stages) == ["settings", "prepare", "auto-infer"]
    assert stages["auto-infer"]["deps"] == ["data/index/unlabelled.parquet", "models/current.json"]


def test_networks_are_adopted_by_images_that_only_learn(tmp_path: Path) -> None:
    folders, scores = _pairs(tmp_path / "data", 30), tmp_path / "scores"
    scores.mkdir()
    for path in folders.labels.iterdir():
        label = np.array(Image.open(path))
        np.save(scores / f"{path.stem}.npy", np.stack([label == c for c in (3, 2, 1, 0)]).astype(np.float32))
    plan = make_plan(Folders(folders.images, folders.labels), adopt=[f"scores:{scores}"], machine=CPU)
    assert "0 -> class_3 (by labels, 100% of" in "\n".join(plan.lines())
    assert any("delete the line `unconfirmed`" in note for note in plan.findings.notes)
    learn = {sha256_file(plan.reading.root / f.image) for f in plan.roles.images("learn", labelled=True)}
    ws = written(plan, tmp_path / "ws")
    assert ws.params.auto_infer.teacher == ("teacher.yaml",)
    with pytest.raises(ConfigError, match="labels alone say what the classes of scores:"):
        chosen_on(str(ws.path("teacher.yaml")))
    text = ws.path("teacher.yaml").read_text().splitlines(keepends=True)
    ws.path("teacher.yaml").write_text("".join(line for line in text if not line.startswith("unconfirmed:")))
    assert chosen_on(str(ws.path("teacher.yaml"))) == learn
    plan = make_plan(Folders(folders.images, folders.labels), teacher=str(ws.path("teacher.yaml")), machine=CPU)
    assert not any("has chosen how the networks" in note for note in plan.findings.notes)


def test_another_network_is_timed_on_one_of_the_images(tmp_path: Path) -> None:
    folders, scores = _pairs(tmp_path / "data", 30), tmp_path / "scores"
    scores.mkdir()
    for n in range(30):
        np.savez(scores / f"a{n}.npz", np.full((4, *SIZE), 0.25, np.float32))
    (scores / "teacher.yaml").write_text("classes: {0: class_0, 1: class_1, 2: class_2, 3: class_3}\n")
    plan = make_plan(Folders(folders.images, folders.labels), teacher=f"scores:{scores}", machine=CPU)
    assert 0 < duration._seconds_of_teacher(plan, written(plan, tmp_path / "ws").params) < 5
    for path in scores.glob("*.npz"):
        path.unlink()
    with pytest.raises(InputError, match="no .npz, .npy, .png file in it"):
        duration.expected_seconds(plan)


def test_maps_may_lie_next_to_photographs_of_their_names_and_names_may_count_from_one(tmp_path: Path) -> None:
    for n in range(12):
        image, ids = scene(n)
        save(tmp_path / "all" / f"a{n}.jpg", image)
        save(tmp_path / "all" / f"a{n}.png", ids + np.uint8(1))
    (tmp_path / "all" / "classes.txt").write_text("\n".join(NAMES))
    plan = make_plan(Folders(tmp_path / "all", tmp_path / "all"), machine=CPU)
    assert plan.classes.names == dict(enumerate(NAMES, 1))
    found = scan(written(plan, tmp_path / "ws").source("target")).found
    assert {Path(f.image).suffix for f in found} == {".jpg"}
    assert len(found) == 12


def test_a_workspace_in_the_folder_of_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _pairs(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "ws", "--images", ".", "--labels", "labels"]) == 2
    assert "ws lies in .: the pictures that the workspace makes would be read" in capsys.readouterr().err
