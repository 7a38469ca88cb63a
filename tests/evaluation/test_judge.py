"""The judge's side of a conversation: verdicts, their cache, and endpoints that fail in every way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from personality.evaluation.judge import Judge, JudgeError, Question, parse_verdict
from personality.manifests.errors import DataError
from personality.manifests.scorer_entry import JudgeEndpoint, JudgeEntry
from personality.playground import judge as playground_judge

BRIEF = JudgeEntry(kind="judge", rubric="Is the reply one sentence long?")
ASKED = [{"role": "user", "content": "What is 1 plus 1?"}]
QUESTIONS = [Question(ASKED, "That makes 2."), Question(ASKED, "That makes 2. Numbers like these come up every day.")]


@pytest.fixture
def serving() -> Iterator[Callable[[ThreadingHTTPServer], str]]:
    """Starts servers, and stops them after the test."""
    servers: list[ThreadingHTTPServer] = []

    def start(found: ThreadingHTTPServer) -> str:
        servers.append(found)
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{found.server_port}/v1"

    yield start
    for found in servers:
        found.shutdown()
        found.server_close()


def scripted(*answers: tuple[int, str]) -> tuple[ThreadingHTTPServer, list[dict[str, Any]]]:
    """An endpoint that gives these answers in turn, the last one again and again; and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"body": body, "key": self.headers.get("Authorization"), "path": self.path})
            status, text = answers[min(len(asked), len(answers)) - 1]
            content = text if status != 200 else json.dumps({"choices": [{"message": {"content": text}}]})
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/v1/chat/completions")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler), asked


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personality.evaluation.judge._FIRST_WAIT", 0.001)
    for name in ("PERSONA_JUDGE_URL", "PERSONA_JUDGE_MODEL", "PERSONA_JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_verdicts_are_asked_once_and_hold_without_the_endpoint(tmp_path: Path, serving: Callable[..., str]) -> None:
    endpoint = JudgeEndpoint(url=serving(playground_judge.server()), model="playground-judge")
    judge = Judge(endpoint, tmp_path)
    assert judge.verdicts(BRIEF, QUESTIONS * 3) == [1.0, 0.0] * 3
    assert judge.asked == 2
    dead = Judge(endpoint.model_copy(update={"url": "http://127.0.0.1:9/v1"}), tmp_path)
    assert dead.verdicts(BRIEF, QUESTIONS) == [1.0, 0.0]
    assert dead.asked == 0
    grades = JudgeEntry(kind="judge", rubric=BRIEF.rubric, verdict="0-10")
    assert judge.verdicts(grades, QUESTIONS) == [1.0, 0.6]  # another kind of verdict is another question
    assert Judge(endpoint.model_copy(update={"model": "other"}), tmp_path).verdicts(BRIEF, QUESTIONS[:1]) == [1.0]
    assert len(list(tmp_path.rglob("*.json"))) == 5


def test_a_dead_judge_keeps_what_it_said_and_says_how_to_go_on(tmp_path: Path, serving: Callable[..., str]) -> None:
    server, asked = scripted((200, "yes"), (503, "out of memory"))
    judge = Judge(JudgeEndpoint(url=serving(server), model="m", attempts=3, parallel=1), tmp_path)
    with pytest.raises(JudgeError, match=r"3 attempts: HTTP 503: out of memory; 1 of 2 verdicts") as caught:
        judge.verdicts(BRIEF, QUESTIONS)
    assert "run the same command again" in caught.value.hint
    assert len(asked) == 4
    server, asked = scripted((200, "No."))
    assert Judge(JudgeEndpoint(url=serving(server), model="m"), tmp_path).verdicts(BRIEF, QUESTIONS) == [1.0, 0.0]
    assert len(asked) == 1
    with pytest.raises(JudgeError, match="Connection refused"):
        Judge(JudgeEndpoint(url="http://127.0.0.1:9/v1", model="m", attempts=2), tmp_path / "b").verdicts(
            BRIEF, QUESTIONS
        )


def test_what_passes_is_tried_again_and_what_does_not_is_told_at_once(
    tmp_path: Path, serving: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONA_JUDGE_KEY", "open sesame")
    server, asked = scripted((429, "slow down"), (200, "It depends."), (200, "<think>Hm, no?</think> **Yes**."))
    monkeypatch.setenv("PERSONA_JUDGE_URL", serving(server))
    monkeypatch.setenv("PERSONA_JUDGE_MODEL", "from the environment")
    judge = Judge(JudgeEndpoint(url="http://127.0.0.1:9/v1", model="from the file"), tmp_path)
    assert judge.verdicts(BRIEF, QUESTIONS[:1]) == [1.0]
    assert len(asked) == judge.asked == 3
    assert asked[0]["path"] == "/v1/chat/completions"
    assert asked[0]["key"] == "Bearer open sesame"
    assert asked[0]["body"]["model"] == "from the environment"
    assert asked[0]["body"]["temperature"] == 0
    assert QUESTIONS[0].reply in asked[0]["body"]["messages"][-1]["content"]

    server, asked = scripted((401, "no such key"))
    monkeypatch.setenv("PERSONA_JUDGE_URL", serving(server))
    with pytest.raises(JudgeError, match="refuses the question: HTTP 401: no such key") as caught:
        Judge(JudgeEndpoint(parallel=1), tmp_path).verdicts(BRIEF, QUESTIONS[1:])
    assert "PERSONA_JUDGE_KEY" in caught.value.hint
    assert len(asked) == 1
    server, asked = scripted((302, "elsewhere"))
    monkeypatch.setenv("PERSONA_JUDGE_URL", serving(server))
    with pytest.raises(JudgeError, match="HTTP 302: elsewhere"):
        Judge(JudgeEndpoint(), tmp_path).verdicts(BRIEF, QUESTIONS[1:])
    server, asked = scripted((200, "maybe"))
    monkeypatch.setenv("PERSONA_JUDGE_URL", serving(server))
    with pytest.raises(JudgeError, match="it answered 'maybe', which is no verdict"):
        Judge(JudgeEndpoint(attempts=2), tmp_path).verdicts(BRIEF, QUESTIONS[1:])


def test_no_judge_is_set_or_none_that_can_be_reached(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no judge is set") as caught:
        Judge(JudgeEndpoint(), tmp_path).verdicts(BRIEF, QUESTIONS)
    assert "PERSONA_JUDGE_URL" in caught.value.hint
    with pytest.raises(JudgeError, match="is no http address"):
        Judge(JudgeEndpoint(url="file:///etc/passwd", model="m"), tmp_path).verdicts(BRIEF, QUESTIONS)
    assert Judge(JudgeEndpoint(), tmp_path).verdicts(BRIEF, []) == []


@pytest.mark.parametrize(
    ("kind", "answer", "value"),
    [
        ("yes-no", " Yes. ", 1.0),
        ("yes-no", "`no`", 0.0),
        ("yes-no", "Yes, because it is short.", None),
        ("yes-no", "yes no", None),
        ("yes-no", "", None),
        ("yes-no", "<think>yes</think>", None),
        ("0-10", "7", 0.7),
        ("0-10", "**10**", 1.0),
        ("0-10", "7.5/10", 0.75),
        ("0-10", "0", 0.0),
        ("0-10", "11", None),
        ("0-10", "-3", None),
        ("0-10", "8 or 9", None),
        ("0-10", "yes", None),
    ],
)
def test_verdicts_are_read_strictly(kind: str, answer: str, value: float | None) -> None:
    assert parse_verdict(kind, answer) == value
