"""Opens safetensors files from untrusted sources; no other module opens them.

Only regular files are opened. The error for a damaged file, or one of another kind, states what the
file is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize, safe_open

from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import check_on_disk, check_regular, header_problem

__all__ = ["open_safetensors", "opened_safetensors", "tensor_bytes"]

_ADVICE = "Download or save it again."
# The first bytes of files that are often misnamed as safetensors files. A safetensors file has an
# opening brace after its first eight bytes.
_OTHER_KINDS = {
    b"version https://git-lfs": "it is a Git LFS pointer: run `git lfs pull` in its repository.",
    b"PK\x03\x04": (
        "it is a zip file of torch.save, which contains a pickle; jaxmix opens no pickles."
    ),
    b"\x80": "it is a pickle under another name; jaxmix opens no pickles.",
    b"<": "it is a web page: the download failed.",
}


def open_safetensors(path: Path, *, advice: str = _ADVICE, is_read_whole: bool = False) -> Any:
    """Opens a safetensors file: reads its header and checks its length.

    Args:
        path: The file.
        advice: What to do about a damaged file, for the message.
        is_read_whole: Whether all of it will be read; then large sparse files are refused.

    Returns:
        The handle of `safetensors.safe_open`, whose tensors are NumPy arrays.

    Raises:
        CheckpointError: If the file is missing, damaged or not a regular file.
    """
    try:
        check_regular(path)
        if is_read_whole:
            check_on_disk(path)
        return safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. Pass the path of a file.") from error
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error, advice) from error


@contextmanager
def opened_safetensors(
    path: Path, *, advice: str = _ADVICE, is_read_whole: bool = False
) -> Iterator[Any]:
    """Opens a safetensors file for a ``with`` block; errors of reading it name the file too.

    Args:
        path: The file.
        advice: What to do about a damaged file, for the message.
        is_read_whole: Whether all of it will be read; then large sparse files are refused.

    Yields:
        The handle of `safetensors.safe_open`.

    Raises:
        CheckpointError: If the file is missing or damaged, or can't be read.
    """
    with open_safetensors(path, advice=advice, is_read_whole=is_read_whole) as file:
        try:
            yield file
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error, advice) from error


def tensor_bytes(path: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Returns the shape and bytes of each tensor, for dtypes that NumPy does not have.

    Args:
        path: A file that `opened_safetensors` has read.
    """
    tensors: Any = deserialize(path.read_bytes())
    return {name: (tuple(fields["shape"]), bytes(fields["data"])) for name, fields in tensors}


def _damaged(path: Path, error: Exception, advice: str) -> CheckpointError:
    """The error for a file that safetensors can't open."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as reason:
        return CheckpointError(
            f"{path} can't be read: {reason.strerror}. Expected a file that you may read."
        )
    problem = header_problem(path) or f"{error}."
    if start[8:9] != b"{":
        kinds = (text for begin, text in _OTHER_KINDS.items() if start.startswith(begin))
        problem = next(kinds, problem)
    return CheckpointError(f"{path} is not a complete safetensors file: {problem} {advice}")
