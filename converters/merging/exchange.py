"""Two paths that change places at once, where the system can do that."""

import ctypes
import errno
import os
import sys
from pathlib import Path

__all__ = ["exchanged"]

_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS has the same number
_CAN_NOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def exchanged(one: Path, other: Path) -> bool:
    """Lets two paths change places in one step, so that nobody ever finds one of them missing.

    Args:
        one: a path that is there.
        other: another one on the same disk.

    Returns:
        Whether they did; False where the system can't.

    Raises:
        OSError: if the system could, and refuses.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        call = libc.renamex_np if sys.platform == "darwin" else libc.renameat2
    except (OSError, AttributeError, TypeError):
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        result = call(*paths, ctypes.c_uint(_EXCHANGE))
    else:
        result = call(_HERE, paths[0], _HERE, paths[1], ctypes.c_uint(_EXCHANGE))
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _CAN_NOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
