"""Bytes on their way into a file and a SHA-256: at once, or by a thread of its own while the caller makes the next."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import queue
import threading
from types import TracebackType
from typing import BinaryIO, Self

_WAITING_BYTES = 1 << 25
"""Greatest sum of what waits for the thread; the caller waits beyond that."""
_FLUSH_BYTES = 1 << 25
_SYNC_FILE_RANGE_WRITE = 2


class HashedStream:
    """Writes to a file, unbuffered, and hashes.

    As a context manager it works in the background: `put` returns at once, what is put must not be changed afterwards,
    and an error of the file's comes out of a later `put` or of `finish`.

    Args:
        file: open for writing at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._queue: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting = 0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._written = self._flushed = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, name="hashed-stream", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._error = self._error or error  # what still waits is not worth writing
        self._join()

    def put(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: when they, or earlier ones, cannot be written.
        """
        view = memoryview(data).cast("B")
        if self._thread is None:
            self._write(view)
            return
        with self._room:
            self._room.wait_for(lambda: self._waiting == 0 or self._waiting + len(view) <= _WAITING_BYTES)
            self._waiting += len(view)
        self._raise()
        self._queue.put(view)

    def finish(self) -> str:
        """SHA-256 of all that was put, when all of it is written.

        Raises:
            OSError: when something could not be written.
        """
        self._join()
        self._raise()
        return self._hash.hexdigest()

    def _join(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (view := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write(view)
                except BaseException as error:  # raised in the thread that puts
                    self._error = error
            with self._room:
                self._waiting -= len(view)
                self._room.notify()

    def _write(self, view: memoryview) -> None:
        self._hash.update(view)
        self._file.write(view)
        self._written += len(view)
        if self._written - self._flushed >= _FLUSH_BYTES:
            _start_flushing(self._file, self._flushed, self._written - self._flushed)
            self._flushed = self._written


def _start_flushing(file: BinaryIO, start: int, length: int) -> None:
    """Have the system bring a part of a file to the disk from now on, so that `fsync` finds little left to do."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere `fsync` takes longer
        file.flush()
        ctypes.CDLL(None).sync_file_range(
            file.fileno(), ctypes.c_int64(start), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE
        )
