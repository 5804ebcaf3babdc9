"""write_whole: a file appears whole, or nothing changes."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tinyddpm.workshop import files
from tinyddpm.workshop.files import clear_leftovers, file_size, only_run, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has none of it")


@posix
def test_only_a_regular_file_has_a_size(tmp_path):
    """A pipe would be waited for and a device read without end: neither is opened. A
    link is the file that it points to."""
    path, pipe = tmp_path / "a.bin", tmp_path / "pipe"
    path.write_bytes(bytes(37))
    (tmp_path / "link").symlink_to(path)
    assert file_size(path) == file_size(str(tmp_path / "link")) == 37
    with pytest.raises(IsADirectoryError) as refused:
        file_size(tmp_path)
    said = f"[Errno {errno.EISDIR}] {os.strerror(errno.EISDIR)}: '{tmp_path}'"
    assert str(refused.value) == said
    with pytest.raises(FileNotFoundError, match="nowhere"):
        file_size(tmp_path / "nowhere")
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="pipe") as refused:
        file_size(pipe)
    said = f"{pipe} is a device or a pipe, expected a regular file"
    assert str(refused.value) == said


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


def test_an_error_that_names_a_file_of_its_own_keeps_it(tmp_path):
    """Who copies one file into another is told which of them is missing."""
    with (
        pytest.raises(FileNotFoundError, match=r"'other\.bin'$"),
        write_whole(tmp_path / "a.bin"),
    ):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "other.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_does_not_hide_the_error(tmp_path):
    """With the folder the temporary file is gone too: what broke off the writing is
    told, not that there was nothing left to clear away."""
    folder = tmp_path / "folder"

    def break_off():
        with write_whole(folder / "a.bin"):
            shutil.rmtree(folder)
            raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        break_off()


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
        with pytest.raises(OSError, match="cannot write") as refused:
            opens(path).__enter__()
        assert str(refused.value) == (
            f"cannot write {path} ({os.strerror(errno.ENOTDIR)}); give a folder that "
            f"can be written"
        )


DEAD, ALIVE, NOT_OURS, NONE = 1001, 1002, 1003, 10**30


@pytest.fixture
def asked(monkeypatch):
    """The numbers of the processes that were asked for; what they say is made up."""
    numbers = []

    def kill(pid, signal):
        assert signal == 0, "any other number would do something to the process"
        numbers.append(pid)
        if pid == DEAD:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        if pid == NOT_OURS:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if pid == NONE:
            raise OverflowError("signed integer is greater than maximum")

    monkeypatch.setattr("tinyddpm.workshop.files.os.kill", kill)
    return numbers


def test_what_a_killed_process_left_behind_is_cleared(tmp_path, asked):
    """Temporary files do not pile up; those of living processes, of which nothing is
    known, and of other files, and what is no temporary file, stay. The name is a name,
    not a pattern."""
    path = tmp_path / "run[ab].pt"
    left = tmp_path / f".run[ab].pt.{DEAD}.part"
    stay = [f".run[ab].pt.{who}.part" for who in (ALIVE, NOT_OURS, NONE, "x", "²")]
    stay += [".run[ab].pt.part", *(f".{n}.pt.{DEAD}.part" for n in ("runa", "other"))]
    for name in (left.name, *stay):
        (tmp_path / name).touch()
    with write_whole(path) as file:
        file.write(b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, *stay])
    assert sorted(asked) == [DEAD, ALIVE, NOT_OURS, NONE]


def test_two_may_clear_the_same_leftovers(tmp_path, monkeypatch):
    """What another process has just cleared is no error."""
    left = tmp_path / f".a.bin.{DEAD}.part"
    left.touch()
    monkeypatch.setattr("tinyddpm.workshop.files._runs", lambda pid: left.unlink())
    clear_leftovers(tmp_path / "a.bin")
    assert not left.exists()


def test_where_a_signal_would_end_a_process_none_is_sent(tmp_path, asked, monkeypatch):
    """On Windows os.kill ends the process whatever the signal, and a folder is no file
    to be flushed: leftovers stay there, and the file is written all the same."""
    (left := tmp_path / f".a.bin.{DEAD}.part").touch()
    monkeypatch.setattr("tinyddpm.workshop.files.os.name", "other")
    flushed = []
    monkeypatch.setattr("tinyddpm.workshop.files.os.fsync", flushed.append)
    with write_whole(tmp_path / "a.bin") as file:
        file.write(b"x")
        number = file.fileno()
    assert flushed == [number]
    assert asked == []
    assert sorted(tmp_path.iterdir()) == [left, tmp_path / "a.bin"]


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
from files import only_run
with only_run(sys.argv[1]):
    print("holds it", flush=True)
    sys.stdin.read()
"""


def assert_refused(path, real):
    """Another run has the file, which is said with its name behind all links."""
    with pytest.raises(BlockingIOError) as caught, only_run(path):
        pytest.fail("two runs hold it")
    assert str(caught.value) == (
        f"another run is writing {real} at this moment; wait until it has ended, or "
        f"give another folder"
    )


@posix
def test_one_run_at_a_time_writes_a_file(tmp_path):
    """A second process is refused while the first holds the file; killed, it lets go,
    and what it leaves behind stands in nobody's way."""
    path = tmp_path / "new" / "folder" / "c.pt"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        cwd=Path(files.__file__).parent,  # without torch it is there at once
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "holds it\n"
    assert_refused(path, path)
    first.kill()
    first.communicate()
    with only_run(path):
        assert [p.name for p in path.parent.iterdir()] == [".c.pt.lock"]
    assert list(path.parent.iterdir()) == []


@posix
def test_the_lock_is_of_the_file_whatever_its_name(tmp_path):
    """Two names of one file are one run's; whoever may write to the folder may lock
    there, too, and an end in which the lock is gone already is an end."""
    real, link = tmp_path / "disk" / "run" / "c.pt", tmp_path / "c.pt"
    link.symlink_to(real)
    lock, mask = real.with_name(".c.pt.lock"), os.umask(0)
    try:
        with only_run(link):
            assert_refused(real, real)
            assert_refused(link, real)
            assert stat.S_IMODE(lock.stat().st_mode) == 0o666
            lock.unlink()
    finally:
        os.umask(mask)
    with only_run(real):
        assert lock.exists()


@posix
def test_a_lock_that_the_run_before_removes_is_made_anew(tmp_path, monkeypatch):
    """It may end between our opening the file and our locking it: the lock would be of
    a file without a name, which nobody after us could see."""
    path, lock = tmp_path / "c.pt", tmp_path / ".c.pt.lock"
    flock = sys.modules["fcntl"].flock
    late = [lock.unlink, lambda: (lock.replace(tmp_path / "moved"), lock.touch())]

    def ends_before(file, how):
        if late:
            late.pop(0)()
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", ends_before)
    with only_run(path):
        assert late == []
        assert_refused(path, path)


@posix
@pytest.mark.parametrize("number", ["ENOTSUP", "ENOLCK", "EIO"])
def test_where_there_are_no_locks_nothing_is_refused(tmp_path, monkeypatch, number):
    """A file system that cannot lock, or a system that does not know how: the run goes
    on; any other error of the lock is one."""
    code = getattr(errno, number)

    def refuse(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    if number == "EIO":
        with pytest.raises(OSError, match="Input/output error"):
            only_run(tmp_path / "c.pt").__enter__()
        return
    with only_run(tmp_path / "c.pt"), only_run(tmp_path / "c.pt"):
        pass
    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it fails
    with only_run(tmp_path / "c.pt"), only_run(tmp_path / "c.pt"):
        assert list(tmp_path.iterdir()) == []


@posix
def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """A folder, a pipe or a device of that name stays what it is: --out /dev/null, by
    the superuser, would take the device from everybody."""
    path = tmp_path / "a"
    path.mkdir()
    with pytest.raises(OSError, match="cannot write") as refused:
        write_whole(path).__enter__()
    assert str(refused.value) == (
        f"cannot write {path} ({os.strerror(errno.EISDIR)}); give a folder that can "
        f"be written"
    )
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is a device or a pipe"):
        write_whole(path).__enter__()
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


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
