"""Exceptions of this package. Each message states what is wrong, where, and what to do."""

import errno
import os
import sys

_REMEDIES = {
    errno.ENOSPC: "free some space there, or name a folder on another disk",
    errno.EDQUOT: "delete files to get below your quota, or name a folder on another disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or name a folder on another file system",
    errno.EIO: "check the disk (dmesg), or name a folder on another one",
    errno.EROFS: "name a folder that can be written to",
}


_NO_MEMORY = ("can't allocate memory", "Insufficient memory")


class Raymap3rError(Exception):
    """Base of all errors of this package."""


class CheckpointError(Raymap3rError):
    """A weights file cannot be used: it is missing, unsafe, or does not contain the expected network."""


class InputError(Raymap3rError, ValueError):
    """An image, calibration, video, folder or bag cannot be used."""


class OptionError(Raymap3rError, ValueError):
    """An option has a value that is not allowed."""


def lacking_memory(error: BaseException) -> str:
    """Which memory was not enough, "GPU memory" or "memory", and what to do; "" for any other error."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of GPU memory; try a smaller --size or --precision bfloat16"
    # PyTorch and OpenCV have no class of their own for it.
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return "out of memory; close other programs, raise the limit (ulimit -v), or try a smaller --size"
    return ""


def reason_of(error: Exception) -> str:
    """Return the message of an error, or its class name if the message is empty.

    For an error of the operating system: the file, what is wrong, and what to do if that is known.
    """
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno, "")
        return f"{where}{error.strerror}" + (f"; {remedy}" if remedy else "")
    return str(error) or type(error).__name__
