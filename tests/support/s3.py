"""An S3 server on loopback (moto) that fails as asked: errors, slow answers, cut connections, expired credentials."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmsa_core.io import sealed
from hmsa_core.labels.store.format import listed_files

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def error(status: str, code: str) -> tuple[str, bytes]:
    """An answer of S3 that says no."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told by the test</Message></Error>"
    return status, body.encode()


class Server:
    """`fault(method, path)` says what goes wrong with a request: "cut", "cut after", seconds, an `error`, or None."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        quiet = type("Quiet", (WSGIRequestHandler,), {"log": lambda *_: None})
        self.fault: Callable[[str, str], Any] = lambda _method, _path: None
        self.requests: list[tuple[str, str]] = []
        self._inner = DomainDispatcherApplication(create_backend_app)
        self._listen = lambda port: make_server("127.0.0.1", port, self._answer, threaded=True, request_handler=quiet)
        self.open()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def open(self, port: int = 0) -> None:
        self._server = self._listen(port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def restart(self, down_s: float) -> None:
        """Cut all connections, be gone for a while, and come back at the same address with the same objects."""
        self.fault = lambda _method, _path: "cut"
        self.close()
        time.sleep(down_s)
        self.fault = lambda _method, _path: None
        self.open(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if isinstance(fault, float):
            time.sleep(fault)
        if isinstance(fault, tuple):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(fault[0], [("Content-Type", "application/xml")])
            return [] if method == "HEAD" else [fault[1]]
        if fault == "cut":
            _cut(environ)
        messages: list[Any] = []
        body = b"".join(self._inner(environ, lambda *args: messages.append(args)))
        if fault == "cut after":
            start(*messages[-1][:2])
            return _half(body, environ)
        start(*messages[-1][:2])
        return [body]

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._s3().put_object(Bucket=bucket, Key=key, Body=data)

    def remove(self, bucket: str, key: str) -> None:
        self._s3().delete_object(Bucket=bucket, Key=key)

    def begin(self, bucket: str) -> None:
        """Let the server hold one empty bucket, and no fault."""
        self.fault = lambda _method, _path: None
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")).close()
        self._s3().create_bucket(Bucket=bucket)
        self.requests.clear()

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        s3 = self._s3()
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [row["Key"] for page in pages for row in page.get("Contents", [])]
        return {key.removeprefix(prefix): s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def _s3(self) -> Any:
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **keys)


def files_of(store: Path) -> dict[str, bytes]:
    """The files that belong to a local store: what an object store holds of it."""
    return {name: (store / name).read_bytes() for name in listed_files(sealed.read(store / "manifest.json"))}


def _half(body: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    if len(body) > 1:
        yield body[: len(body) // 2]
    _cut(environ)


def _cut(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()
