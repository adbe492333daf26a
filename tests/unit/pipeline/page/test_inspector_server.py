"""The real server process: starts, answers raw requests, ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.checkpoints import checkpoint
from tests.support.label_scenes import Scenes


@pytest.fixture(scope="module")
def port(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a running `autolabel serve`; when SIGTERM ends it, no file of its weights stays."""
    own = tmp_path_factory.mktemp("own")
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", str(scenes.store), "--port", "0"]
    command += ["--checkpoint", str(checkpoint(tmp_path_factory.mktemp("model")))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(own)}) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("inspector: http://127.0.0.1:")
            yield int(line.rsplit(":", 1)[1].strip("/\n"))
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 128 + signal.SIGTERM
            assert list(own.iterdir()) == []


def raw(port: int, request: str) -> str:
    """Status line of the answer to bytes as they are."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 5)) as connection:
        connection.sendall(request.encode("latin-1"))
        return connection.makefile("rb").readline().decode("latin-1")


def test_a_loopback_host_is_served(port: int) -> None:
    assert " 200 " in raw(port, f"GET /api/stats?threshold=0.9 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    assert " 200 " in raw(port, f"GET / HTTP/1.1\r\nHost: [::1]:{port}\r\n\r\n")


@pytest.mark.parametrize(
    "request_head",
    [
        "GET / HTTP/1.1\r\nHost: evil.test\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1.evil\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n",
        "GET / HTTP/1.0\r\n",
        "GET / HTTP/1.1\r\n",
        "GET http://evil.test/ HTTP/1.1\r\nHost: localhost\r\n",
        "GET http://localhost/ HTTP/1.1\r\nHost: evil.test\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n",
        "GET /\0 HTTP/1.1\r\nHost: localhost\r\n",
        "GET ../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n",
        "CONNECT evil.test:443 HTTP/1.1\r\nHost: localhost\r\n",
    ],
)
def test_a_crooked_request_is_refused(port: int, request_head: str) -> None:
    status = raw(port, request_head + "\r\n").split(" ")[1]
    assert status in ("400", "403", "404", "405")


def test_a_taken_port_is_one_clear_line(port: int, scenes: Scenes, said) -> None:
    assert "is taken by another program" in said("serve", scenes.store, "--port", port, status=2).err


def test_it_listens_on_loopback_alone(port: int) -> None:
    try:
        outside = socket.gethostbyname(socket.gethostname())
    except OSError:
        pytest.skip("this machine has no address of its own")
    if outside.startswith("127."):
        pytest.skip("this machine has no address of its own")
    with pytest.raises(OSError), contextlib.closing(socket.create_connection((outside, port), 2)):
        pass


def test_what_is_no_store_no_host_or_open_to_others_without_a_token_is_one_line_and_its_hint(
    scenes: Scenes, tmp_path, said
) -> None:
    assert "no label store here" in said("serve", tmp_path, "--port", "0", status=4).err
    assert os.listdir(tmp_path) == []
    error = said("serve", scenes.store, "--host", "0.0.0.0", "--port", "0", status=2).err
    assert ("--token" in error, error.count("\n")) == (True, 2)
    for host in ("a..b", "x" * 64 + ".test", "no-such-machine.invalid"):
        arguments = ["--host", host, "--token", "long enough for us", "--port", "0"]
        error = said("serve", scenes.store, *arguments, status=2).err
        assert (error.startswith(f"error: --host {host}: "), error.count("\n")) == (True, 2)
