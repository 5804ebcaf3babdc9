"""Files that are written whole or not at all.

What lives here: the one way this package writes a file. What does not: what is in it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_whole(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file for writing whose name appears only once all of it is on the disk.

    The bytes go to a temporary file in the same folder (made if need be), which is
    flushed and then renamed. If anything fails the temporary file is removed, and a
    file of that name that was there before is as it was.

    Raises: OSError, naming the path, where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror}); give a folder that can be written"
        ) from error
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the new name is on the disk when its folder is
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it was
        raise
