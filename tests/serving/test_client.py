from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from personality.manifests.errors import UsageError
from personality.serving.client import Client, ServerError


@pytest.fixture
def answers() -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """A server that answers what it is given: its URL, and status and body by path."""
    given: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = given.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the class above
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", given
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://gpu:8000/v1", "http://gpu:8000"),
        ("gpu:8000", "http://gpu:8000"),
        ("https://example.org/model/", "https://example.org:443/model"),
        ("http://[::1]:9/", "http://[::1]:9"),
    ],
)
def test_urls_are_taken_as_people_write_them(given: str, shown: str) -> None:
    assert Client(given).url == shown


@pytest.mark.parametrize("given", ["ftp://gpu", "http://", "http://gpu:port", "http://gpu:99999999"])
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="no URL"):
        Client(given)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        client = Client(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ServerError, match="cannot be reached: Connection refused") as caught:
            client.model()
        assert caught.value.lost
        assert not client.healthy()


def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        with pytest.raises(ServerError, match=r"did not answer within 0\.2 s"):
            client.model()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": []}', b'{"data": [{"object": "model"}]}'])
def test_another_program_listens(answers: tuple[str, dict[str, tuple[int, bytes]]], body: bytes) -> None:
    url, given = answers
    given["/v1/models"] = (200, body)
    with pytest.raises(ServerError, match=r"lists no model|does not answer with JSON"):
        Client(url).model()


@pytest.mark.parametrize(
    ("body", "said", "hint"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model", ""),
        (b'{"error": "another base", "hint": "start another server"}', "another base", "start another server"),
        (b'{"detail": "bad"}', "bad", ""),
        (b"Internal\n Server Error", "Internal Server Error", ""),
        (b"", "nothing", ""),
    ],
)
def test_errors_are_told_in_the_servers_words(
    answers: tuple[str, dict[str, tuple[int, bytes]]], body: bytes, said: str, hint: str
) -> None:
    url, given = answers
    given["/v1/models"] = (500, body)
    with pytest.raises(ServerError) as caught:
        Client(url).model()
    assert (caught.value.status, caught.value.detail, caught.value.hint) == (500, said, hint)
    assert not caught.value.lost


def test_a_server_that_tells_no_log_probabilities(answers: tuple[str, dict[str, tuple[int, bytes]]]) -> None:
    url, given = answers
    given["/v1/completions"] = (200, b'{"choices": [{"text": "hello"}]}')
    with pytest.raises(ServerError, match="does not tell the log-probabilities"):
        Client(url).answer("persona", (1, 2, 3), 4)


def test_log_probabilities_and_greedy_tokens_are_read_in_order(
    answers: tuple[str, dict[str, tuple[int, bytes]]],
) -> None:
    url, given = answers
    given["/v1/completions"] = (
        200,
        b'{"choices": [{"token_ids": [9, 4], "logprobs": {"token_logprobs": [-0.5, -0.25]}, "prompt_logprobs": '
        b'[null, {"2": {"logprob": -3.0, "rank": 7}, "8": {"logprob": -1.0, "rank": 1}}, '
        b'{"3": {"logprob": -0.125}}]}]}',
    )
    found = Client(url).answer("persona", (1, 2, 3), 2)
    assert found.log_probabilities == (-3.0, -0.125, -0.5, -0.25)
    assert found.greedy == (8, 3, 9, 4)
    assert found.reply == (9, 4)
