"""Proves that an output is base plus mix and nothing else: tensor by tensor, file by file."""

import filecmp
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmix.converters.checkpoints.huggingface import Shard, Stored, read_shard
from jaxmix.converters.merging.merge_plan import MergePlan
from jaxmix.converters.merging.planning import precision
from jaxmix.converters.merging.recipe import Recipe, UnwritableError
from jaxmix.converters.merging.residual import Residual, measure_residual
from jaxmix.converters.merging.tensor_io import drop_from_cache, read_rows, stored_chunks
from jaxmix.errors import CheckpointError, listing
from jaxmix.models.checkpoint import safetensors_file

__all__ = ["Verdict", "Verified", "join_proofs", "verify_output"]

# If rounding leaves less than this share of the mix's effect, the check is inconclusive.
_KEPT = 0.5


@dataclass(frozen=True)
class Verdict:
    """The result of reading one tensor back.

    Args:
        tensor: The tensor's name.
        verdict: 'proven'; 'inconclusive' where rounding hides the mix's effect; or 'failed'.
        reason: The reason, as a message.
        differing: The number of elements, or of copied bytes, that differ from a replay.
        residual: The largest distance from base plus mix in float64, divided by what rounding
            explains: up to 1 is correct. None for tensors that no adapter changes.
        kept: The share of the mix's effect that rounding left; None if the mix has no effect.
    """

    tensor: str
    verdict: Literal["proven", "inconclusive", "failed"]
    reason: str
    differing: int = 0
    residual: float | None = None
    kept: float | None = None


@dataclass(frozen=True)
class Verified:
    """The result of reading an output back.

    Args:
        tensors: A verdict for each tensor, in the order of the files.
        problems: Problems with files, headers, index and side files, as messages.
        proven: The number of tensors that are proven.
        inconclusive: The number of tensors for which the checks are inconclusive.
        failed: The number of tensors that are wrong.
        ok: Whether no tensor failed and there are no problems.
    """

    tensors: tuple[Verdict, ...]
    problems: tuple[str, ...]
    proven: int
    inconclusive: int
    failed: int
    ok: bool

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Verified":
        """Builds a result from the output of `asdict`, as read back from JSON."""
        tensors = tuple(Verdict(**verdict) for verdict in fields["tensors"])
        return cls(**{**fields, "tensors": tensors, "problems": tuple(fields["problems"])})

    @property
    def text(self) -> str:
        """Describes what is wrong."""
        failed = [f"{v.tensor}: {v.reason}" for v in self.tensors if v.verdict == "failed"]
        count = len(failed) + len(self.problems)
        return f"{count} difference{'' if count == 1 else 's'} from base plus mix:" + (
            listing([*self.problems, *failed])
        )


def verify_output(
    plan: MergePlan,
    out: Path,
    progress: Callable[[int, int, str], None] | None,
    shards: Mapping[int, Shard],
) -> Verified:
    """Reads an output back and compares it with what the merge should have written.

    Args:
        plan: The merge.
        out: The folder or file.
        progress: Called with the bytes done, the total bytes and the shard's name.
        shards: The shards to read by number; the side files are checked along with shard 0.

    Returns:
        The verdicts.
    """
    is_file, done, size = plan.checkpoint.is_file, 0, sum(shard.size for shard in shards.values())

    def report(count: int, shard: str) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, size, shard)

    verdicts: list[Verdict] = []
    problems = list(_wrong_files(plan, out)) if 0 in shards and not is_file else []
    with precision(recipe.tensor for recipe in plan.recipes.values()):
        for shard in shards.values():
            path = out if is_file else out / shard.name
            report(len(shard.header), shard.name)
            stored, wrong = _read_header(path, out.parent if is_file else out, shard)
            problems += wrong
            for tensor in shard.tensors:
                written = stored.get(tensor.name)
                verdicts.append(_judge(tensor, written, plan.recipes.get(tensor.name)))
                report(tensor.size, shard.name)
    return _count_verdicts(verdicts, problems)


def join_proofs(proofs: Sequence[Verified], names: Iterable[str]) -> Verified:
    """Joins the results of several processes; sorts the tensors in the order of these names."""
    verdicts = {verdict.tensor: verdict for proof in proofs for verdict in proof.tensors}
    tensors = [verdicts[name] for name in names]
    return _count_verdicts(tensors, [problem for proof in proofs for problem in proof.problems])


def _count_verdicts(verdicts: Sequence[Verdict], problems: Sequence[str]) -> Verified:
    """Counts the verdicts of each kind."""
    counts = {kind: 0 for kind in ("proven", "inconclusive", "failed")}
    for verdict in verdicts:
        counts[verdict.verdict] += 1
    ok = not problems and not counts["failed"]
    return Verified(tuple(verdicts), tuple(problems), **counts, ok=ok)


def _read_header(path: Path, folder: Path, shard: Shard) -> tuple[dict[str, Stored], list[str]]:
    """Returns the tensors of a shard of the output, and the problems with its header."""
    try:
        safetensors_file(path)
    except CheckpointError as error:
        return {}, [str(error)]
    drop_from_cache(path)
    written = read_shard(folder, path, shard.prefix)
    stored = {tensor.name: tensor for tensor in written.tensors}
    if written.header == shard.header:
        return stored, []
    names = {tensor.name for tensor in shard.tensors}
    wrong = [f"{path.name}: {name} is unexpected" for name in stored if name not in names]
    if written.metadata != shard.metadata:
        wrong.append(f"{path.name}: metadata is {written.metadata}, expected {shard.metadata}")
    if not wrong and names == stored.keys():
        wrong.append(f"{path.name}: the header differs, with the tensors at other offsets")
    return stored, wrong


def _wrong_files(plan: MergePlan, out: Path) -> Iterator[str]:
    """Describes side files that are missing, different or unexpected."""
    texts, folder = plan.checkpoint.texts, plan.checkpoint.folder
    for name in plan.side_files:
        path = out / name
        if not path.is_file():
            yield f"{name} is missing"
        elif name in texts:
            if path.read_bytes() != texts[name].encode():
                yield f"{name} differs from what the merge writes"
        elif not filecmp.cmp(folder / name, path, shallow=False):  # in chunks: it may be large
            yield f"{name} differs from the base's"
    expected = {*plan.side_files, *(shard.name for shard in plan.checkpoint.shards)}
    for above, _, files in os.walk(out):
        for file in sorted(files):
            name = Path(above, file).relative_to(out).as_posix()
            if name not in expected and file[0] != ".":
                yield f"{name} is unexpected"


def _judge(tensor: Stored, written: Stored | None, recipe: Recipe | None) -> Verdict:
    """Returns the verdict on one tensor."""
    if written is None:
        return Verdict(tensor.name, "failed", "it is missing")
    if (written.dtype, written.shape) != (tensor.dtype, tensor.shape):
        reason = f"it is {written.dtype} {written.shape}, expected {tensor.dtype} {tensor.shape}"
        return Verdict(tensor.name, "failed", reason)
    if recipe is None:
        differing = _count_unlike_bytes(tensor, written)
        if differing:
            reason = f"{_differing(differing, 'byte')} from the base's"
            return Verdict(tensor.name, "failed", reason, differing)
        return Verdict(tensor.name, "proven", "equal to the base, byte for byte")
    try:
        differing = _count_unlike_replay(recipe, written)
    except UnwritableError as error:
        return Verdict(tensor.name, "failed", f"it can't be base plus mix: {error}")
    residual = measure_residual(recipe, lambda rows: read_rows(written, rows))
    return _judge_changed(tensor, differing, residual)


def _judge_changed(tensor: Stored, differing: int, residual: Residual) -> Verdict:
    """Returns the verdict on a tensor that the mix changes."""
    numbers = {"differing": differing, "residual": residual.worst, "kept": residual.kept}
    if differing or residual.worst > 1:
        reason = (
            f"{_differing(differing, 'number')} from a replay; the distance from base plus mix is "
            f"up to {residual.worst:.3g} times what rounding explains"
        )
        if residual.worst <= 1:
            reason = (
                f"{_differing(differing, 'number')} from a replay, "
                f"{'' if differing == 1 else 'each '}within rounding of base plus mix. Was it "
                "merged by another version or on another device?"
            )
        return Verdict(tensor.name, "failed", reason, **numbers)
    if residual.kept is not None and residual.kept < _KEPT:
        share = f"{max(0.0, residual.kept):.1%}"
        reason = f"rounding to {tensor.dtype} left {share} of the mix's effect here"
        return Verdict(tensor.name, "inconclusive", reason, **numbers)
    reason = "base plus mix, by replay and by residual"
    return Verdict(tensor.name, "proven", reason, **numbers)


def _differing(count: int, noun: str) -> str:
    """Returns "1 number differs", or the same for several."""
    return f"1 {noun} differs" if count == 1 else f"{count:,} {noun}s differ"


def _count_unlike_bytes(tensor: Stored, written: Stored) -> int:
    """Counts the bytes of a copied tensor that differ from the base's."""
    pairs = zip(stored_chunks(tensor), stored_chunks(written), strict=True)
    return sum(
        _count_unlike(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs
    )


def _count_unlike_replay(recipe: Recipe, written: Stored) -> int:
    """Counts the numbers that differ from a replay."""
    count = 0
    if not written.size:
        return count
    prepared = recipe.prepare()
    for rows in prepared.runs:
        replayed = prepared.compute(prepared.read(rows), rows).array
        stored = read_rows(written, rows)
        bits = f"V{replayed.dtype.itemsize}"  # compared as bits: NaN equals NaN, 0 differs from −0
        count += _count_unlike(replayed.reshape(-1).view(bits), stored.reshape(-1).view(bits))
    return count


def _count_unlike(a: np.ndarray, b: np.ndarray) -> int:
    """Counts the elements that differ."""
    return int(np.count_nonzero(a != b))
