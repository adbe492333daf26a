"""Object stores at the edge, against an S3 server on loopback: reading through the cache, puts, errors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmsa_core.io import remote
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError, NoSpaceError
from tests.support import s3

pytestmark = pytest.mark.long


@pytest.fixture
def data(bucket: s3.Server) -> s3.Server:
    for name, content in {"a.png": b"a" * 1000, "sub/b.png": b"b" * 1000, "classes.json": b"{}"}.items():
        bucket.put("lab", f"images/{name}", content)
    return bucket


def cached() -> int:
    return sum(p.stat().st_size for p in (remote.cache_folder() / "objects").rglob("*.object"))


def test_a_folder_is_listed_at_once_and_a_file_is_fetched_when_it_is_read(data: s3.Server) -> None:
    tree = remote.local_tree("s3://lab/images/")
    assert sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*.*")) == ["a.png", "classes.json", "sub/b.png"]
    assert cached() == 2  # the JSON file at the top
    assert remote.fetched(tree / "sub" / "b.png").read_bytes() == b"b" * 1000
    requests = len(data.requests)
    assert remote.fetched(tree / "sub" / "b.png").read_bytes() == b"b" * 1000
    assert len(data.requests) == requests


def test_an_object_that_changes_or_goes_is_named_and_a_new_listing_has_the_new_one(data: s3.Server) -> None:
    tree = remote.local_tree("s3://lab/images")
    data.put("lab", "images/a.png", b"c" * 1000)
    with pytest.raises(IntegrityError, match=r"s3://lab/images/a\.png: has changed since it was listed"):
        remote.fetched(tree / "a.png")
    data.put("lab", "images/sub/b.png", b"short")
    with pytest.raises(IntegrityError, match="has changed"):
        remote.fetched(tree / "sub" / "b.png")
    assert cached() == 2
    tree = remote.local_tree("s3://lab/images")
    assert remote.fetched(tree / "a.png").read_bytes() == b"c" * 1000
    data.remove("lab", "images/sub/b.png")
    with pytest.raises(IntegrityError, match="was removed after"):
        remote.fetched(tree / "sub" / "b.png")


def test_the_cache_keeps_to_its_limit_and_drops_what_was_not_used_for_longest(
    bucket: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(14):
        bucket.put("lab", f"images/{i:02d}.png", bytes([i]) * 1000)
    monkeypatch.setenv("AUTOLABEL_CACHE_GB", "0.00001")  # ten of them
    tree = remote.local_tree("s3://lab/images")
    for i in range(14):
        assert remote.fetched(tree / f"{i:02d}.png").read_bytes() == bytes([i]) * 1000
        remote.fetched(tree / "00.png")
        assert cached() <= 10_000
    assert (tree / "00.png").exists()
    assert not (tree / "02.png").exists()
    bucket.put("lab", "images/large.png", b"x" * 11_000)
    with pytest.raises(NoSpaceError, match=r"large\.png: .* do not fit into the cache"):
        remote.fetched(remote.local_tree("s3://lab/images") / "large.png")
    bucket.remove("lab", "images/large.png")
    with pytest.raises(NoSpaceError, match="larger than the cache"):
        remote.local_folder("s3://lab/images")


READ_ALL = """
import hashlib, sys
from pathlib import Path
from hmsa_core.io import remote
paths = sorted(Path(sys.argv[1]).rglob("*.png"))
print(hashlib.sha256(b"".join(p.read_bytes() for p in remote.ahead(paths, lambda p: [p]))).hexdigest())
"""


def test_two_processes_share_a_cache(bucket: s3.Server) -> None:
    for i in range(40):
        bucket.put("lab", f"images/{i:02d}.png", bytes([i]) * 5000)
    tree = remote.local_tree("s3://lab/images")
    command = [sys.executable, "-c", READ_ALL, str(tree)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    reported = {reader.communicate()[0].strip() for reader in readers}
    assert reported == {hashlib.sha256(b"".join(bytes([i]) * 5000 for i in range(40))).hexdigest()}
    assert [p.name for p in remote.cache_folder().rglob("*.tmp")] == []


def test_fetching_ahead_keeps_the_order_and_ends_at_what_concerns_all_files(data: s3.Server) -> None:
    tree = remote.local_tree("s3://lab/images")
    paths = [tree / "a.png", tree / "classes.json", tree / "sub" / "b.png"]
    assert [p.read_bytes()[:1] for p in remote.ahead(paths, lambda p: [p])] == [b"a", b"{", b"b"]
    data.put("lab", "images/a.png", b"other")
    tree = remote.local_tree("s3://lab/images")
    data.fault = lambda _method, _path: s3.error("403 Forbidden", "AccessDenied")
    with pytest.raises(InputError, match="no permission"):
        list(remote.ahead([tree / "a.png"], lambda p: [p]))


@pytest.mark.parametrize("fault", ["cut", "cut after", s3.error("500 Internal Server Error", "InternalError"), 0.3])
def test_what_passes_is_tried_again(data: s3.Server, fault: object) -> None:
    tree, left = remote.local_tree("s3://lab/images"), [2]

    def first_two(method: str, _path: str) -> object:
        left[0] -= 1
        return fault if left[0] >= 0 else None

    data.fault = first_two
    assert remote.fetched(tree / "a.png").read_bytes() == b"a" * 1000
    left[0] = 2
    assert remote.create("s3://lab/receipt", b"mine")  # also where the put was done and the answer was lost
    assert not remote.create("s3://lab/receipt", b"another's")
    assert data.objects("lab", "receipt") == {"": b"mine"}


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ("403 Forbidden", "AccessDenied", "no permission"),
        ("400 Bad Request", "ExpiredToken", "credentials have expired"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "another region"),
        ("503 Slow Down", "SlowDown", "no answer after 6 tries"),
    ],
)
def test_what_does_not_pass_is_one_line(
    data: s3.Server, monkeypatch: pytest.MonkeyPatch, status: str, code: str, message: str
) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)
    data.fault = lambda _method, _path: s3.error(status, code)
    with pytest.raises(InputError, match=f"s3://lab/images: .*{message}") as caught:
        remote.local_tree("s3://lab/images")
    assert "told by the test" not in str(caught.value)
    assert caught.value.hint


def test_a_bucket_or_folder_that_is_not_there_is_one_line(bucket: s3.Server) -> None:
    with pytest.raises(InputError, match="s3://nowhere/images: there is no such bucket"):
        remote.local_tree("s3://nowhere/images")
    with pytest.raises(InputError, match="s3://lab/none: there is no such folder"):
        remote.local_tree("s3://lab/none")


@pytest.mark.parametrize("url", ["s3://me:geheim@lab/x", "az://lab/x?sig=geheim", "s3://geheim@lab"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="a user, a password or a query") as caught:
        remote.check_url(url)
    assert "geheim" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://lab/../x", "s3://lab//x", "http://lab/x", "ftp://x"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        remote.check_url(url)


def test_an_object_whose_name_leads_out_of_the_folder_is_refused(bucket: s3.Server, tmp_path: Path) -> None:
    bucket.put("lab", "images/../../../evil.png", b"x")
    bucket.put("lab", "images/a.png", b"x")
    with pytest.raises(InputError, match="no file can have this name"):
        remote.local_tree("s3://lab/images")


def test_a_file_address_is_a_path() -> None:
    assert remote.local_path("file:///data/x") == Path("/data/x")
    assert not remote.is_url("file:///data/x")
    with pytest.raises(ConfigError, match="file:///FOLDER"):
        remote.local_path("file://data/x")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote._PACKAGES, "gs", "no_such_package")
    with pytest.raises(ConfigError, match="gs:// needs the package no_such_package"):
        remote.local_tree("gs://lab/x")


def test_no_file_of_the_cache_holds_a_credential(data: s3.Server) -> None:
    remote.local_folder("s3://lab/images")
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"].encode(), os.environ["AWS_ACCESS_KEY_ID"].encode()]
    for path in remote.cache_folder().rglob("*"):
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in secrets)
