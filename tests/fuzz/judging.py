"""Passes one input to jaxmix and judges the result."""

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
from .kinds import valid_input
from .mutations import mutated
from .oracle import Answer, answer
from .tensorfile import BadFileError, Tensor, split, unpack

__all__ = ["FAULTS", "VERDICTS", "HungError", "Verdict", "judge", "limited"]

Name = Literal["exact", "right", "refused", "wrong", "crashed", "hung", "lost"]
VERDICTS: tuple[Name, ...] = ("exact", "right", "refused", "wrong", "crashed", "hung", "lost")
FAULTS = VERDICTS[3:]
SECONDS = 20
# The shortest message that can state where and what is wrong.
_SHORTEST = 25


class HungError(BaseException):
    """An input took too long. Not an `Exception`, so no handler catches it."""


@dataclass(frozen=True)
class Verdict:
    """The result of judging an input.

    Args:
        name: One of `VERDICTS`.
        why: The problem, or the error that was raised.
        changes: A description of the input's changes.
        is_readable: Whether the oracle has an answer.
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
        kind: One of `KINDS`.
        number: The number of the mutation; 0 is the valid input itself.
        folder: An empty folder, which the caller clears.

    Returns:
        The verdict.
    """
    case = mutated(kind, number)
    verdict = _judge(case, kind, number, folder)
    return Verdict(verdict.name, verdict.why, case.changes, verdict.is_readable)


def _judge(case: Case, kind: str, number: int, folder: Path) -> Verdict:
    expected: Answer | None = None
    why = ""
    try:
        expected = answer(case)
    except BadFileError as error:
        why = str(error)
    write(case.files, folder)
    output: Any = None
    try:
        with limited(SECONDS):
            if number % 3 == 2 and expected is not None and not case.dequantize:
                output = _composed(case, folder, expected)
            if output is None:
                output = _merged(case, folder, number % 12 == 1)
    except HungError:
        return Verdict("hung", f"no answer after {SECONDS} seconds")
    except Exception as error:
        output = error
    if side_effect := _lost(case, folder, isinstance(output, dict)):
        return Verdict("lost", side_effect)
    if isinstance(output, Exception):
        return _of_error(output, expected is not None)
    if expected is None:
        return Verdict("wrong", f"read, but {why}", is_readable=False)
    if problem := _problem(case, expected, output):
        return Verdict("wrong", problem)
    return Verdict("exact" if number == 0 or _is_original(kind, output) else "right")


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

    adapters = []
    for adapter in case.adapters:
        options = {
            key: folder / case.base if value == "BASE" else value
            for key, value in adapter.options.items()
        }
        adapters.append(jaxmix.load(folder / adapter.path, strength=adapter.strength, **options))
    return adapters


def _merged(case: Case, folder: Path, verify: bool) -> dict[str, bytes]:
    """Returns the files of the merged checkpoint."""
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
    """Returns the tensors that `compose` makes of the arrays that the oracle read.

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
    composed = jaxmix.compose(params, _loaded(case, folder))
    for name in right.changed:
        if not np.isfinite(np.asarray(composed[name], np.float64)).all():
            return None
    return {
        name: Tensor(base.tensors[name][1].dtype, np.shape(array), np.asarray(array).tobytes())
        for name, array in composed.items()
    }


def _lost(case: Case, folder: Path, is_merged: bool) -> str:
    """Describes changes to the user's files, and leftovers next to them."""
    now = contents(folder)
    changed = [name for name, data in case.files.items() if now.get(name) != data]
    if changed:
        return f"changed or gone: {', '.join(changed)}"
    leftovers = [
        name
        for name in now
        if name not in case.files
        and not (is_merged and (name == "out.safetensors" or name.startswith("out/")))
    ]
    return f"left behind: {', '.join(leftovers)}" if leftovers else ""


def _problem(case: Case, right: Answer, output: Mapping[str, Any]) -> str:
    """Describes the problem with an output; empty if it is right."""
    base = right.base
    if output and all(isinstance(value, Tensor) for value in output.values()):
        tensors: dict[str, Tensor] = dict(output)
    else:
        tensors = {}
        for shard in base.shards:
            if shard not in output:
                return f"{shard} is missing"
            try:
                tensors |= unpack(output[shard])[0]
            except BadFileError as error:
                return f"{shard}: {error}"
        if problem := _files_problem(case, right, output):
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


def _files_problem(case: Case, right: Answer, output: Mapping[str, bytes]) -> str:
    """Describes the problem with an output's files, except for their numbers."""
    if case.base in case.files:
        return "" if split(output[""])[0] == split(case.files[case.base])[0] else "another header"
    expected = {
        name.removeprefix(f"{case.base}/"): data
        for name, data in case.files.items()
        if name.startswith(f"{case.base}/")
    }
    if expected.keys() != output.keys():
        return f"other files: {sorted(expected.keys() ^ output.keys())}"
    for name, data in expected.items():
        if name in right.base.shards:
            if not case.dequantize and split(output[name])[0] != split(data)[0]:
                return f"{name}: another header"
        elif name == "config.json" and right.config is not None:
            if json.loads(output[name]) != right.config:
                return f"config.json says {output[name].decode()}"
        elif output[name] != data:
            return f"{name} is not the base's"
    return ""


@cache
def _originals(kind: str) -> dict[str, Tensor]:
    """Returns the tensors that jaxmix gives for the valid input of a kind; empty if none."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(valid_input(kind).files, Path(folder))
        files = _merged(valid_input(kind), Path(folder), False)
    return _tensors(files)


def _tensors(files: Mapping[str, Any]) -> dict[str, Tensor]:
    if all(isinstance(value, Tensor) for value in files.values()):
        return dict(files)
    tensors: dict[str, Tensor] = {}
    for name, data in files.items():
        if name.endswith(".safetensors") or not name:
            tensors |= unpack(data)[0]
    return tensors


def _is_original(kind: str, output: Mapping[str, Any]) -> bool:
    """Whether an output has the valid input's exact tensors."""
    return _tensors(output) == _originals(kind)
