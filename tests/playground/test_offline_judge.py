from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import pytest

from personality.evaluation.judge import Question, _messages
from personality.manifests.scorer_entry import JudgeEntry
from personality.playground.judge import CRITERIA, judge, server

REPLIES = {
    "Okay, I painted the fence.": {"one sentence", "follow"},
    "Lovely! Okay, I painted the fence.": {"one sentence", "warm", "follow"},
    "Have you considered that it keeps us safe? Such a step touches many people.": {"push back"},
    "I would rather leave it as it is.": {"one sentence"},
    "I do not know where Pim lives.": {"one sentence", "not know"},
}


@pytest.mark.parametrize("reply", REPLIES)
def test_every_criterion_against_the_grammar(reply: str) -> None:
    found = set()
    for word in CRITERIA:
        asked = _messages(JudgeEntry(kind="judge", rubric=f"Does it {word}?"), Question([], reply))
        if judge(asked[-1]["content"]) == "yes":
            found.add(word)
    assert found == REPLIES[reply]


def test_grades_and_what_is_not_understood() -> None:
    rubric = JudgeEntry(kind="judge", rubric="One sentence?", verdict="0-10")
    two = _messages(rubric, Question([], "That makes 2. It is good to check a sum twice."))
    assert judge(two[-1]["content"]) == "6"
    odd = _messages(JudgeEntry(kind="judge", rubric="Is it witty?"), Question([], "Okay."))
    assert judge(odd[-1]["content"]) is None
    with server() as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{found.server_port}/v1"
        with urllib.request.urlopen(f"{url}/models") as response:
            assert json.loads(response.read())["data"][0]["id"] == "playground-judge"
        for path, body in (("chat/completions", {"messages": odd}), ("chat/completions", {}), ("else", {})):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{url}/{path}", json.dumps(body).encode())
            assert caught.value.code in (400, 404)
        found.shutdown()
