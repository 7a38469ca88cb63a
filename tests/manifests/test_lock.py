from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from personality.manifests.errors import PersonaError
from personality.manifests.lock import locked

HOLDER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from personality.manifests.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(float(sys.argv[2]))\n"
)


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_and_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "local/lock"
    holder = hold(path, 60)
    try:
        with pytest.raises(PersonaError) as caught, locked(path, wait=0.1):
            pytest.fail("two holders")
        assert f"process {holder.pid}" in caught.value.message
        assert "run the command again" in caught.value.hint
    finally:
        holder.kill()
        holder.communicate()
    with locked(path, wait=0):
        pass


def test_waiting_for_another_process(tmp_path: Path) -> None:
    holder = hold(tmp_path / "lock", 0.5)
    started = time.monotonic()
    with locked(tmp_path / "lock", wait=30):
        assert time.monotonic() - started < 25
    holder.communicate()


def test_the_lock_is_free_after_the_block_even_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / "lock"):
        raise ValueError("inside")
    with locked(tmp_path / "lock", wait=0):
        pass
    assert (tmp_path / "lock").is_file()
