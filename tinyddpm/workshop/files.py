"""Files that are written whole or not at all, and by one run at a time."""

import contextlib
import errno
import glob
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# What a file system says that cannot flush a folder, or lock a file.
NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.ENOLCK)


def file_size(path: str | Path) -> int:
    """The size of a regular file, in bytes. Nothing else is opened to be read."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is a device or a pipe, expected a regular file")
    return found.st_size


@contextmanager
def write_whole(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file for writing whose name appears only once all of it is on the disk.

    The bytes go to a temporary file in the same folder (made if need be), which is
    flushed and then renamed. If anything fails the temporary file is removed, and a
    file of that name that was there before is as it was. Where the name is a link, the
    file that it points to is replaced; the permissions of a file that was there stay.

    Raises: OSError, naming the path, where it cannot be written; ValueError where a
        device or a pipe has that name, which a file would take the place of.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file_size(path)
        clear_leftovers(path)
        temporary.touch()
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it was
        raise
    _flush_folder(path.parent)


def _cannot_write(path: Path, error: OSError) -> OSError:
    why = f"cannot write {path} ({error.strerror})"
    return OSError(f"{why}; give a folder that can be written")


def clear_leftovers(path: Path) -> None:
    """Removes the temporary files of `path` whose processes have ended."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        pid = part.name.removesuffix(".part").rpartition(".")[2]
        if pid.isdecimal() and not _runs(int(pid)):
            part.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether a process of that number is there; where that cannot be told, yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """A new name is on the disk when its folder is; not every file system can do so."""
    if os.name != "posix":
        return
    try:
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


@contextmanager
def only_run(path: str | Path) -> Iterator[None]:
    """Held by the one run that writes `path`; a second run is refused with a sentence.

    The lock is the operating system's, on the file .NAME.lock beside `path`: it ends
    with the process, however that ends. Where there are no locks, nothing is refused.

    Raises: BlockingIOError while another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = Path(os.path.realpath(path))
    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise BlockingIOError(
                f"another run is writing {path} at this moment; wait until it has "
                f"ended, or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                os.close(file)
                raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                break
        os.close(file)  # the run before removed this very file: make a new one
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)
