"""Which photographs the page finds below `--images`, whatever their shape, and which it must not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_core.labels import LabelStoreWriter
from pipeline.review.session import Session
from tests.support.asgi import Reply, client_of
from tests.support.label_scenes import LINEAGE

SECRET = b"\x89PNG\r\n\x1a\nthe secret"


def make_store(folder: Path, *paths: str, size: tuple[int, int] = (16, 8), coarse: str = "") -> Path:
    """A store whose images lie at `paths`, named a, b, ...; `size` is (width, height)."""
    label = np.arange(size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8) % 19
    with LabelStoreWriter(folder / "raw", LINEAGE) as writer:
        for name, path in zip("abc", paths, strict=False):
            writer.add(name, label, np.full(label.shape, 0.95, np.float32), image_path=path, coarse_path=coarse)
    return folder / "raw"


def make_picture(path: Path, size: tuple[int, int] = (16, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 90, np.uint8))


def ask(session: Session, what: str, name: str = "a") -> Reply:
    with client_of(session) as client:
        return client.get(f"/api/{what}", name=name)


def look(store: Path, images: str | Path) -> tuple[str, int]:
    """What `serve` notes of a folder of photographs, and how many of the store's are found in it."""
    pictures = Session(store, images=Path(images)).view.pictures
    return pictures.note, sum(ask(Session(store, images=Path(images)), "picture", name).status == 200 for name in "ab")


def test_the_folder_that_was_labelled_and_its_parent_are_both_taken(tmp_path: Path, monkeypatch) -> None:
    store = make_store(tmp_path, "photos/x.png", "photos/cam/y.png")
    make_picture(tmp_path / "photos/x.png")
    make_picture(tmp_path / "photos/cam/y.png")
    monkeypatch.chdir(tmp_path)
    assert look(store, ".") == ("", 2)
    assert look(store, "photos") == ("", 2)
    monkeypatch.chdir(tmp_path / "photos")
    assert look(store, ".")[1] == 2


def test_a_folder_without_any_photograph_of_the_store_is_reported_with_the_one_to_give(tmp_path: Path) -> None:
    store = make_store(tmp_path, "photos/x.png", "photos/y.png")
    (tmp_path / "else").mkdir()
    said, _ = look(store, tmp_path / "else")
    assert "\n" not in said
    assert f"0 of its 2 photographs are below {tmp_path / 'else'}" in said
    assert "give --images the folder that holds 'photos/x.png'" in said
    assert "it names none" in look(make_store(tmp_path / "none", ""), tmp_path)[0]
    odd, _ = look(make_store(tmp_path / "odd", "x\nerror: \x1b[2J.png"), tmp_path)
    assert not {"\n", "\x1b"} & set(odd), "control characters write no line of their own"


def test_paths_that_begin_in_the_folder_are_never_followed_from_its_parent(tmp_path: Path) -> None:
    store = make_store(tmp_path, "x.png", "photos/y.png")
    make_picture(tmp_path / "photos/x.png")
    make_picture(tmp_path / "photos/y.png")
    session = Session(store, images=tmp_path / "photos")
    assert session.view.pictures.note == ""
    assert [ask(session, "picture", name).status for name in "ab"] == [200, 404]


WAYS_OUT = "beside.png other/secret.png photos/../beside.png photos/link.png photos/out/secret.png photos-2/secret.png"
WAYS_OUT += (
    r" ../secret.png photos/../../secret.png /etc/passwd link.png out/secret.png . .. %2e%2e/secret.png ..\secret.png"
)


@pytest.mark.parametrize("path", WAYS_OUT.split())
def test_nothing_outside_of_the_given_folder_is_read_whatever_the_store_says(tmp_path: Path, path: str) -> None:
    top = tmp_path / "top"
    make_picture(top / "photos/x.png")
    for secret in ("beside.png", "other/secret.png", "photos-2/secret.png", "../secret.png"):
        (top / secret).parent.mkdir(exist_ok=True)
        (top / secret).write_bytes(SECRET)
    (top / "photos/link.png").symlink_to(top / "beside.png")
    (top / "photos/out").symlink_to(top / "other")
    # Next to a path that begins above the folder, and alone.
    for name, paths in (("b", ("photos/x.png", path)), ("a", (path,))):
        session = Session(make_store(top / name, *paths, coarse=path), images=top / "photos")
        with client_of(session) as client:
            for what in ("picture", "thumb", "plane"):
                reply = client.get(f"/api/{what}", name=name, plane="human")
                assert reply.status in (404, 409)
                assert b"the secret" not in reply.body
            shown = client.get("/api/image", name=name).json()
            assert (shown["picture"], shown["human"]) == (False, False)
            assert (client.get("/api/picture", name="a").status == 200) == (name == "b")
    assert "0 of its 1" in session.view.pictures.note


@pytest.mark.parametrize("path", ["photos/" + "x" * 300, "photos/x\0y", "photos/circle/x.png"])
def test_a_path_that_cannot_be_one_does_not_keep_the_page_from_starting(tmp_path: Path, path: str) -> None:
    make_picture(tmp_path / "photos/x.png")
    (tmp_path / "photos/circle").symlink_to(tmp_path / "photos/circle")
    for others in ((), ("photos/x.png",)):
        folder = tmp_path / str(len(others))
        session = Session(make_store(folder, path, *others), images=tmp_path / "photos")
        assert ask(session, "picture").status in (404, 409, 500)
        assert "message" in ask(session, "picture").json()


@pytest.mark.parametrize("size", [(4000, 8), (300, 1), (1, 300), (8, 4000), (1, 1), (3, 2), (1, 40000)])
def test_an_image_of_any_shape_has_its_thumbnails(tmp_path: Path, size: tuple[int, int]) -> None:
    store = make_store(tmp_path, "photos/x.png", size=size)
    make_picture(tmp_path / "photos/x.png", size)
    session = Session(store, images=tmp_path)
    mini = ask(session, "mini").picture()
    label, code = session.view.read("a")
    assert mini.shape[0] % 2 == 0
    assert mini.shape[1] <= 176
    top, bottom = np.split(mini, 2)
    assert set(np.unique(top)) <= set(np.unique(label))
    assert set(np.unique(bottom)) == set(np.unique(code))
    thumb = ask(session, "thumb").picture()
    assert thumb.shape[1] == 288
    # A tile shows the middle of both: the same part, at most four times as long as wide.
    for height, width in (top.shape, thumb.shape[:2]):
        assert max(height, width) <= 4.1 * min(height, width)


def test_a_usual_thumbnail_samples_the_middle_of_each_step(tmp_path: Path) -> None:
    session = Session(make_store(tmp_path, "", size=(704, 352)))
    mini = ask(session, "mini").picture()
    label, code = session.view.read("a")
    assert np.array_equal(mini, np.concatenate([label[2::4, 2::4], code[2::4, 2::4]]))
