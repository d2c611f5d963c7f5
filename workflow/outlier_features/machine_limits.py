"""What the machine refuses (space, memory, permission), told from mistakes of the program."""

import errno

_REMEDIES = {
    number: remedy
    for remedy, numbers in {
        "free some space, or set results or resources to another disk": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "expected permission to read and write there": (errno.EACCES, errno.EPERM, errno.EROFS),
        "raise the limit of open files, `ulimit -n`": (errno.EMFILE, errno.ENFILE),
        "free some memory": (errno.ENOMEM,),
        "check the disk or the file server": (errno.EIO, errno.ESTALE),
        "expected a path that can be used": (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR),
    }.items()
    for number in numbers
}
_MEMORY = ("out of memory", "allocate memory", "not enough memory")  # torch raises a RuntimeError


def refusal(error: BaseException, where: str) -> str | None:
    """What was refused, in a sentence, and what can be done; None if `error` is of another kind.

    `where` is named where the error names no file.
    """
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        reason = error.strerror or str(error)
        found = reason[:1].lower() + reason[1:]
        return f"{error.filename or where}: {found}; {_REMEDIES[error.errno]}"
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(one in text for one in _MEMORY)):
        return f"{where}: out of memory ({text or 'no more is said'}); a smaller batch or fewer tokens need less"
    return None
