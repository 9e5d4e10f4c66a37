"""`merge_checkpoint`: a Hugging Face checkpoint and adapters in, a merged one out, by tensors.

First everything that can go wrong is looked at, on shapes alone (`work`). Then shard after shard is
written into a folder beside (`pipeline`, `place`), which is exchanged with the output at the end.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jaxmix.converters.files.hub import base_folder
from jaxmix.converters.merging import together
from jaxmix.converters.merging.growing import checker, growing
from jaxmix.converters.merging.merged import Merged, merged_of
from jaxmix.converters.merging.pipeline import Progress, Told, write_shards
from jaxmix.converters.merging.place import Place
from jaxmix.converters.merging.planning import precision
from jaxmix.converters.merging.stamps import check_unchanged, watched
from jaxmix.converters.merging.verifying import Verified, joined, verified
from jaxmix.converters.merging.work import Adapters, Work, look_at
from jaxmix.errors import CheckpointError, VerificationError
from jaxmix.placement.layout import Layout
from jaxmix.untrusted.files import local_path

__all__ = ["Merged", "merge_checkpoint", "verify_merge"]


def merge_checkpoint(
    base: str | os.PathLike[str],
    adapters: Adapters,
    out: str | os.PathLike[str],
    *,
    layout: Layout | str | None = None,
    force: bool = False,
    untie: bool = False,
    resume: bool = False,
    verify: bool = False,
    dequantize: bool = False,
    resize: bool = False,
    new_head: bool | str = False,
    progress: Progress | None = None,
) -> Merged:
    """Merges adapters into a Hugging Face checkpoint of any size: ``W' = Aₙ(… A₁(W))``.

    The output has the same shards, index, order of tensors, dtypes, metadata and side files.
    Tensors that no adapter touches are copied byte for byte; the others are what `compose` makes of
    them, rounded once. It grows in ``out.partial`` and takes its place in one step once it is
    whole. Memory does not grow with the model. Under `jax.distributed` the shards are dealt to the
    processes, each of which must make this call.

    Args:
        base: a Hugging Face folder with ``model.safetensors``, or with shards and their index;
            weights (out, in). Or the id of such a repository on the hub, ``owner/name``, which is
            downloaded. Or one safetensors file; then ``out`` is a file too.
        adapters: one adapter or mix, or several, the one to apply first first.
        out: the folder or the file to write.
        layout: where the sites lie among the tensors; None to find them by name.
        force: replace ``out`` if there is such a checkpoint, which stays until the new one is
            whole; and begin anew where a merge was broken off.
        untie: where an adapter touches an embedding that is also the head, give the head a tensor
            of its own, as PEFT's forward needs it: a copy of the base's embedding (V, D).
        resume: go on where a merge of the same was broken off: its whole shards stay. Where there
            is none, begin.
        verify: read the output back before it takes its place, and prove that it is base plus mix.
        dequantize: write packed weights (fp8, bitsandbytes, GPTQ, AWQ, MXFP4) in bfloat16.
        resize: where adapters were trained on a base with more tokens, fewer, or other labels, give
            its embedding and heads the adapters' rows, and ``config.json`` the new size.
        new_head: where adapters bring a head that the base has not (a classifier on a language
            model), write it as new tensors and drop the old one: the output is the checkpoint of
            transformers' class with that head, and ``config.json`` says so. Give the class's name
            where the head's leaves do not tell it.
        progress: called after every few megabytes with the bytes done so far, the bytes in all
            and the name of the shard; first of writing, then of verifying.

    Returns:
        What was written: the tensors that changed, what the rounding did, and the base's files that
        were left out.

    Raises:
        CheckpointError: if the base is damaged, the output can't be written there, a merge was
            broken off there.
        VerificationError: if verifying fails, which is a CheckpointError too.
        LayoutError: if sites find no tensor, a tied one, or one that is not of floats.
        ShapeError: if factors do not fit their weights.
        AdapterError: if something is no adapter, or two have one name.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from jaxmix.adapter import Adapter
        >>> from safetensors.numpy import load_file, save_file
        >>> from jaxmix.families import LoRA
        >>> ones = np.ones((1, 2), np.float32)
        >>> lora = Adapter({"proj": LoRA(a=ones, b=ones[:, :1], scale=1.0)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     base, out = Path(folder, "base"), Path(folder, "out")
        ...     base.mkdir()
        ...     save_file({"proj.weight": ones, "norm.weight": ones}, base / "model.safetensors")
        ...     merged = merge_checkpoint(base, [0.5 * lora], out)
        ...     load_file(out / "model.safetensors")["proj.weight"], merged.changed
        (array([[1.5, 1.5]], dtype=float32), ('proj.weight',))

    Source: https://github.com/huggingface/safetensors, format; ``peft``'s ``merge_and_unload``.
    """
    base = base_folder(base)
    work = look_at(
        base,
        adapters,
        layout,
        untie=untie,
        dequantize=dequantize,
        resize=resize,
        new_head=new_head,
    )
    with growing(work, base, out, resume=resume, force=force) as (place, done):
        if done is None:
            return merged_of(work, place, len(work.checkpoint.shards), None)
        _write(work, place, done, progress)
        proof = _proof(work, place, progress) if verify else None
        merged = merged_of(work, place, len(done), proof)
        together.only_first(
            lambda: place.put(
                force=force, check=partial(_check_place, work, place, base, out, force)
            )
        )
    return merged


def verify_merge(
    base: str | os.PathLike[str],
    adapters: Adapters,
    out: str | os.PathLike[str],
    *,
    layout: Layout | str | None = None,
    untie: bool = False,
    dequantize: bool = False,
    resize: bool = False,
    new_head: bool | str = False,
    progress: Progress | None = None,
) -> Verified:
    """Reads a merged checkpoint and proves that it is base plus mix: ``W' = Aₙ(… A₁(W))``.

    Each tensor is proven twice: by replay, which makes its bytes again, and by residual, which
    holds it against the same maps in float64, one after the other and neither folded nor cut, to
    half a unit in the last place. Where rounding hides most of what the mix does, nothing can be
    told, and the answer is 'inconclusive'.

    Args:
        base: as in `merge_checkpoint`.
        adapters: as there, at the same strengths.
        out: the folder or the file to look at; weights (out, in).
        layout: as there.
        untie: as there.
        dequantize: as there.
        resize: as there.
        new_head: as there.
        progress: called after every few megabytes with the bytes read so far, the bytes in all and
            the name of the shard.

    Returns:
        A verdict for each tensor, and what is wrong with files and headers.

    Raises:
        CheckpointError: if the base is damaged, or there is no such output.
        LayoutError: as `merge_checkpoint`.
        ShapeError: as `merge_checkpoint`.
        AdapterError: as `merge_checkpoint`.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from jaxmix.adapter import Adapter
        >>> from safetensors.numpy import save_file
        >>> from jaxmix.families import LoRA
        >>> ones = np.ones((1, 2), np.float32)
        >>> lora = Adapter({"proj": LoRA(a=ones, b=ones[:, :1], scale=1.0)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     base, out = Path(folder, "base.safetensors"), Path(folder, "out.safetensors")
        ...     save_file({"proj.weight": ones, "norm.weight": ones}, base)
        ...     merged = merge_checkpoint(base, 0.5 * lora, out)
        ...     verify_merge(base, 0.5 * lora, out).ok, verify_merge(base, lora, out).ok
        (True, False)

    Source: https://github.com/huggingface/safetensors, format.
    """
    work = look_at(
        base,
        adapters,
        layout,
        untie=untie,
        dequantize=dequantize,
        resize=resize,
        new_head=new_head,
    )
    place = local_path(out, "output")
    if place.is_dir() == work.checkpoint.is_file or not place.exists():
        what = "a safetensors file" if work.checkpoint.is_file else "a folder"
        raise CheckpointError(f"{out} is no merged checkpoint, expected {what}, as the base is.")
    with watched(work.stamps):
        return verified(work, place, progress, dict(enumerate(work.checkpoint.shards)))


def _check_place(work: Work, place: Place, base: Any, out: Any, force: bool) -> None:
    """Looks once more, right before the output takes its place."""
    check_unchanged(work.stamps)
    if not place.is_file:
        checker(work, place, base, out, force=force)()


def _write(work: Work, place: Place, done: Mapping[int, Any], progress: Progress | None) -> None:
    """All that is not there yet; each process its own shards, the first one the side files."""
    shards = {i: shard for i, shard in enumerate(work.checkpoint.shards) if i not in done}
    ours = together.mine(shards)
    theirs = sum(shard.size for i, shard in shards.items() if i not in ours)
    size = work.checkpoint.size - theirs
    told = Told(size - sum(shard.size for shard in ours.values()), size, progress)
    error: BaseException | None = None
    try:
        if together.is_first() and not place.is_file:
            _write_side_files(work, place.new)
        tensors = (recipe.tensor for recipe in work.recipes.values())
        with watched(work.stamps), precision(tensors):
            write_shards(ours, work.recipes, place, told, work.stamps)
    except BaseException as caught:
        error = caught
    together.agreed(error)


def _proof(work: Work, place: Place, progress: Progress | None) -> Verified:
    """What reading the new output back shows; each process reads its own shards."""
    numbers = together.mine(dict(enumerate(work.checkpoint.shards)))
    error: BaseException | None = None
    proof = None
    try:
        with watched(work.stamps):
            proof = verified(work, place.new, progress, numbers)
    except BaseException as caught:
        error = caught
    together.agreed(error)
    assert proof is not None
    proofs = [Verified.of(told) for told in together.gathered(asdict(proof))]
    proof = joined(proofs, work.checkpoint.tensors)
    if not proof.ok:
        raise VerificationError(f"{place.out} was not written: {proof.text}")
    return proof


def _write_side_files(work: Work, folder: Path) -> None:
    """Tokenizer, configs and what else there is."""
    texts = work.checkpoint.texts
    for name in work.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in texts:
            target.write_text(texts[name], encoding="utf-8")
        else:
            shutil.copyfile(work.checkpoint.folder / name, target)
