"""Which files are images and which are label maps, and by which patterns of names they are paired."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hmsa_core.data.plain import NamePattern, Pairs, files_below, images_among_maps, pair
from hmsa_core.data.source import SourceSpec
from hmsa_core.data.walk import IMAGE_SUFFIXES, LABEL_SUFFIXES, Walk, listing, stem_of, walk
from hmsa_core.io.errors import InputError, is_plain_name
from pipeline.plan.findings import Findings, few

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "rgb", "photos", "pictures", "frames")
# In order of preference: a data set may hold several kinds of maps.
LABEL_FOLDERS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "segmentationclass", "segmentationclassaug"),
    *("segmentation", "segmentations", "semantic", "gtfine", "gt", "groundtruth", "ground_truth", "labelids", "annot"),
    *("segmentationclassraw", "semantic_labels", "seg", "targets", "target", "ids", "v1.2", "v2.0"),
)
# Maps that are not ids or colours of classes; only taken if nothing else pairs.
_OTHER_MAPS = re.compile(
    r"colou?r|instance|object|panoptic|overlay|vis|prob|depth|confidence|preview|edge", re.IGNORECASE
)
_PREFERRED = ("labeltrainids", "labelids", "mask", "label", "semantic", "seg", "gt", "l")
_SEPARATORS = "._- "
_CANDIDATES = 12  # endings that are tried
_UNREAD = (".bmp", ".gif", ".heic", ".heif", ".avif", ".jp2", ".tga", ".pgm", ".ppm")  # endings of other pictures


@dataclass(frozen=True)
class Folders:
    """Folders that a user names; None = not given."""

    images: Path
    labels: Path | None = None
    new: Path | None = None
    coarse: Path | None = None

    def all(self) -> list[Path]:
        """The folders that are given."""
        return [path for path in (self.images, self.labels, self.coarse, self.new) if path is not None]


@dataclass
class Reading:
    """Where the files lie and how they are paired; `source` holds it as settings."""

    root: Path
    source: SourceSpec
    pairs: Pairs
    coarse: Pairs = field(default_factory=Pairs)
    new: list[str] = field(default_factory=list)

    def image(self, path: str) -> Path:
        """The file of an image."""
        return self.root / self.source.images / path

    def new_images(self) -> list[Path]:
        """Files of the images to be labelled."""
        return [self.root / self.source.new / path for path in self.new]

    def label(self, image: str) -> Path:
        """The file of an image's label map."""
        return self.root / self.source.labels / self.pairs.labels[image]

    @property
    def labelled(self) -> list[str]:
        """Images with a label map."""
        return sorted(self.pairs.labels)


def read_folders(folders: Folders, findings: Findings) -> Reading:
    """Find the images, the label maps and how they belong together.

    Raises:
        InputError: a folder is missing, holds no picture, or nothing belongs together.
    """
    for path in folders.all():
        if not path.is_dir():
            raise InputError(f"{path}: no such folder", hint="give an existing folder of pictures")
    if folders.new is not None and folders.new.resolve() == folders.images.resolve():
        hint = "give --new images that are not in --images; images there without a label map are auto-labelled anyway"
        raise InputError(f"{folders.new} is given as --images and as --new", hint=hint)
    walks = {folder: walk(folder) for folder in folders.all()}
    for found in walks.values():
        _check_formats(found, findings)
    paths = [path.resolve() for path in folders.all()]
    root = Path(os.path.commonpath(paths))  # around all folders: the parent where it is one of them
    root = root.parent if root in paths else root
    spots = {name: _below(root, getattr(folders, name)) for name in ("images", "labels", "coarse", "new")}
    others = [spots[name] for name in ("labels", "coarse", "new")]
    images = files_below(root, spots["images"], IMAGE_SUFFIXES, others)
    if not images:
        there = ", ".join(
            sorted({Path(name).suffix for names in walks[folders.images].others.values() for name in names})
        )
        raise InputError(
            f"{folders.images}: no picture in it" + (f" (files of kinds {there})" if there else ""),
            hint="give a folder of PNG, JPEG, WebP or TIFF files",
        )
    labels = files_below(root, spots["labels"], LABEL_SUFFIXES, [spots["coarse"], spots["new"]])
    names, pairs = NamePattern(), Pairs(images=images)
    label_name = NamePattern()
    if folders.labels is not None:
        _check_labels(walks[folders.labels], folders.images, images, labels, findings)
        names, label_name, pairs = best_patterns(images, labels, is_one_folder=spots["labels"] == spots["images"])
        _check_pairs(folders, pairs, findings)
    coarse_name, coarse = NamePattern(), Pairs()
    if folders.coarse is not None:
        drawn = files_below(root, spots["coarse"], LABEL_SUFFIXES)
        coarse_name, coarse = best_label_pattern(pairs.images, drawn, names)
        if not coarse.labels:
            raise _nothing_fits(str(folders.images), str(folders.coarse), pairs.images, drawn)
    new = files_below(root, spots["new"], IMAGE_SUFFIXES, [spots["images"], spots["labels"], spots["coarse"]])
    if folders.new is not None and not new:
        findings.note(f"{folders.new} holds no picture yet", "put the images to be labelled there")
    source = SourceSpec.model_validate(
        {"kind": "plain", "root": str(root), **spots, "image_name": str(names), "label_name": str(label_name)}
        | {"coarse_name": str(coarse_name), "classes": "data/classes.json", "names": _names(pairs.images, new)}
    )
    return Reading(root, source, pairs, coarse, new)


def _below(root: Path, folder: Path | None) -> str:
    return "" if folder is None else folder.resolve().relative_to(root).as_posix()


def _names(images: Sequence[str], new: Sequence[str]) -> str:
    """`stem` where all stems differ and no folder lies below, else `path`."""
    stems = [stem_of(path) for path in (*images, *new)]
    is_flat = not any("/" in path for path in (*images, *new))
    return "stem" if is_flat and len(set(stems)) == len(stems) else "path"


def _check_formats(found: Walk, findings: Findings) -> None:
    """Count pictures in formats that no command reads, without those whose folder has a readable file of their name.

    InputError: also for a name that `prepare` refuses.
    """
    if odd := next((path for path in found.paths() if not is_plain_name(str(path))), None):
        raise InputError(
            f"{str(odd)!a}: a name on this path holds control characters or bytes that are no UTF-8",
            hint="rename it, for example with `convmv -f latin1 -t utf8 -r --notest FOLDER`",
        )
    names = {path.with_name(stem_of(path)) for path in found.paths()}
    others = [path for kind in _UNREAD for path in found.others.get(kind, ())]
    unread = sorted(path for path in others if (found.root / path).with_name(stem_of(path)) not in names)
    text = f"{found.root}: {len(unread)} pictures have a format that is not read, first {few(unread)}"
    findings.count(len(unread), len(unread) + len(names), text, "convert them to PNG, which changes no value")


def _check_labels(found: Walk, around: Path, images: Sequence[str], labels: Sequence[str], findings: Findings) -> None:
    """Refuse folders of labels that hold JPEG files or nothing that can be a label map."""
    folder = found.root
    jpeg = [path for path in found.paths() if path.suffix.lower() not in LABEL_SUFFIXES]
    paired = {stem_of(path) for path in images}
    wrong = [path for path in jpeg if stem_of(path) in paired or not labels]
    if wrong and not around.resolve().is_relative_to(folder.resolve()):
        text = f"{folder}: {len(wrong)} label maps are JPEG files, first {wrong[0].name}: JPEG changes values"
        cure = "export them again as PNG from the annotation tool; a converted JPEG keeps its wrong values"
        if not labels:
            cure = "give the folder of label maps, exported as PNG (are --images and --labels swapped?)"
        findings.count(len(wrong), len(wrong) + len(labels), text, cure)
    if not labels:
        raise InputError(
            f"{folder}: no label map in it (PNG, WebP or TIFF)",
            hint="give the folder of label maps; polygons and boxes have to be drawn as maps first",
        )


def _check_pairs(folders: Folders, pairs: Pairs, findings: Findings) -> None:
    labels = len(pairs.labels) + len(pairs.stray) + len(pairs.unclear)
    if pairs.unclear:
        path, why = next(iter(pairs.unclear.items()))
        text = f"{len(pairs.unclear)} label maps belong to no single image, first {path}: {why}"
        cure = "give label maps the folders of their images, or --labels the folder of one kind of maps"
        findings.count(len(pairs.unclear), labels, text, cure)
    text = f"{len(pairs.stray)} of {labels} label maps have no image, first {few(pairs.stray)}"
    findings.count(len(pairs.stray), labels, text, f"remove them, or add their images to {folders.images}")
    bare = [path for path in pairs.images if path not in pairs.labels]
    if bare:
        findings.note(
            f"{len(bare)} of {len(pairs.images)} images have no label map, first {few(bare)}",
            "they count as new images",
        )


def best_patterns(
    images: Sequence[str], labels: Sequence[str], *, is_one_folder: bool
) -> tuple[NamePattern, NamePattern, Pairs]:
    """The patterns of image and label names that pair most files, the plainest of equals.

    Raises:
        InputError: nothing fits.
    """
    best: tuple[tuple[float, ...], NamePattern, NamePattern, Pairs] | None = None
    for image_name in _image_patterns(images, labels):
        pictures = [path for path in images if image_name.core(path)]
        for label_name in _label_patterns(pictures, labels, image_name):
            apart = images_among_maps(pictures, image_name, label_name) if is_one_folder else pictures
            pairs = pair(apart, labels, image_name, label_name)
            pairs.images = sorted(apart if is_one_folder else images)
            bare = len(pairs.images) - len(pairs.labels)  # of one folder: files that may be neither
            maps = sum(map(_is_map, pairs.labels)) if is_one_folder else 0
            score = (
                *_score(pairs, image_name, label_name, less=maps),
                *((-bare, bool(image_name.folder)) if is_one_folder else ()),
            )
            if pairs.labels and (best is None or score > best[0]):
                best = score, image_name, label_name, pairs
    if best is None:
        raise _nothing_fits("images", "labels", images, [] if is_one_folder else labels)
    return best[1:]


def _middles(paths: Sequence[str]) -> list[str]:
    """Words between separators in the middle of a third or more of the names: _camera_."""
    found = Counter(word for path in paths for word in set(re.findall(r"(?=([._\- ][A-Za-z]+[._\- ]))", stem_of(path))))
    return sorted(word for word, count in found.items() if 3 * count >= len(paths))


def _is_map(path: str) -> bool:
    """Whether the folders of a path say that it is a label map of some kind."""
    return any(p.lower() in LABEL_FOLDERS or _OTHER_MAPS.search(p) for p in PurePosixPath(path).parts[:-1])


def best_label_pattern(
    images: Sequence[str], labels: Sequence[str], image_name: NamePattern
) -> tuple[NamePattern, Pairs]:
    """The pattern of label names that pairs most files with these images."""
    tried = [(name, pair(images, labels, image_name, name)) for name in _label_patterns(images, labels, image_name)]
    return max(tried, key=lambda one: _score(one[1], image_name, one[0]), default=(NamePattern(), Pairs()))


def _score(pairs: Pairs, image_name: NamePattern, label_name: NamePattern, less: int = 0) -> tuple[float, ...]:
    text = f"{label_name.folder}/{label_name.start}{label_name.middle}{label_name.end}".lower()
    words = [part for part in re.split(r"[^a-z0-9.]+", text) if part]
    rank = next((len(_PREFERRED) - i for i, word in enumerate(_PREFERRED) if word in words), 0)
    folder = label_name.folder.lower().strip("*._- ")
    rank_of_folder = len(LABEL_FOLDERS) - LABEL_FOLDERS.index(folder) if folder in LABEL_FOLDERS else 0
    is_class = not _OTHER_MAPS.search(text)
    plain = (-len(name.start + name.middle + name.end) for name in (label_name, image_name))
    return (round((len(pairs.labels) - less) * (1.0 if is_class else 0.1), 3), rank, rank_of_folder, *plain)


def _image_patterns(images: Sequence[str], labels: Sequence[str]) -> Iterator[NamePattern]:
    """Plausible patterns: any name, the common ending and beginning, each also within a folder of images."""
    yield from _affixes(images, "")
    alone = {name for names in _forms(images, labels).values() if len(names) == 1 for name in names}
    for folder in (*_named(images, IMAGE_FOLDERS), *sorted(alone)):
        yield from _affixes([path for path in images if folder in PurePosixPath(path).parts[:-1]], folder)
    yield from (NamePattern(middle=word) for word in _middles(images))


def _affixes(images: Sequence[str], folder: str) -> Iterator[NamePattern]:
    stems = [stem_of(path) for path in images]
    end, start = _common_end(stems), _common_start(stems)
    yield NamePattern(folder)
    if end:
        yield NamePattern(folder, "", end)
    if start:
        yield NamePattern(folder, start)
    # Some images may lack the ending that those with a label map have.
    yield from (NamePattern(folder, "", ending) for ending, _ in _endings(stems).most_common(3) if ending != end)


def _endings(stems: Iterable[str]) -> Counter[str]:
    """Endings that begin with a separator and hold no digit before the last word: _leftImg8bit, _rgb, -image."""
    matches = (re.search(r"[._\-][A-Za-z][A-Za-z0-9]*$", stem) for stem in stems)
    found = Counter(match[0] for match in matches if match)
    return Counter({ending: count for ending, count in found.items() if count > 1})


def _common_end(stems: Sequence[str]) -> str:
    end = _common([stem[::-1] for stem in stems])[::-1]
    match = re.search(r"[._\-][A-Za-z].*$", end)
    return match[0] if match and all(len(stem) > len(match[0]) for stem in stems) else ""


def _common(texts: Sequence[str]) -> str:
    """What all texts begin with; "" of one text."""
    if len(texts) < 2:
        return ""
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _common_start(stems: Sequence[str]) -> str:
    start = _common(stems)
    match = re.match(r"^[A-Za-z]+[._\-]?", start)
    return match[0] if match and all(len(stem) > len(match[0]) for stem in stems) else ""


def _named(paths: Sequence[str], words: Collection[str]) -> list[str]:
    """Folders on these paths that have one of these names."""
    parts = {part for path in paths for part in PurePosixPath(path).parts[:-1]}
    return sorted(part for part in parts if part.lower() in words)


def _label_patterns(images: Sequence[str], labels: Sequence[str], image_name: NamePattern) -> Iterator[NamePattern]:
    if image_name.middle:
        yield from (NamePattern(middle=word) for word in _middles(labels) if word != image_name.middle)
        return
    cores = {core[1] for path in images if (core := image_name.core(path))}
    for folder in ("", *_named(labels, LABEL_FOLDERS), *_forms(images, labels)):
        any_name = NamePattern(folder)
        within = [path for path in labels if any_name.core(path)]
        found: Counter[NamePattern] = Counter()
        for stem in map(stem_of, within):
            found.update({NamePattern(folder, *affixes) for affixes in _around_core(stem, cores)})
        yield from (name for name, _ in found.most_common(_CANDIDATES))


def _forms(images: Sequence[str], labels: Sequence[str]) -> dict[str, set[str]]:
    """Folders of label maps named as an image folder with more before or after: {*_labels: {train, val}}."""
    here, there = ({part for path in paths for part in PurePosixPath(path).parts[:-1]} for paths in (images, labels))
    found: dict[str, set[str]] = {}
    for part in sorted(there):
        for cut in (i for i, character in enumerate(part) if character in _SEPARATORS):
            for name, form in ((part[:cut], f"*{part[cut:]}"), (part[cut + 1 :], f"{part[: cut + 1]}*")):
                if name in here and re.search("[A-Za-z]", form):
                    found.setdefault(form, set()).add(name)
    return found


def _around_core(stem: str, cores: Collection[str]) -> Iterator[tuple[str, str]]:
    """What a label map's name has before and after the name that it shares with an image."""
    if stem in cores:
        yield "", ""
    end = next((k for k in range(len(stem) - 1, 0, -1) if stem[:k] in cores), 0)
    if end and not stem[end].isdigit():
        yield "", stem[end:]
    start = next((k for k in range(1, len(stem)) if stem[k:] in cores), 0)
    if start and not (stem[start - 1].isdigit() and stem[start].isdigit()):
        yield stem[:start], ""


def _nothing_fits(images: str, labels: str, pictures: Sequence[str], maps: Sequence[str]) -> InputError:
    there = f"; {labels} holds {few(list(maps))}" if maps else ""
    return InputError(
        f"no label map fits an image: {images} holds {few(list(pictures))}{there}",
        hint="give label maps the names of their images, with an ending or a beginning that all of them have",
    )


def folders_of_classes(reading: Reading) -> list[Path]:
    """Folders that may hold a file of class names: those of the label maps, of the images, and around them."""
    tops = [reading.root / folder for folder in (reading.source.labels, reading.source.images) if folder]
    below = [reading.label(image).parent for image in reading.labelled[:1]]
    inner = [path for top in tops for path in (top / name for name in listing(top).folders)]
    around = [top.parent for top in tops] if reading.source.labels != reading.source.images else []
    around += [top.parent.parent for top in tops if (top.parent.parent / "meta.json").is_file()]  # Supervisely's
    return list(dict.fromkeys((*below, *tops, *inner, *around)))


def changed(source: SourceSpec, **values: object) -> SourceSpec:
    """The settings with other values, which are checked."""
    return SourceSpec.model_validate({**source.model_dump(), **values})
