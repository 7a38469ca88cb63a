from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from personality.manifests.atomic import abandoned, leftovers, remove, temporary_beside, write_bytes, writing
from personality.manifests.errors import PersonaError


def test_a_file_appears_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/file.json"
    with writing(path, mode=0o444) as file:
        file.write(b"one")
        file.write(b"two")
        assert not path.exists()
    assert path.read_bytes() == b"onetwo"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failing_block_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"before")
    with pytest.raises(type(error)), writing(path) as file:
        file.write(b"after")
        raise error
    assert path.read_bytes() == b"before"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_read_only_file_can_be_replaced(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"one", mode=0o444)
    write_bytes(tmp_path / "file", b"two", mode=0o444)
    assert (tmp_path / "file").read_bytes() == b"two"


def test_a_folder_that_is_a_file_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(PersonaError, match=r"cannot write .*folder/file: (Not a directory|File exists)") as caught:
        write_bytes(tmp_path / "folder/file", b"x")
    assert "then run the command again" in caught.value.hint
    assert (tmp_path / "folder").read_text() == "a file"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The kernel refuses to let the file grow, in a process of its own: what a full disk does to a write."""
    path = tmp_path / "vectors" / "big"
    write_bytes(path, b"before")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from personality.manifests.atomic import write_bytes\n"
        "from personality.manifests.errors import PersonaError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_bytes(Path(sys.argv[1]), bytes(100_000))\n"
        "except PersonaError as error:\n"
        "    print(error.message)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert os.strerror(errno.EFBIG) in result.stdout, result.stderr
    assert str(path) in result.stdout
    assert path.read_bytes() == b"before"
    assert [item.name for item in path.parent.iterdir()] == ["big"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_a_really_full_disk_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tiny file system needs root")
    try:
        write_bytes(disk / "file", b"before")
        with pytest.raises(PersonaError, match="No space left on device"):
            write_bytes(disk / "file", bytes(200_000))
        assert (disk / "file").read_bytes() == b"before"
        assert [item.name for item in disk.iterdir()] == ["file"]
        write_bytes(disk / "file", bytes(30_000))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_remove_is_quiet_about_what_is_gone(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"x")
    remove(tmp_path / "file")
    remove(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_found_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a/b/kept", b"x")
    left = temporary_beside(tmp_path / "a/b/kept")
    left.write_bytes(b"half")
    assert left.parent == tmp_path / "a/b"
    assert temporary_beside(tmp_path / "x") != temporary_beside(tmp_path / "x")
    assert leftovers(tmp_path) == [left]
    assert leftovers(tmp_path / "nowhere") == []


def test_only_what_no_living_process_writes_is_abandoned(tmp_path: Path) -> None:
    left = temporary_beside(tmp_path / "file")
    left.write_bytes(b"half")
    assert abandoned(tmp_path) == []  # this process lives and may be writing it
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    left = left.rename(left.with_name(left.name.replace(str(os.getpid()), str(finished.pid))))
    folder = tmp_path / f".tmp-train-{finished.pid}"
    (folder / left.name).mkdir(parents=True)
    (tmp_path / ".tmp-notes").write_text("the user's own")
    assert abandoned(tmp_path) == sorted([left, folder])
    assert abandoned(tmp_path / "nowhere") == []
