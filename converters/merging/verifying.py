"""The proof that an output is base plus mix and nothing else: tensor by tensor, file by file."""

import filecmp
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmix.converters.checkpoints.huggingface import Shard, Stored, read_shard
from jaxmix.converters.merging.files import forget, read_rows, stored_pieces
from jaxmix.converters.merging.planning import precision
from jaxmix.converters.merging.recipe import Recipe, UnwritableError
from jaxmix.converters.merging.residual import Residual, residual
from jaxmix.converters.merging.work import Work
from jaxmix.errors import CheckpointError, listing

__all__ = ["Verdict", "Verified", "joined", "verified"]

# Below this part of the mix's effect what is left of it is no proof of it.
_KEPT = 0.5


@dataclass(frozen=True)
class Verdict:
    """What reading one tensor back showed.

    Args:
        tensor: its name.
        verdict: 'proven'; 'inconclusive' where rounding hides what the mix does; 'failed'.
        reason: why, in words.
        differing: how many of its numbers a replay makes otherwise.
        residual: the largest distance from base plus mix in float64, over what rounding explains:
            up to 1 is right. None for tensors that nobody changes.
        kept: the part of the mix's effect that the rounding left; None where there is none.
    """

    tensor: str
    verdict: Literal["proven", "inconclusive", "failed"]
    reason: str
    differing: int = 0
    residual: float | None = None
    kept: float | None = None


@dataclass(frozen=True)
class Verified:
    """What reading an output back showed.

    Args:
        tensors: a verdict for each tensor, in the order of the files.
        problems: what is wrong with files, headers, index and side files, in words.
        proven: how many tensors are.
        inconclusive: of how many nothing can be told.
        failed: how many are something else.
        ok: whether nothing failed, and there are no problems.
    """

    tensors: tuple[Verdict, ...]
    problems: tuple[str, ...]
    proven: int
    inconclusive: int
    failed: int
    ok: bool

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Verified":
        """What `asdict` made, as JSON has it."""
        tensors = tuple(Verdict(**one) for one in told["tensors"])
        return cls(**{**told, "tensors": tensors, "problems": tuple(told["problems"])})

    @property
    def text(self) -> str:
        """What is wrong, in words."""
        bad = [f"{one.tensor}: {one.reason}" for one in self.tensors if one.verdict == "failed"]
        count = len(bad) + len(self.problems)
        return f"{count} thing{'' if count == 1 else 's'} found that are not base plus mix:" + (
            listing([*self.problems, *bad])
        )


def verified(
    work: Work,
    out: Path,
    progress: Callable[[int, int, str], None] | None,
    shards: Mapping[int, Shard],
) -> Verified:
    """Reads an output back.

    Args:
        work: what it should be.
        out: the folder, or the file.
        progress: called with bytes done, bytes in all, and the shard.
        shards: those to read, by their numbers; with the first of all go the side files.

    Returns:
        The verdicts.
    """
    is_file, done, size = work.checkpoint.is_file, 0, sum(shard.size for shard in shards.values())

    def told(count: int, shard: str) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, size, shard)

    verdicts: list[Verdict] = []
    problems = list(_wrong_files(work, out)) if 0 in shards and not is_file else []
    with precision(recipe.tensor for recipe in work.recipes.values()):
        for shard in shards.values():
            path = out if is_file else out / shard.name
            told(len(shard.header), shard.name)
            there, wrong = _opened(path, out.parent if is_file else out, shard)
            problems += wrong
            for tensor in shard.tensors:
                found = there.get(tensor.name)
                verdicts.append(_judged(tensor, found, work.recipes.get(tensor.name)))
                told(tensor.size, shard.name)
    return _summed(verdicts, problems)


def joined(proofs: Sequence[Verified], names: Iterable[str]) -> Verified:
    """What several processes found, each in its shards; the tensors in the order of these names."""
    found = {one.tensor: one for proof in proofs for one in proof.tensors}
    tensors = [found[name] for name in names]
    return _summed(tensors, [problem for proof in proofs for problem in proof.problems])


def _summed(verdicts: Sequence[Verdict], problems: Sequence[str]) -> Verified:
    """Verdicts, counted."""
    counts = {kind: 0 for kind in ("proven", "inconclusive", "failed")}
    for one in verdicts:
        counts[one.verdict] += 1
    ok = not problems and not counts["failed"]
    return Verified(tuple(verdicts), tuple(problems), **counts, ok=ok)


def _opened(path: Path, folder: Path, shard: Shard) -> tuple[dict[str, Stored], list[str]]:
    """The tensors of a shard as they lie in the output, and what is wrong with its header."""
    from jaxmix.models.checkpoint import safetensors_file

    try:
        safetensors_file(path)
    except CheckpointError as error:
        return {}, [str(error)]
    forget(path)
    found = read_shard(folder, path)
    there = {tensor.name: tensor for tensor in found.tensors}
    if found.header == shard.header:
        return there, []
    names = {tensor.name for tensor in shard.tensors}
    extra = [f"{path.name}: {name} should not be there" for name in there if name not in names]
    if found.metadata != shard.metadata:
        extra.append(f"{path.name}: metadata {found.metadata}, expected {shard.metadata}")
    if not extra and names == there.keys():
        extra.append(f"{path.name}: another header, with the tensors in other places")
    return there, extra


def _wrong_files(work: Work, out: Path) -> Iterator[str]:
    """Side files that are missing, that differ, or that should not be there."""
    texts, folder = work.checkpoint.texts, work.checkpoint.folder
    for name in work.files:
        path = out / name
        if not path.is_file():
            yield f"{name} is missing"
        elif name in texts:
            if path.read_bytes() != texts[name].encode():
                yield f"{name} is not what was to be written"
        elif not filecmp.cmp(folder / name, path, shallow=False):  # by pieces: it may be weights
            yield f"{name} is not what the base has"
    expected = {*work.files, *(shard.name for shard in work.checkpoint.shards)}
    for above, _, files in os.walk(out):
        for file in sorted(files):
            name = Path(above, file).relative_to(out).as_posix()
            if name not in expected and file[0] != ".":
                yield f"{name} should not be there"


def _judged(tensor: Stored, found: Stored | None, recipe: Recipe | None) -> Verdict:
    """One tensor's verdict."""
    if found is None:
        return Verdict(tensor.name, "failed", "it is missing")
    if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
        what = f"it is {found.dtype} {found.shape}, expected {tensor.dtype} {tensor.shape}"
        return Verdict(tensor.name, "failed", what)
    if recipe is None:
        differing = _unlike_bytes(tensor, found)
        if differing:
            return Verdict(
                tensor.name, "failed", f"{differing:,} bytes are not the base's", differing
            )
        return Verdict(tensor.name, "proven", "the base's, byte for byte")
    try:
        differing = _unlike_replay(recipe, found)
    except UnwritableError as error:
        return Verdict(tensor.name, "failed", f"it can't be base plus mix: {error}")
    return _of_changed(tensor, differing, residual(recipe, lambda rows: read_rows(found, rows)))


def _of_changed(tensor: Stored, differing: int, left: Residual) -> Verdict:
    """The verdict for a tensor that the mix changes."""
    numbers = {"differing": differing, "residual": left.worst, "kept": left.kept}
    if differing or left.worst > 1:
        far = f"up to {left.worst:.3g} times what rounding explains from base plus mix"
        near = "each as near to base plus mix as rounding allows: of another program or device?"
        reason = f"a replay makes {differing:,} numbers otherwise; it lies {far}"
        if left.worst <= 1:
            reason = f"a replay makes {differing:,} numbers otherwise, {near}"
        return Verdict(tensor.name, "failed", reason, **numbers)
    if left.kept is not None and left.kept < _KEPT:
        reason = (
            f"rounding to {tensor.dtype} left {max(0.0, left.kept):.1%} of what the mix does here"
        )
        return Verdict(tensor.name, "inconclusive", reason, **numbers)
    reason = "base plus mix, by replay and by residual"
    return Verdict(tensor.name, "proven", reason, **numbers)


def _unlike_bytes(tensor: Stored, found: Stored) -> int:
    """How many bytes of a tensor that nobody changes are not the base's."""
    pairs = zip(stored_pieces(tensor), stored_pieces(found), strict=True)
    return sum(_unlike(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs)


def _unlike_replay(recipe: Recipe, found: Stored) -> int:
    """How many numbers a replay makes otherwise."""
    count = 0
    if not found.size:
        return count
    prepared = recipe.prepared()
    for rows in prepared.runs:
        made = prepared.made(prepared.read(rows), rows).array
        there = read_rows(found, rows)
        kind = f"V{made.dtype.itemsize}"  # bits, so that NaN is like NaN, and 0 unlike −0
        count += _unlike(made.reshape(-1).view(kind), there.reshape(-1).view(kind))
    return count


def _unlike(a: np.ndarray, b: np.ndarray) -> int:
    """How many elements differ."""
    return int(np.count_nonzero(a != b))
