"""Exchanges two paths atomically, where the system supports that."""

import ctypes
import errno
import os
import sys
from pathlib import Path

__all__ = ["exchange_paths"]

_CURRENT_FOLDER = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS has the same number
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def exchange_paths(left: Path, right: Path) -> bool:
    """Exchanges two existing paths in one step, so that neither is ever missing.

    Args:
        left: An existing path.
        right: Another existing path on the same disk.

    Returns:
        Whether they were exchanged; False where the system does not support it.

    Raises:
        OSError: If the system supports exchanges but this one fails.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        call = libc.renamex_np if sys.platform == "darwin" else libc.renameat2
    except (OSError, AttributeError, TypeError):
        return False
    paths = os.fsencode(left), os.fsencode(right)
    if sys.platform == "darwin":
        result = call(*paths, ctypes.c_uint(_EXCHANGE))
    else:
        folder = _CURRENT_FOLDER
        result = call(folder, paths[0], folder, paths[1], ctypes.c_uint(_EXCHANGE))
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(left), None, str(right))
