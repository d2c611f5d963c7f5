"""Space on a disk, taken before what fills it is computed."""

import errno
import os
from pathlib import Path

_LACKING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # what file systems answer that cannot reserve
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reserve(descriptor: int, size: int, path: str | Path) -> None:
    """Make an empty file `size` bytes long, and take its space.

    descriptor   of the file, open for writing
    path         as an error names the file

    A file system that cannot reserve is asked how much is free, which others may take meanwhile. Raises `OSError` where
    there is too little, with what is needed and what is free, or more than a file may have.
    """
    status = os.fstatvfs(descriptor)
    free = status.f_bavail * status.f_frsize
    try:
        if size > free:  # elsewhere than on Linux, and where the C library fills files itself, it would show late
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        more = f", and {free:,} are free" if error.errno != errno.EFBIG else ""
        text = f"{os.strerror(error.errno)}: it needs {size:,} bytes{more}"
        raise OSError(error.errno, text, str(path)) from error
