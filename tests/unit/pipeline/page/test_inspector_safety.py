"""Nobody else gets in, nothing outside the store gets out, and reading never writes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.page.server import ServeOptions, make_app, make_guard
from pipeline.review.session import Session
from tests.support.asgi import AsgiClient, client_of
from tests.support.label_scenes import Scenes

SECRET = b"the secret outside of the root"

NAMES = ["127.0.0.1", "127.0.0.1:8733", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8733", "127.8.9.1:80"]


_words = str.split
FOREIGN = _words("127.0.0.1:80:80 192.168.1.9 0.0.0.0 10.0.0.1:8733 2130706433 0x7f.1 http://127.0.0.1 127.0.0.1/")
FOREIGN += _words("evil.test evil.test:8733 127.0.0.1.evil 127.0.0.1.evil.test:8733 localhost.evil.test evil.localhost")
FOREIGN += ["", " ", *_words(": :8733 127.0.0.1:http [::1 ::1] [::1]x [fe80::1] 127.0.0.1@evil.test")]
ORIGINS = _words("null http://evil.test http://127.0.0.1:9999 https://evil.test:8733 file:// chrome-extension://abc")
ORIGINS += ["", *_words("http://127.0.0.1:8733.evil.test http://localhost:8733")]


def test_a_loopback_name_is_served_and_a_foreign_one_two_or_none_get_nothing(client: AsgiClient) -> None:
    for host in NAMES:
        assert client.request("GET", "/api/stats", {"Host": host}).status == 200, host
    foreign = [[("Host", host)] for host in FOREIGN]
    for headers in [*foreign, [("Host", "localhost"), ("Host", "localhost")]]:
        for path in ("/", "/api/stats", "/static/app.js"):
            reply = client.request("GET", path, headers)
            assert (reply.status, b"token" in reply.body) == (403, False), headers


def test_our_own_origin_is_served_and_a_foreign_one_gets_nothing(client: AsgiClient) -> None:
    assert client.get("/api/stats", {"Origin": "http://127.0.0.1:8733"}).status == 200
    for origin in ORIGINS:
        assert client.get("/api/stats", {"Origin": origin}).status == 403, origin
        assert client.post("/api/review", {"name": "x", "verdict": "flag"}, {"Origin": origin}).status == 403, origin


def test_writing_needs_the_token_and_json(client: AsgiClient, scenes: Scenes) -> None:
    mark = {"name": scenes.names[0], "verdict": "flag"}
    assert client.post("/api/review", mark).status == 200
    assert client.post("/api/review", mark, {"X-Autolabel-Token": "wrong"}).status == 403
    assert client.post("/api/review", mark, {"X-Autolabel-Token": ""}).status == 403
    assert client.post("/api/review", mark, {"Content-Type": "text/plain"}).status == 415
    assert client.post("/api/review", {"name": "x" * (1 << 20)}).status == 413
    without_length = {"X-Autolabel-Token": client.token, "Content-Type": "application/json"}
    assert client.request("POST", "/api/review", without_length).status == 413
    assert len(client.get("/api/review").json()["entries"]) == 1


def test_every_write_is_refused_without_the_token(client: AsgiClient) -> None:
    for path in (
        "review",
        "policy",
        "audit",
        "audit/answer",
        "weights",
        "certificate",
        "certificate/answer",
        "questions",
        "questions/answer",
        "questions/undo",
    ):
        assert client.post(f"/api/{path}", {}, {"X-Autolabel-Token": "x"}).status == 403, path
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
            assert client.request(method, f"/api/{path}").status == 405, (method, path)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_no_get_writes_anything(client: AsgiClient, copied: Scenes) -> None:
    before = snapshot(copied.store.parent)
    name = copied.names[0]
    gets = "/ /static/app.js /api/store /api/stats /api/review /api/audit /api/policy /api/audit/answer /api/questions"
    for path in _words(gets):
        client.get(path)
    for path in ("image", "plane", "mini", "thumb", "picture", "weights", "weight", "audit/item", "questions/item"):
        client.get(f"/api/{path}", name=name, verdict="flag", plane="human")
    for sort in ("name", "coverage", "conflict", "uncertain", "drop:0.8:0.95"):
        assert client.get("/api/images", sort=sort).status == 200
    assert snapshot(copied.store.parent) == before


def test_every_answer_carries_the_headers_that_keep_scripts_out(client: AsgiClient, scenes: Scenes) -> None:
    name = scenes.names[0]
    replies = [client.get(f"/{p}") for p in ("", "static/app.js", "static/nothing", "nothing", "api/stats")]
    replies += [
        client.get(f"/api/picture?name={name}"),
        client.get("/api/plane?name=x"),
        client.get("/?threshold=0.12345"),
    ]
    replies.append(client.request("GET", "/", {"Host": "evil.test"}))
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert not any(bad in policy for bad in ("unsafe-inline", "unsafe-eval"))
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_has_no_inline_code_and_loads_nothing_from_elsewhere(client: AsgiClient) -> None:
    pages = [client.get("/").text, client.get("/?threshold=0.12345").text]
    for page in pages:
        assert not re.search(r"<script(?![^>]*\bsrc=)", page)
        assert not re.search(r"<[^>]+\s(on\w+|style)\s*=", page)
    sources = Path(make_app.__code__.co_filename).parent / "static"
    for file in sources.iterdir():
        text = file.read_text()
        assert not re.search(
            r"""(?:src|href|url|from|import)\s*[=(]?\s*["']?(?:https?:)?//""",
            text.replace("http://www.w3.org/2000/svg", ""),
        )
        assert not [bad for bad in ("innerHTML", "insertAdjacentHTML", "eval(", "document.write") if bad in text]


# --- paths -----------------------------------------------------------------------------------------------

_UP = _words("../ ..%2f %2e%2e/ %2e%2e%2f ..%5c ..\\ %252e%252e%252f ..%c0%af ..%ef%bc%8f .%2e/ ....// ..;/")
_TARGETS = ["etc/passwd", "secret.txt", "raw-other/secret.txt", "raw.review.jsonl", "policy.json"]
_PLACES = ["/", "/static/", "/api/"]


def traversal_forms(root: Path) -> list[str]:
    """More than 200 request lines that try to leave the store or the page's own files."""
    ways = itertools.product(_PLACES, _UP, _TARGETS, (1, 6))
    forms = [place + up * depth + target for place, up, target, depth in ways]
    absolute = ["/etc/passwd", "//etc/passwd", "file:///etc/passwd"]
    for text in [*absolute, str(root / "secret.txt"), str(root / "raw-other" / "secret.txt")]:
        quoted = quote(text, safe="")
        forms += [f"/static/{text}", f"/static{text}", text, f"/static/{quoted}", f"/{quoted}"]
    odd = "/static/app.js%00.txt /static/%00 /%00 /static/app.js/.. /static/./app.js/../../secret.txt /static/~root"
    return forms + odd.split()


def test_two_hundred_ways_out_lead_nowhere(client: AsgiClient, copied: Scenes) -> None:
    root = copied.store.parent
    (root / "secret.txt").write_bytes(SECRET)
    (root / "raw-other").mkdir()
    (root / "raw-other" / "secret.txt").write_bytes(SECRET)
    forms = traversal_forms(root)
    assert len(forms) >= 200
    for form in forms:
        reply = client.request("GET", form)
        assert reply.status in (403, 404), form
        assert SECRET not in reply.body
        assert b"root:" not in reply.body
    names = [form.lstrip("/") for form in forms[::4]]
    for name, path in itertools.product(names, ("plane", "picture", "thumb", "image")):
        reply = client.get(f"/api/{path}", name=name)
        assert reply.status in (400, 404), (path, name)
        assert SECRET not in reply.body


# --- beyond loopback -------------------------------------------------------------------------------------


def test_listening_beyond_loopback_demands_a_token() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "my-machine"):
        with pytest.raises(ConfigError, match="--token"):
            make_guard(ServeOptions(host=host))
        with pytest.raises(ConfigError, match="12 characters"):
            make_guard(ServeOptions(host=host, token="short"))
        assert make_guard(ServeOptions(host=host, token="long enough for us")).demands_token


def test_with_a_token_nothing_is_shown_without_it(session: Session) -> None:
    guard = make_guard(ServeOptions(host="0.0.0.0", token="long enough for us"))
    with client_of(session, guard, "192.168.1.5:80") as client:
        for path in ("/", "/api/stats", "/static/app.js", "/?token=wrong", "/api/stats?token=long+enough+for+us"):
            assert client.request("GET", path).status == 401
        assert client.get("/api/stats", {"Authorization": "Bearer long enough for us"}).status == 200
        assert client.get("/api/stats", {"Authorization": "Bearer wrong"}).status == 401
        entered = client.request("GET", "/?token=long+enough+for+us&threshold=0.9")
        assert entered.status == 303
        assert entered.headers["location"] == "./?threshold=0.9"
        assert "HttpOnly" in entered.headers["set-cookie"]
        cookie = entered.headers["set-cookie"].partition(";")[0]
        assert "long enough" not in cookie
        assert client.get("/api/stats", {"Cookie": cookie}).status == 200
        assert client.get("/api/stats", {"Cookie": cookie + "0"}).status == 401
        assert client.post("/api/policy", {}, {"Cookie": cookie, "Origin": "http://192.168.1.5:80"}).status == 403
        assert client.get("/api/stats", {"Cookie": cookie, "Host": "evil.test"}).status == 403


@pytest.mark.parametrize(
    "foreign",
    ['prefs={"theme":"dark"}', "x=a b", 'y="q', "\xfc=1", "bad[key]=1", "a=1;", "path=/x", "=", "", "autolabel-=0"],
)
def test_a_browser_with_odd_cookies_of_another_program_is_let_in(session: Session, foreign: str) -> None:
    guard = make_guard(ServeOptions(host="0.0.0.0", token="long enough for us"))
    with client_of(session, guard, "192.168.1.5:80") as client:
        ours = f"{guard.cookie_name}={guard.cookie}"
        stale = f"{guard.cookie_name}=0"
        for cookies in (f"{foreign}; {ours}", f"{ours}; {foreign}", f"{stale}; {foreign}; {ours}"):
            assert client.get("/api/stats", {"Cookie": cookies}).status == 200, cookies
        refused = (foreign, f"{foreign}; {stale}", f"{foreign}; {ours}\xfc", f"{foreign}; x{ours}", f'x="; {ours}0"')
        for cookies in refused:
            assert client.get("/api/stats", {"Cookie": cookies}).status == 401, cookies
