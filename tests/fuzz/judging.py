"""One input, given to jaxmix and judged."""

import json
import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from .case import Case, contents, write
from .kinds import made
from .mutations import mutated
from .oracle import Answer, answer
from .tensorfile import BadFileError, Tensor, split, unpack

__all__ = ["FAULTS", "VERDICTS", "HungError", "Verdict", "judge", "limited"]

Name = Literal["exact", "right", "refused", "wrong", "crashed", "hung", "lost"]
VERDICTS: tuple[Name, ...] = ("exact", "right", "refused", "wrong", "crashed", "hung", "lost")
FAULTS = VERDICTS[3:]
SECONDS = 20
# The shortest message that can say where and what.
_SHORTEST = 25


class HungError(BaseException):
    """An input took too long. No `Exception`, so that nothing on the way catches it."""


@dataclass(frozen=True)
class Verdict:
    """What came of an input.

    Args:
        name: one of `VERDICTS`.
        why: what was wrong, or the error with which it was refused.
        changes: what was changed in the input.
        is_readable: whether the oracle has an answer.
    """

    name: Name
    why: str = ""
    changes: tuple[str, ...] = ()
    is_readable: bool = True


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises HungError within the block after some seconds, in the main thread of Unix."""

    def stop(*_: Any) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(kind: str, number: int, folder: Path) -> Verdict:
    """Judges one input.

    Args:
        kind: one of `KINDS`.
        number: which of its mutations; 0 is the valid input itself.
        folder: an empty folder, which the caller clears.

    Returns:
        The verdict.
    """
    case = mutated(kind, number)
    verdict = _judge(case, kind, number, folder)
    return Verdict(verdict.name, verdict.why, case.changes, verdict.is_readable)


def _judge(case: Case, kind: str, number: int, folder: Path) -> Verdict:
    right: Answer | None = None
    why = ""
    try:
        right = answer(case)
    except BadFileError as error:
        why = str(error)
    write(case.files, folder)
    found: Any = None
    try:
        with limited(SECONDS):
            if number % 3 == 2 and right is not None and not case.dequantize:
                found = _composed(case, folder, right)
            if found is None:
                found = _merged(case, folder, number % 12 == 1)
    except HungError:
        return Verdict("hung", f"no answer after {SECONDS} seconds")
    except Exception as error:
        found = error
    if lost := _lost(case, folder, isinstance(found, dict)):
        return Verdict("lost", lost)
    if isinstance(found, Exception):
        return _of_error(found, right is not None)
    if right is None:
        return Verdict("wrong", f"read, but {why}", is_readable=False)
    if problem := _problem(case, right, found):
        return Verdict("wrong", problem)
    return Verdict("exact" if number == 0 or _is_original(kind, found) else "right")


def _of_error(error: Exception, is_readable: bool) -> Verdict:
    from jaxmix import JaxmixError
    from jaxmix.errors import VerificationError

    text = "".join(traceback.format_exception(error)[-3:])
    if isinstance(error, VerificationError):
        return Verdict("wrong", f"its own verifying fails: {error}")
    if not isinstance(error, JaxmixError):
        return Verdict("crashed", text)
    if len(str(error)) < _SHORTEST:
        return Verdict("crashed", f"an error that says nothing: {error}")
    return Verdict("refused", str(error), is_readable=is_readable)


def _loaded(case: Case, folder: Path) -> list[Any]:
    import jaxmix

    found = []
    for adapter in case.adapters:
        options = {
            key: folder / case.base if value == "BASE" else value
            for key, value in adapter.options.items()
        }
        found.append(jaxmix.load(folder / adapter.path, strength=adapter.strength, **options))
    return found


def _merged(case: Case, folder: Path, verify: bool) -> dict[str, bytes]:
    """The files of the merged checkpoint."""
    import jaxmix

    out = folder / ("out.safetensors" if case.base.endswith(".safetensors") else "out")
    jaxmix.merge_checkpoint(
        folder / case.base, _loaded(case, folder), out, verify=verify, dequantize=case.dequantize
    )
    return contents(out) if out.is_dir() else {"": out.read_bytes()}


_DTYPES: Mapping[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


def _composed(case: Case, folder: Path, right: Answer) -> dict[str, Tensor] | None:
    """The tensors that `compose` makes, of arrays that the oracle read.

    None if numbers overflow. `compose` checks for that as little as any arithmetic does; a merge
    does.
    """
    import jaxmix

    base = right.base
    params = {
        name: np.frombuffer(tensor.data, _DTYPES.get(tensor.dtype, np.uint8)).reshape(
            tensor.shape if tensor.dtype in _DTYPES else -1
        )
        for name, (_, tensor) in base.tensors.items()
    }
    found = jaxmix.compose(params, _loaded(case, folder))
    for name in right.changed:
        if not np.isfinite(np.asarray(found[name], np.float64)).all():
            return None
    return {
        name: Tensor(base.tensors[name][1].dtype, np.shape(array), np.asarray(array).tobytes())
        for name, array in found.items()
    }


def _lost(case: Case, folder: Path, is_merged: bool) -> str:
    """Changes to the user's files, and leftovers next to them."""
    now = contents(folder)
    changed = [name for name, data in case.files.items() if now.get(name) != data]
    if changed:
        return f"changed or gone: {', '.join(changed)}"
    left = [
        name
        for name in now
        if name not in case.files
        and not (is_merged and (name == "out.safetensors" or name.startswith("out/")))
    ]
    return f"left behind: {', '.join(left)}" if left else ""


def _problem(case: Case, right: Answer, found: Mapping[str, Any]) -> str:
    """What is wrong with an output; empty if it is right."""
    base = right.base
    if found and all(isinstance(value, Tensor) for value in found.values()):
        tensors: dict[str, Tensor] = dict(found)
    else:
        tensors = {}
        for shard in base.shards:
            if shard not in found:
                return f"{shard} is missing"
            try:
                tensors |= unpack(found[shard])[0]
            except BadFileError as error:
                return f"{shard}: {error}"
        if problem := _files_problem(case, right, found):
            return problem
    if tensors.keys() != base.tensors.keys():
        return f"other tensors: {sorted(tensors.keys() ^ base.tensors.keys())}"
    for name, tensor in tensors.items():
        before = base.tensors[name][1]
        if name not in right.changed:
            if tensor.data != before.data:
                return f"{name} is not the base's"
            continue
        leaf = right.changed[name]
        if (tensor.dtype, tensor.shape) != (leaf.dtype, before.shape):
            return f"{name} is {tensor.dtype} {tensor.shape}, expected {leaf.dtype} {before.shape}"
        if problem := leaf.problem(tensor.numbers):
            return f"{name}: {problem}"
    return ""


def _files_problem(case: Case, right: Answer, found: Mapping[str, bytes]) -> str:
    """What is wrong with an output's files, apart from their numbers."""
    if case.base in case.files:
        return "" if split(found[""])[0] == split(case.files[case.base])[0] else "another header"
    wanted = {
        name.removeprefix(f"{case.base}/"): data
        for name, data in case.files.items()
        if name.startswith(f"{case.base}/")
    }
    if wanted.keys() != found.keys():
        return f"other files: {sorted(wanted.keys() ^ found.keys())}"
    for name, data in wanted.items():
        if name in right.base.shards:
            if not case.dequantize and split(found[name])[0] != split(data)[0]:
                return f"{name}: another header"
        elif name == "config.json" and right.config is not None:
            if json.loads(found[name]) != right.config:
                return f"config.json says {found[name].decode()}"
        elif found[name] != data:
            return f"{name} is not the base's"
    return ""


@cache
def _originals(kind: str) -> dict[str, Tensor]:
    """The tensors that the valid input of a kind gives, by jaxmix; empty if it gives none."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(made(kind).files, Path(folder))
        files = _merged(made(kind), Path(folder), False)
    return _tensors(files)


def _tensors(files: Mapping[str, Any]) -> dict[str, Tensor]:
    if all(isinstance(value, Tensor) for value in files.values()):
        return dict(files)
    found: dict[str, Tensor] = {}
    for name, data in files.items():
        if name.endswith(".safetensors") or not name:
            found |= unpack(data)[0]
    return found


def _is_original(kind: str, found: Mapping[str, Any]) -> bool:
    """Whether an output has the very tensors of the valid input's."""
    return _tensors(found) == _originals(kind)
