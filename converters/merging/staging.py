"""Stages an output: locks its folder, keeps it for resuming, or deletes it after an error."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jaxmix.converters.checkpoints.huggingface import Shard
from jaxmix.converters.files.output import (
    HINTS,
    check_apart,
    checked_file,
    checked_output,
    is_checkpoint_file,
)
from jaxmix.converters.merging import processes
from jaxmix.converters.merging.journal import describe_merge
from jaxmix.converters.merging.locking import locked
from jaxmix.converters.merging.merge_plan import MergePlan
from jaxmix.converters.merging.staged_output import StagedOutput
from jaxmix.errors import CheckpointError, JaxmixError, option
from jaxmix.untrusted.files import output_path

__all__ = ["output_check", "staged_output"]


@contextmanager
def staged_output(
    plan: MergePlan, base: Any, out: Any, *, resume: bool, force: bool
) -> Iterator[tuple[StagedOutput, dict[int, Mapping[str, Any]] | None]]:
    """Yields the staged output and the records of its complete shards.

    The records are None if an earlier run was killed after the output was moved into place. On an
    error, what was written is kept if it can be resumed from, and deleted otherwise.
    """
    shards = plan.checkpoint.shards
    output = StagedOutput(output_path(out).resolve(), plan.checkpoint.is_file)
    try:
        with ExitStack() as stack:

            def begin() -> None:
                stack.enter_context(
                    _locked_and_begun(plan, output, base, out, resume=resume, force=force)
                )

            processes.run_on_first(begin)
            is_done = output.is_published
            with _delete_if_useless(output, shards):
                yield output, None if is_done else output.complete_shards(shards)
            if is_done:
                processes.run_on_first(output.delete)
    except OSError as error:
        note = _resuming_note(output, shards)
        note = note or "What was written is deleted, and nothing else has changed."
        raise CheckpointError(
            f"the output {output.path} could not be written: {error}. {note} "
            f"{HINTS.get(error.errno or 0, '')}".rstrip()
        ) from error


@contextmanager
def _locked_and_begun(
    plan: MergePlan, output: StagedOutput, base: Any, out: Any, *, resume: bool, force: bool
) -> Iterator[None]:
    """Locks the output for this process, and begins or resumes it."""
    shards = plan.checkpoint.shards
    check = output_check(plan, output, base, out, force=force)
    check_apart(output.folder, [base], "the folder for the unfinished output")
    if not os.path.lexists(output.folder):
        check(size=plan.checkpoint.size)
    journal = describe_merge(plan.checkpoint, plan.mixed, plan.layout)
    with locked(output):
        output.recover()
        if not (output.is_published and resume and output.journal == journal):
            if output.is_published:
                output.clear()
            check()
            done = output.begin(journal, shards, resume=resume, force=force)
            try:
                check(size=sum(shard.size for i, shard in enumerate(shards) if i not in done))
            except CheckpointError:
                if not done:
                    output.clear()
                raise
        yield


def output_check(
    plan: MergePlan, output: StagedOutput, base: Any, out: Any, *, force: bool
) -> Callable[..., Path]:
    """Returns a function of the ``size`` to write, which raises if the output must not be written.

    Args:
        plan: The merge.
        output: The output.
        base: The base, which must not be overwritten.
        out: The output as the caller named it.
        force: Whether an existing checkpoint may be replaced.

    Returns:
        `checked_file` or `checked_output` with these arguments.
    """
    if output.is_file:
        return partial(checked_file, out, [base], force=force)
    ours = {*plan.side_files, *(shard.name for shard in plan.checkpoint.shards)}

    def is_replaceable(name: str) -> bool:
        component, _, inner = name.partition("/")
        is_of_component = component in plan.checkpoint.components and is_checkpoint_file(inner)
        return name in ours or is_checkpoint_file(name) or is_of_component

    return partial(checked_output, out, [base], force=force, replaces=is_replaceable)


@contextmanager
def _delete_if_useless(output: StagedOutput, shards: tuple[Shard, ...]) -> Iterator[None]:
    """Deletes what was written after an error, unless a later run can resume from it."""
    try:
        yield
    except BaseException as error:
        is_other = isinstance(error, processes.OtherProcessFailed)
        is_refusal = isinstance(error, JaxmixError) and not is_other
        note = "" if is_refusal else _resuming_note(output, shards)
        if not note and processes.is_first():
            output.delete()
        elif note and not isinstance(error, OSError):
            error.add_note(note)
        raise


def _resuming_note(output: StagedOutput, shards: tuple[Shard, ...]) -> str:
    """Describes the shards that can be resumed from; empty if there are none."""
    complete = len(output.complete_shards(shards))
    if not complete:
        return ""
    return (
        f"{complete} of {len(shards)} shards are complete in {output.folder}. Use "
        f"{option('resume')} to continue from there."
    )
