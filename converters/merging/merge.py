"""`merge_checkpoint` and `verify_merge`: merge adapters into a Hugging Face checkpoint.

Everything that can fail is checked first, from shapes alone (`merge_plan`). Then the shards are
written one by one into a folder next to the output (`pipeline`, `staged_output`), which replaces
the output at the end.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jaxmix.converters.files.hub import base_folder
from jaxmix.converters.merging import processes
from jaxmix.converters.merging.merge_plan import Adapters, AllowedChanges, MergePlan, plan_merge
from jaxmix.converters.merging.pipeline import ByteCounter, Progress, write_shards
from jaxmix.converters.merging.planning import precision
from jaxmix.converters.merging.result import Merged, merge_result
from jaxmix.converters.merging.staged_output import StagedOutput
from jaxmix.converters.merging.staging import output_check, staged_output
from jaxmix.converters.merging.stamps import check_unchanged, expect_unchanged
from jaxmix.converters.merging.verifying import Verified, join_proofs, verify_output
from jaxmix.errors import CheckpointError, VerificationError
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import Names
from jaxmix.untrusted.files import local_path

__all__ = ["Merged", "merge_checkpoint", "verify_merge"]


def merge_checkpoint(
    base: str | os.PathLike[str],
    adapters: Adapters,
    out: str | os.PathLike[str],
    *,
    layout: Layout | str | None = None,
    names: Names = None,
    variant: str | None = None,
    force: bool = False,
    untie: bool = False,
    resume: bool = False,
    verify: bool = False,
    dequantize: bool = False,
    resize: bool = False,
    new_head: bool | str | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Merges adapters into a Hugging Face checkpoint of any size: ``W' = Aₙ(… A₁(W))``.

    The output has the same shards, index, tensor order, dtypes, metadata and side files as the
    base. Tensors that no adapter touches are copied byte for byte; the others are computed as
    `compose` computes them and rounded once. The output is written to ``out.partial`` and renamed
    to ``out`` in one step once it is complete. Memory does not grow with the model. Under
    `jax.distributed` the shards are distributed over the processes, each of which must make this
    call.

    Args:
        base: A Hugging Face folder with ``model.safetensors``, or with shards and their index;
            weights are (out, in). Or the id of such a repository on the hub, ``owner/name``, which
            is downloaded. Or a single safetensors file; then ``out`` is a file too.
        adapters: An adapter, a mix, or several of them in order of application.
        out: The folder or file to write.
        layout: Where the sites are among the tensors; None to find them by name.
        names: How transformers renames the base's tensors when it loads them: a model type such as
            ``"mixtral"``, a config, ``""`` if not at all, or None for what ``config.json`` names.
        variant: Which of several variants of the base's weights to read, such as ``"fp16"`` for
            ``diffusion_pytorch_model.fp16.safetensors``, as in diffusers; None for the files
            without a variant. The output's files have the same names.
        force: Replace an existing checkpoint at ``out``, which stays in place until the new one is
            complete; and start over where an earlier merge was interrupted.
        untie: Where an adapter touches an embedding that is also the head, give the head a
            separate tensor, as PEFT's forward requires: a copy of the base's embedding (V, D).
        resume: Continue an interrupted merge with the same arguments, keeping its complete shards.
            Without such a merge, start from the beginning.
        verify: Read the output back before it is moved into place, and prove that it is base plus
            mix.
        dequantize: Write packed weights (fp8, bitsandbytes, GPTQ, AWQ, MXFP4) in bfloat16.
        resize: Where adapters were trained on a base with more or fewer tokens, or with other
            labels, give its embedding and heads the adapters' rows, and update the size in
            ``config.json``.
        new_head: Where adapters have a head that the base lacks (a classifier on a language
            model), write it as new tensors and drop the old head: the output is a checkpoint of
            the transformers class with that head, which ``config.json`` and the result then name.
            None to do so if exactly one class fits; False to refuse. True also refuses a class of
            which other tensors are absent. Pass the class's name if the head's leaves do not
            determine it.
        progress: Called after every few megabytes with the bytes done so far, the total bytes and
            the shard's name, first while writing, then while verifying.

    Returns:
        A summary of the output: the changed tensors, the rounding error, and the base's files that
        were left out.

    Raises:
        CheckpointError: If the base is damaged, the output can't be written, or an interrupted
            merge is found and neither ``resume`` nor ``force`` is set.
        VerificationError: If verification fails. It is a subclass of CheckpointError.
        LayoutError: If a site matches no tensor, a tied tensor, or a tensor that is not of floats.
        ShapeError: If factors do not fit their weights.
        AdapterError: If an argument is not an adapter, or two adapters have the same name.

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
    base = base_folder(base, variant)
    changes = AllowedChanges(untie=untie, dequantize=dequantize, resize=resize, new_head=new_head)
    plan = plan_merge(base, adapters, layout, changes, names, variant)
    with staged_output(plan, base, out, resume=resume, force=force) as (output, done):
        if done is None:
            return merge_result(plan, output, len(plan.checkpoint.shards), None)
        _write(plan, output, done, progress)
        proof = _verify(plan, output, progress) if verify else None
        merged = merge_result(plan, output, len(done), proof)
        check = partial(_check_output, plan, output, base, out, force)
        processes.run_on_first(lambda: output.publish(force=force, check=check))
    return merged


def verify_merge(
    base: str | os.PathLike[str],
    adapters: Adapters,
    out: str | os.PathLike[str],
    *,
    layout: Layout | str | None = None,
    names: Names = None,
    variant: str | None = None,
    untie: bool = False,
    dequantize: bool = False,
    resize: bool = False,
    new_head: bool | str | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Reads a merged checkpoint and proves that it is base plus mix: ``W' = Aₙ(… A₁(W))``.

    Each tensor is checked twice. Replay computes its bytes again. The residual compares it, to half
    a unit in the last place, with the same maps applied one after the other in float64, without
    folding or slicing them. Where rounding hides most of the mix's effect, neither check is
    conclusive, and the verdict is 'inconclusive'.

    Args:
        base: As in `merge_checkpoint`.
        adapters: As in `merge_checkpoint`, at the same strengths.
        out: The folder or file to check; weights are (out, in).
        layout: As in `merge_checkpoint`.
        names: As in `merge_checkpoint`.
        variant: As in `merge_checkpoint`.
        untie: As in `merge_checkpoint`.
        dequantize: As in `merge_checkpoint`.
        resize: As in `merge_checkpoint`.
        new_head: As in `merge_checkpoint`.
        progress: Called after every few megabytes with the bytes read so far, the total bytes and
            the shard's name.

    Returns:
        A verdict for each tensor, and the problems with files and headers.

    Raises:
        CheckpointError: If the base is damaged, or there is no such output.
        LayoutError: As `merge_checkpoint`.
        ShapeError: As `merge_checkpoint`.
        AdapterError: As `merge_checkpoint`.

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
    changes = AllowedChanges(untie=untie, dequantize=dequantize, resize=resize, new_head=new_head)
    plan = plan_merge(base, adapters, layout, changes, names, variant)
    path = local_path(out, "output")
    if path.is_dir() == plan.checkpoint.is_file or not path.exists():
        kind = "a safetensors file" if plan.checkpoint.is_file else "a folder"
        raise CheckpointError(
            f"{out} is not a merged checkpoint, expected {kind}, as the base is. Check the path."
        )
    with expect_unchanged(plan.stamps):
        return verify_output(plan, path, progress, dict(enumerate(plan.checkpoint.shards)))


def _check_output(plan: MergePlan, output: StagedOutput, base: Any, out: Any, force: bool) -> None:
    """Checks base and output again right before the output is moved into place."""
    check_unchanged(plan.stamps)
    if not output.is_file:
        output_check(plan, output, base, out, force=force)()


def _write(
    plan: MergePlan, output: StagedOutput, done: Mapping[int, Any], progress: Progress | None
) -> None:
    """Writes what is missing: each process its own shards, the first process the side files."""
    shards = {i: shard for i, shard in enumerate(plan.checkpoint.shards) if i not in done}
    ours = processes.own_shards(shards)
    theirs = sum(shard.size for i, shard in shards.items() if i not in ours)
    size = plan.checkpoint.size - theirs
    counter = ByteCounter(size - sum(shard.size for shard in ours.values()), size, progress)
    error: BaseException | None = None
    try:
        if processes.is_first() and not output.is_file:
            _write_side_files(plan, output.new)
        tensors = (recipe.tensor for recipe in plan.recipes.values())
        with expect_unchanged(plan.stamps), precision(tensors):
            write_shards(ours, plan.recipes, output, counter, plan.stamps)
    except BaseException as caught:
        error = caught
    processes.raise_together(error)


def _verify(plan: MergePlan, output: StagedOutput, progress: Progress | None) -> Verified:
    """Reads the new output back and raises if it is wrong; each process reads its own shards."""
    shards = processes.own_shards(dict(enumerate(plan.checkpoint.shards)))
    error: BaseException | None = None
    proof = None
    try:
        with expect_unchanged(plan.stamps):
            proof = verify_output(plan, output.new, progress, shards)
    except BaseException as caught:
        error = caught
    processes.raise_together(error)
    assert proof is not None
    proofs = [Verified.of(fields) for fields in processes.gather(asdict(proof))]
    proof = join_proofs(proofs, plan.checkpoint.tensors)
    if not proof.ok:
        raise VerificationError(f"{output.path} was not written: {proof.text}")
    return proof


def _write_side_files(plan: MergePlan, folder: Path) -> None:
    """Writes the tokenizer, configs and other side files."""
    texts = plan.checkpoint.texts
    for name in plan.side_files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in texts:
            target.write_text(texts[name], encoding="utf-8")
        else:
            shutil.copyfile(plan.checkpoint.folder / name, target)
