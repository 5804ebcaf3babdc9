"""write_whole: a file appears whole, or nothing changes."""

import os

import pytest

from tinyddpm.workshop.files import write_whole


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
    with pytest.raises(OSError, match=r"cannot write .*a/b/c\.png .*give a folder"):
        write_whole(tmp_path / "a" / "b" / "c.png").__enter__()


def test_a_folder_of_that_name_is_not_replaced(tmp_path):
    """A folder in the file's place: an OSError, and the folder stays."""
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r"'.*a'"), write_whole(tmp_path / "a") as file:
        file.write(b"x")
    assert (tmp_path / "a").is_dir()
    assert len(list(tmp_path.iterdir())) == 1
