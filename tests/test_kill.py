"""Killed at any point, the repository opens and every version that `log` shows can be built."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from personality.composition.opening import composer_of
from personality.manifests.repository import Repository
from personality.versions.history import History
from personality.versions.state import repository_state

Persona = Callable[..., tuple[int, str, str]]
# Whatever a command has done so far becomes visible or durable only through these.
CALLS = ["replace", "rename", "fsync", "unlink", "mkdir"]
TRAIN = [
    *("train", "warm", "--data", "data/warm.jsonl", "--general", "data/general-warm.jsonl"),
    *("--examples", "4", "--probe-rows", "0", "--no-preflight", "--no-guard"),  # what is written is the same
]


class Killer:
    """The process of `kill_server.py`: runs commands in forked children and kills them."""

    def __init__(self, output: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_server.py")), str(output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def warm(self, argv: list[str], root: Path) -> None:
        """Run a command in the server itself, so that children need not import anything."""
        assert self._ask(warm=True, argv=argv, cwd=str(root))["code"] == 0

    def run(
        self,
        argv: list[str],
        root: Path,
        *,
        after: float | None = None,
        at: int | None = None,
        calls: Sequence[str] = CALLS,
        limit: int | None = None,
    ) -> dict[str, Any]:
        """Run a command; kill it after some seconds or at its n-th call of `calls`, or let no file outgrow a limit."""
        return self._ask(argv=argv, cwd=str(root), after=after, at=at, calls=calls, limit=limit)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def killer(playground: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    folder = tmp_path_factory.mktemp("warm")
    root = shutil.copytree(playground, folder / "play")
    server = Killer(folder / "output")
    for argv in (["add", "listening"], TRAIN, ["build"], ["export", "head", "out"], ["verify"]):
        server.warm(argv, root)
    yield server
    server.close()


def check_whole(root: Path, persona: Persona) -> None:
    """The promise: it opens, `status` and `log` work, and what `log` shows can be composed to the last tensor."""
    repository = Repository.discover(root)
    assert repository_state(repository).problems == []
    code, out, err = persona("log", "--json", cwd=root)
    assert code == 0, err
    shown = json.loads(out)["data"]["versions"]
    versions = History(repository).versions
    assert [item["id"] for item in reversed(shown)] == list(versions)
    assert shown
    for personality in {version.personality.id: version.personality for version in versions.values()}.values():
        composer = composer_of(repository, personality)
        for name in composer.base.specs:
            composer.tensor(name)
    assert all(repository.vector_path(manifest.id).is_file() for manifest in repository.manifests())


def run_after_kill(argv: list[str], root: Path, persona: Persona) -> None:
    """The same command again; where files and history differ, after the way out that the message names."""
    code, _, err = persona(*argv, cwd=root)
    if code == 1 and "the files differ from" in err:
        label = err.split("`persona restore ")[1].split("`")[0]
        assert persona("restore", label, cwd=root)[0] == 0
        code, _, err = persona(*argv, cwd=root)
    assert code == 0, err


PREPARED: dict[str, list[list[str]]] = {
    "nothing": [],
    "two versions": [["add", "listening"], ["add", "concise", "--scale", "0.5"]],
    "method": [["add", "listening"], ["method", "ties", "--density", "0.5"]],
    "undone": [["add", "listening"], ["undo"]],
    "built": [["add", "listening"], ["build"], ["export", "head", "out"]],
}


@pytest.mark.parametrize(
    ("prepared", "argv", "then", "stride"),
    [
        pytest.param("nothing", ["add", "listening"], ["add", "listening"], 1, id="add"),
        pytest.param("method", ["restore", "v1"], ["restore", "v1"], 1, id="restore"),
        pytest.param("two versions", ["rm", "listening"], ["rm", "concise"], 1, id="rm"),
        pytest.param("method", ["undo"], ["undo"], 1, id="undo"),
        pytest.param("undone", ["redo"], ["undo"], 1, id="redo"),
        pytest.param("nothing", ["tag", "stable"], ["tag", "stable"], 1, id="tag"),
        pytest.param("nothing", TRAIN, TRAIN, 6, id="train"),
        pytest.param("built", ["build", "--again"], ["build"], 4, id="build"),
        pytest.param(
            "built", ["export", "head", "out", "--force"], ["export", "head", "out", "--force"], 4, id="export"
        ),
        pytest.param("built", ["gc", "--yes"], ["gc", "--yes"], 1, id="gc"),
    ],
)
def test_every_crash_point(
    killer: Killer,
    repository_copy: Path,
    tmp_path: Path,
    persona: Persona,
    prepared: str,
    argv: list[str],
    then: list[str],
    stride: int,
) -> None:
    """Killed at its first, second, third, … call until it runs to its end; after every `stride`-th, on it goes."""
    for command in PREPARED[prepared]:
        assert persona(*command, cwd=repository_copy)[0] == 0
    if argv[0] == "gc":
        (repository_copy / ".persona/builds/0000-0000").mkdir()
        (repository_copy / "versions/.tmp-left.json-999999999-ab").write_text("half")
    # An export is written as a build is; what is its own comes at the end.
    kills = 25 if argv[0] == "export" else 0
    first = kills
    while True:
        root = shutil.copytree(repository_copy, tmp_path / f"killed-{kills}")
        answer = killer.run(argv, root, at=kills + 1)
        assert answer["count"] == kills, answer["output"]
        check_whole(root, persona)
        if kills % stride == 0 or not answer["killed"]:
            assert persona("status", cwd=root)[0] == 0
            run_after_kill(then, root, persona)
            check_whole(root, persona)
        shutil.rmtree(root)
        if not answer["killed"]:
            assert answer["code"] == 0, answer
            break
        kills += 1
    assert kills - first >= 3


def test_every_crash_point_of_init(killer: Killer, playground: Path, tmp_path: Path, persona: Persona) -> None:
    killed = True
    kills = 0
    while killed:
        root = tmp_path / f"killed-{kills}"
        root.mkdir()
        killed = killer.run(["init", "--base", str(playground / "base")], root, at=kills + 1)["killed"]
        if not (root / "persona.toml").exists():
            assert persona("init", "--base", str(playground / "base"), cwd=root)[0] == 0
        check_whole(root, persona)
        assert [version.message for version in Repository(root).versions().values()] == ["the base"]
        kills += killed
    assert kills > 8


def random_kills(killer: Killer, root: Path, persona: Persona, numbers: random.Random, counts: dict[str, int]) -> None:
    """Kill commands at random moments of one repository's life until so many of each kind really died."""
    for kind, wanted in counts.items():
        duration, died = 0.0, 0
        while died < wanted:
            scale = f"{numbers.uniform(-1, 1):.3f}"
            argv = {
                "add": ["add", numbers.choice(["listening", "concise"]), "--scale", scale],
                "train": [*TRAIN, "--allow-repeats", "--seed", str(numbers.randrange(10**6))],
                "build": ["build", "--again"],
                "export": ["export", "head", "out", "--force"],
            }[kind]
            if not duration:
                duration = killer.run(argv, root)["seconds"]
            answer = killer.run(argv, root, after=numbers.uniform(0, duration))
            assert answer["killed"] or answer["code"] == 0, answer["output"]
            check_whole(root, persona)
            died += answer["killed"]
            if kind != "train" or died == wanted:
                run_after_kill(argv, root, persona)
    check_whole(root, persona)
    code, _, err = persona("gc", "--yes", cwd=root)
    assert code == 0, err
    assert list(root.rglob(".tmp-*")) == []
    code, out, _ = persona("verify", cwd=root)
    assert code == 0, out


def test_random_kills(killer: Killer, repository_copy: Path, persona: Persona) -> None:
    """Together with the crash points above, well over a hundred kills; these fifty strike anywhere."""
    random_kills(killer, repository_copy, persona, random.Random(20), {"add": 20, "train": 8, "build": 16, "export": 6})


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(5))
def test_many_random_kills(killer: Killer, repository_copy: Path, persona: Persona, seed: int) -> None:
    counts = {"add": 25, "train": 35, "build": 35, "export": 20}
    random_kills(killer, repository_copy, persona, random.Random(seed), counts)
