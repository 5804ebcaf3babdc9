"""write_whole: a file appears whole, or nothing changes."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from tinyddpm.workshop.files import only_run, write_whole


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    """While it is being written the old content stands; afterwards the new, alone."""
    path = tmp_path / "new" / "folder" / "a.bin"
    for content in (b"first", b"second"):
        before = path.read_bytes() if path.exists() else None
        with write_whole(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path):
    """The new file takes the old one's name, not its place: no moment is half new."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        with write_whole(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """Flushed, renamed, and then the folder flushed: no crash leaves a name alone."""
    done, path = [], tmp_path / "a.bin"

    def noted(name):
        original = getattr(os, name)

        def call(*args):
            done.append((name, path.exists()))
            return original(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(f"tinyddpm.workshop.files.os.{name}", noted(name))
    with write_whole(path) as file:
        file.write(b"x")
    assert done == [("fsync", False), ("replace", False), ("fsync", True)]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_leaves_everything_as_it_was(tmp_path, error):
    """Whatever breaks off the writing: the old file is untouched, nothing is left."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def break_off():
        with write_whole(path) as file:
            file.write(b"half")
            raise error("broken off")

    with pytest.raises(error, match="broken off"):
        break_off()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_says_which_file_it_had_no_room_for(tmp_path):
    """/dev/full has no room for a byte; its error alone would name no file."""
    path = tmp_path / "a.bin"
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"),
        write_whole(path),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """Below a file there is no folder: an OSError with the path and what to do."""
    (tmp_path / "a").write_bytes(b"")
    path = tmp_path / "a" / "b" / "c.png"
    for opens in (write_whole, only_run):
        with pytest.raises(OSError, match=r"cannot write .*a/b/c\.png .*give a folder"):
            opens(path).__enter__()


def test_what_a_killed_process_left_behind_is_cleared(tmp_path):
    """Temporary files do not pile up; those of living processes and of other files,
    and what is no temporary file, stay. The name is a name, not a pattern."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    path = tmp_path / "run[ab].pt"
    left = tmp_path / f".run[ab].pt.{dead.pid}.part"
    stay = [
        tmp_path / f".run[ab].pt.{os.getppid()}.part",
        tmp_path / ".run[ab].pt.part",
    ]
    stay += [tmp_path / f".{name}.pt.{dead.pid}.part" for name in ("runa", "other")]
    for file in (left, *stay):
        file.touch()
    with write_whole(path) as file:
        file.write(b"x")
    assert sorted(tmp_path.iterdir()) == sorted([path, *stay])


def test_a_link_stays_a_link_and_a_mode_its_mode(tmp_path):
    """Where the name is a link the file behind it is replaced, also one not yet there;
    who may read a file may read the next one."""
    real, link = tmp_path / "disk" / "a.bin", tmp_path / "a.bin"
    link.symlink_to(real)
    for content in (b"first", b"second"):
        with write_whole(link) as file:
            file.write(content)
        assert link.is_symlink()
        assert real.read_bytes() == content
        assert [p.name for p in real.parent.iterdir()] == ["a.bin"]
        if content == b"first":
            real.chmod(0o640)
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


HOLD = """
import sys
from tinyddpm.workshop.files import only_run
with only_run(sys.argv[1]):
    print("holds it", flush=True)
    sys.stdin.read()
"""


def test_one_run_at_a_time_writes_a_file(tmp_path):
    """A second process is refused while the first holds the file; killed, it lets go,
    and what it leaves behind stands in nobody's way."""
    path = tmp_path / "new" / "c.pt"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "holds it\n"
    with (
        pytest.raises(BlockingIOError, match=r"another run is writing .+c\.pt"),
        only_run(path),
    ):
        pytest.fail("two runs hold it")
    first.kill()
    first.communicate()
    with only_run(path):
        assert [p.name for p in path.parent.iterdir()] == [".c.pt.lock"]
    assert list(path.parent.iterdir()) == []


def test_a_folder_of_that_name_is_not_replaced(tmp_path):
    """A folder in the file's place: an OSError, and the folder stays."""
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r"'.*a'"), write_whole(tmp_path / "a") as file:
        file.write(b"x")
    assert (tmp_path / "a").is_dir()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", ["EINVAL", "ENOTSUP", "EBADF", "EACCES"])
def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch, number):
    """The name is in place when the folder is flushed: where that cannot be done, as
    on some shared and network drives, the file is written all the same. Any other
    error, and any error of the file's own flush, is one."""
    fsync, code = os.fsync, getattr(errno, number)

    def refuse(of_a_folder, code):
        def call(opened):
            if stat.S_ISDIR(os.fstat(opened).st_mode) == of_a_folder:
                raise OSError(code, os.strerror(code))
            fsync(opened)

        monkeypatch.setattr("tinyddpm.workshop.files.os.fsync", call)

    def write(content):
        with write_whole(tmp_path / "a.bin") as file:
            file.write(content)

    refuse(True, code)
    write(b"first")
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    refuse(True, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        write(b"second")
    refuse(False, code)
    with pytest.raises(OSError, match=os.strerror(code)):
        write(b"third")
    assert (tmp_path / "a.bin").read_bytes() == b"second"
