"""The folder in which an output grows: recognized as a merge's, and held by one process at a time.

It is a merge's if its journal says so, and names the output. Whatever else has its name is left as
it is: nothing is created in it, emptied or removed.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jaxmix.converters.merging.place import JOURNAL, PROCESS, Place
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import parse_json

__all__ = ["locked"]

FORMAT = "jaxmix merge"
VERSION = 2
_MOST = 1 << 16  # bytes of a journal, a name and two numbers
# A link is not followed, and a pipe does not wait for its other end.
_FLAGS = os.O_RDWR | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Holds an output for this process alone: the lock goes with the process, however it ends.

    Yields:
        Nothing; the folder beside is there.

    Raises:
        CheckpointError: if another process is at it, or the folder is not a merge's.
    """
    missing = [folder for folder in place.beside.parents if not folder.exists()]
    try:
        file = _locked_journal(place)
        try:
            yield
        finally:
            file.close()
            # A refusal leaves nothing but the journal. Whoever waits for the lock makes it anew.
            with suppress(OSError):
                if {path.name for path in place.beside.iterdir()} <= {JOURNAL, PROCESS}:
                    place.removed()
    finally:
        for folder in missing:  # the innermost first; one that holds something stays
            with suppress(OSError):
                folder.rmdir()


def _locked_journal(place: Place) -> Any:
    """The open journal; closing it lets the lock go."""
    path = place.beside / JOURNAL
    while True:
        is_empty = _is_empty(place)
        try:
            number = os.open(path, _FLAGS | (os.O_CREAT if is_empty else 0), 0o666)
        except FileNotFoundError:
            if is_empty or not place.beside.exists():  # removed between these lines
                continue
            raise _in_the_way(place) from None
        except OSError as error:  # a link, a folder
            raise _in_the_way(place) from error
        file = os.fdopen(number, "r+b", buffering=0)
        try:
            if _is_held(file, place):
                # Whoever held it before may have removed the file that was opened.
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(number)):
                        _sign(file, place)
                        return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_empty(place: Place) -> bool:
    """Makes the folder if it is absent, and returns whether it is empty.

    Raises:
        CheckpointError: if something else has its name.
    """
    if place.beside.is_symlink() or (place.beside.exists() and not place.beside.is_dir()):
        raise _in_the_way(place)
    place.beside.mkdir(parents=True, exist_ok=True)
    return not any(place.beside.iterdir())


def _is_held(file: Any, place: Place) -> bool:
    """Locks the journal of a merge to this output, or one that is empty yet.

    Raises:
        CheckpointError: if it is another's, or another process holds it.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
        raise _in_the_way(place)
    text = file.read()
    if text and _said(text) != _identity(place):
        raise _in_the_way(place)
    try:
        _lock(file)
    except BlockingIOError as error:
        raise CheckpointError(
            f"another process (number {_process(place)}) is writing the output {place.out} right "
            "now. Wait until it is done, or give another folder."
        ) from error
    return True


def _process(place: Place) -> str:
    """The number of the process at work, as it wrote it down."""
    with suppress(OSError, ValueError):
        return str(int((place.beside / PROCESS).read_text(encoding="utf-8")))
    return "unknown"


def _sign(file: Any, place: Place) -> None:
    """Writes into a new journal whose it is, and beside it which process is at work.

    A merge that is killed before that leaves an empty folder, or an empty journal and nothing else:
    such a folder is taken over, for there is nothing in it to lose.

    Raises:
        CheckpointError: if the journal is empty, and the folder is not.
    """
    file.seek(0)
    if not file.read():
        if {path.name for path in place.beside.iterdir()} != {JOURNAL}:
            raise _in_the_way(place)
        file.write(json.dumps(_identity(place)).encode())
        os.fsync(file.fileno())
    process = place.beside / PROCESS
    process.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(process, flags, 0o666), "w", encoding="utf-8") as opened:
        opened.write(f"{os.getpid()}\n")


def _identity(place: Place) -> dict[str, Any]:
    """What the journal of a merge to this output says."""
    return {"format": FORMAT, "version": VERSION, "output": place.out.name}


def _said(text: bytes) -> Any:
    """The content of a journal; None if it is not JSON."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def _in_the_way(place: Place) -> CheckpointError:
    return CheckpointError(
        f"{place.beside} is in the way: the output grows there, and what lies there is no "
        f"unfinished merge to {place.out.name}. It is left as it is. Move it, or give another name "
        "for the output."
    )


def _lock(file: Any) -> None:
    """Locks an open file, or raises BlockingIOError; Windows has no such lock."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
