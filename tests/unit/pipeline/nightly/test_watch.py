"""A dead server is noticed in three questions; a slow one is not taken for dead."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from pipeline.nightly.runner import ServerWatch


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_dead_server_is_noticed_at_the_third_question_and_not_before() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Healthy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    watch = ServerWatch(f"http://127.0.0.1:{server.server_port}")
    assert watch.alive()
    server.shutdown()
    thread.join()
    server.server_close()
    assert [watch.alive() for _ in range(3)] == [True, True, False]


def test_a_server_that_accepts_but_does_not_answer_is_waited_for() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(100)
        watch = ServerWatch(f"http://127.0.0.1:{busy.getsockname()[1]}", timeout_s=0.01)
        answers = [watch.alive() for _ in range(60)]
    assert all(answers[:59])
    assert not answers[59], "but not for ever"


def test_an_answer_that_refuses_is_an_answer_and_a_gateways_is_none() -> None:
    class Answers(_Healthy):
        status = 401

        def do_GET(self) -> None:
            self.send_response(self.status)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        watch = ServerWatch(f"http://127.0.0.1:{server.server_port}")
        assert all(watch.alive() for _ in range(70))
        Answers.status = 502
        assert not all(watch.alive() for _ in range(70))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_without_a_server_there_is_nothing_to_watch() -> None:
    assert ServerWatch(None).alive()
