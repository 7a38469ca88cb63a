"""Writing and hashing in the background is writing and hashing, whatever the file or the caller does."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personality.manifests import hashed_stream as module
from personality.manifests.hashed_stream import HashedStream

FULL = Path("/dev/full")
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "hashed-stream"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    yield
    assert threads() == []


@PROPERTY
@given(
    pieces=st.lists(st.binary(max_size=300), max_size=30),
    waiting=st.sampled_from([1, 100, 1 << 25]),
    flush=st.sampled_from([1, 64, 1 << 25]),
    background=st.booleans(),
)
def test_bytes_and_digest(
    pieces: list[bytes], waiting: int, flush: int, background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITING_BYTES", waiting)
    monkeypatch.setattr(module, "_FLUSH_BYTES", flush)
    path = tmp_path / "file"
    with path.open("wb") as file:
        if background:
            with HashedStream(file) as stream:
                for piece in pieces:
                    stream.put(memoryview(piece))
                found = stream.finish()
        else:
            stream = HashedStream(file)
            for piece in pieces:
                stream.put(piece)
            found = stream.finish()
    assert path.read_bytes() == b"".join(pieces)
    assert found == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_views_of_other_things_than_bytes(tmp_path: Path) -> None:
    numbers = memoryview(bytes(range(24))).cast("I", [2, 3])
    with (tmp_path / "file").open("wb") as file, HashedStream(file) as stream:
        stream.put(numbers)
        stream.put(memoryview(b""))
        assert stream.finish() == hashlib.sha256(bytes(range(24))).hexdigest()


class SlowFile(io.BytesIO):
    """A file that waits, and notes what it has been given and from which thread."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.taken = 0
        self.by: set[str] = set()

    def write(self, data: object) -> int:
        time.sleep(self.seconds)
        self.by.add(threading.current_thread().name)
        self.taken += len(data)  # type: ignore[arg-type]
        return super().write(data)  # type: ignore[arg-type]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the caller and slow the file; a piece larger than the bound goes alone."""
    monkeypatch.setattr(module, "_WAITING_BYTES", 1000)
    file = SlowFile(0.002)
    most, put = 0, 0
    with HashedStream(file) as stream:
        for size in [300] * 20 + [5000] + [300] * 10:
            stream.put(bytes(size))
            put += size
            # One that the file has taken may still be counted for a moment, never the other way around.
            most = max(most, put - file.taken if size == 300 else 0)
        stream.finish()
    assert most <= 1000 + 5000
    assert file.by == {"hashed-stream"}
    assert file.taken == put


def test_the_caller_goes_on_while_the_file_is_slow() -> None:
    with HashedStream(SlowFile(0.2)) as stream:
        started = time.perf_counter()
        stream.put(bytes(1000))
        stream.put(bytes(1000))
        assert time.perf_counter() - started < 0.15
        stream.finish()


class BrokenFile(io.BytesIO):
    """A file that fails at its n-th write, with any exception."""

    def __init__(self, works: int, error: BaseException) -> None:
        super().__init__()
        self.works = works
        self.error = error

    def write(self, data: object) -> int:
        if self.works == 0:
            raise self.error
        self.works -= 1
        return super().write(data)  # type: ignore[arg-type]


def put_many(stream: HashedStream, pieces: int = 400) -> str:
    for _ in range(pieces):
        stream.put(bytes(100))
    return stream.finish()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("waiting", [50, 1000, 1 << 25])
@pytest.mark.parametrize("works", [0, 1, 399])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("closed"), MemoryError()])
def test_an_error_of_the_file_comes_out(
    error: Exception, works: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the caller waits for room, has put everything or is about to finish."""
    monkeypatch.setattr(module, "_WAITING_BYTES", waiting)
    with pytest.raises(type(error)) as caught, HashedStream(BrokenFile(works, error)) as stream:
        put_many(stream)
    assert caught.value is error


@pytest.mark.timeout(30)
@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("background", [True, False])
def test_a_full_device(background: bool) -> None:
    def write() -> None:
        with FULL.open("wb", buffering=0) as file:
            if background:
                with HashedStream(file) as stream:
                    put_many(stream)
            else:
                put_many(HashedStream(file))

    with pytest.raises(OSError, match="No space left on device"):
        write()


@pytest.mark.timeout(30)
@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_a_full_device_behind_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces wait in the file's own buffer; starting to flush must not swallow what happens to them."""
    monkeypatch.setattr(module, "_FLUSH_BYTES", 1)

    def write() -> None:
        with FULL.open("wb") as file, HashedStream(file) as stream:
            stream.put(bytes(10))
            stream.finish()
            file.flush()

    with pytest.raises(OSError, match="No space left on device"):
        write()


LIMITED = """
import resource, sys
from pathlib import Path
from personality.manifests.hashed_stream import HashedStream

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with Path(sys.argv[1]).open("wb") as file, HashedStream(file) as stream:
        for _ in range(1000):
            stream.put(bytes(10_000))
        stream.finish()
except OSError as error:
    print(error.strerror)
"""


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """In a process of its own; it ends by itself."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "file")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "File too large\n"), done.stderr
    assert (tmp_path / "file").stat().st_size <= 100_000


@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [KeyError("tensor"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_an_exception_of_the_caller_ends_the_thread(error: BaseException) -> None:
    """What still waits is not written."""
    file = SlowFile(0.01)

    def write() -> None:
        with HashedStream(file) as stream:
            for _ in range(200):
                stream.put(bytes(10))
            assert threads() == ["hashed-stream"]
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert file.taken < 2000


@pytest.mark.timeout(30)
def test_the_caller_s_exception_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING_BYTES", 1 << 20)
    with pytest.raises(KeyError), HashedStream(BrokenFile(0, OSError(28, "full"))) as stream:
        stream.put(b"x")
        raise KeyError("what went wrong first")


def test_nothing_is_finished_by_halves() -> None:
    """After an error there is no digest, however often one asks."""
    stream = HashedStream(BrokenFile(1, OSError(28, "full")))
    with stream:
        stream.put(b"x")
        with pytest.raises(OSError, match="full"):
            for _ in range(100):
                stream.put(b"y")
                time.sleep(0.001)
        for attempt in (stream.finish, stream.finish):
            check_raises(attempt)


def check_raises(attempt: Callable[[], str]) -> None:
    with pytest.raises(OSError, match="full"):
        attempt()
