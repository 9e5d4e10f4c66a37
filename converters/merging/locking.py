"""Locks the folder of an unfinished output for one process.

A folder belongs to a merge if its journal says so and names the output. Anything else with the
folder's name is left unchanged: nothing in it is created or deleted.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jaxmix.converters.merging.staged_output import JOURNAL, PROCESS, StagedOutput
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import parse_json

__all__ = ["locked"]

FORMAT = "jaxmix merge"
VERSION = 2
_MAX_BYTES = 1 << 16  # of a journal: a name and two numbers
# Do not follow a link, and do not wait for the other end of a pipe.
_FLAGS = os.O_RDWR | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


@contextmanager
def locked(output: StagedOutput) -> Iterator[None]:
    """Locks an output's folder, creating it if needed. The lock ends with the process.

    Raises:
        CheckpointError: If another process holds the lock, or the folder is not a merge's.
    """
    missing = [folder for folder in output.folder.parents if not folder.exists()]
    try:
        file = _locked_journal(output)
        try:
            yield
        finally:
            file.close()
            # After a refusal the folder holds the journal alone. A waiting process recreates it.
            with suppress(OSError):
                if {path.name for path in output.folder.iterdir()} <= {JOURNAL, PROCESS}:
                    output.delete()
    finally:
        for folder in missing:  # innermost first; a folder that is not empty stays
            with suppress(OSError):
                folder.rmdir()


def _locked_journal(output: StagedOutput) -> Any:
    """Returns the open journal; closing it releases the lock."""
    path = output.folder / JOURNAL
    while True:
        is_empty = _make_folder(output)
        try:
            number = os.open(path, _FLAGS | (os.O_CREAT if is_empty else 0), 0o666)
        except FileNotFoundError:
            if is_empty or not output.folder.exists():  # deleted between these lines
                continue
            raise _in_the_way(output) from None
        except OSError as error:  # a link, a folder
            raise _in_the_way(output) from error
        file = os.fdopen(number, "r+b", buffering=0)
        try:
            if _lock_journal(file, output):
                # The process that held the lock before may have deleted the opened file.
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(number)):
                        _write_identity(file, output)
                        return file
        except BaseException:
            file.close()
            raise
        file.close()


def _make_folder(output: StagedOutput) -> bool:
    """Creates the folder if it is missing, and returns whether it is empty.

    Raises:
        CheckpointError: If something else has its name.
    """
    if output.folder.is_symlink() or (output.folder.exists() and not output.folder.is_dir()):
        raise _in_the_way(output)
    output.folder.mkdir(parents=True, exist_ok=True)
    return not any(output.folder.iterdir())


def _lock_journal(file: Any, output: StagedOutput) -> bool:
    """Locks the journal of a merge to this output, or an empty journal.

    Raises:
        CheckpointError: If it is another journal, or another process holds the lock.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise _in_the_way(output)
    text = file.read()
    if text and _parse(text) != _identity(output):
        raise _in_the_way(output)
    try:
        _lock(file)
    except BlockingIOError as error:
        raise CheckpointError(
            f"another process (number {_process(output)}) is writing the output {output.path}. "
            "Wait until it is done, or choose another folder."
        ) from error
    return True


def _process(output: StagedOutput) -> str:
    """Returns the recorded number of the process that writes."""
    with suppress(OSError, ValueError):
        return str(int((output.folder / PROCESS).read_text(encoding="utf-8")))
    return "unknown"


def _write_identity(file: Any, output: StagedOutput) -> None:
    """Writes the output's name into a new journal, and this process's number next to it.

    A merge that is killed before this leaves an empty folder, or only an empty journal. Such a
    folder is reused, since it holds nothing that could be lost.

    Raises:
        CheckpointError: If the journal is empty and the folder holds other files.
    """
    file.seek(0)
    if not file.read():
        if {path.name for path in output.folder.iterdir()} != {JOURNAL}:
            raise _in_the_way(output)
        file.write(json.dumps(_identity(output)).encode())
        os.fsync(file.fileno())
    process = output.folder / PROCESS
    process.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(process, flags, 0o666), "w", encoding="utf-8") as process_file:
        process_file.write(f"{os.getpid()}\n")


def _identity(output: StagedOutput) -> dict[str, Any]:
    """Returns the content of the journal of a merge to this output."""
    return {"format": FORMAT, "version": VERSION, "output": output.path.name}


def _parse(text: bytes) -> Any:
    """Returns the content of a journal; None if it is not JSON."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def _in_the_way(output: StagedOutput) -> CheckpointError:
    return CheckpointError(
        f"{output.folder} is in the way: the unfinished output would be written there, and it is "
        f"not an unfinished merge to {output.path.name}. It is left unchanged. Move it, or choose "
        "another name for the output."
    )


def _lock(file: Any) -> None:
    """Locks an open file, or raises BlockingIOError. Windows has no such lock."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
