"""An output while it grows: held for this process, kept if it is of use, removed if it is not."""

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
from jaxmix.converters.merging import together
from jaxmix.converters.merging.journal import journal
from jaxmix.converters.merging.locking import locked
from jaxmix.converters.merging.place import Place
from jaxmix.converters.merging.work import Work
from jaxmix.errors import CheckpointError, JaxmixError, option
from jaxmix.untrusted.files import output_path

__all__ = ["checker", "growing"]


@contextmanager
def growing(
    work: Work, base: Any, out: Any, *, resume: bool, force: bool
) -> Iterator[tuple[Place, dict[int, Mapping[str, Any]] | None]]:
    """Where the output grows, and the records of the shards that are whole there.

    None for these if a run before this one was killed when all was done. What was written stays if
    something can go on from it, else it is removed.
    """
    shards = work.checkpoint.shards
    place = Place(output_path(out).resolve(), work.checkpoint.is_file)
    try:
        with ExitStack() as stack:

            def begin() -> None:
                stack.enter_context(_begun(work, place, base, out, resume=resume, force=force))

            together.only_first(begin)
            is_done = place.is_placed
            with _kept_if_of_use(place, shards):
                yield place, None if is_done else place.whole(shards)
            if is_done:
                together.only_first(place.removed)
    except OSError as error:
        kept = _kept(place, shards)
        kept = kept or "What was written is removed again, and all else is as it was."
        raise CheckpointError(
            f"the output {place.out} could not be written: {error}. {kept} "
            f"{HINTS.get(error.errno or 0, '')}".rstrip()
        ) from error


@contextmanager
def _begun(
    work: Work, place: Place, base: Any, out: Any, *, resume: bool, force: bool
) -> Iterator[None]:
    """The place, for this process alone, and begun or to be gone on with."""
    shards = work.checkpoint.shards
    check = checker(work, place, base, out, force=force)
    check_apart(place.beside, [base], "the output grows in")
    if not os.path.lexists(place.beside):
        check(size=work.checkpoint.size)
    now = journal(work.checkpoint, work.mixed, work.table)
    with locked(place):
        place.mended()
        if not (place.is_placed and resume and place.merge == now):
            if place.is_placed:
                place.emptied()
            check()
            done = place.begun(now, shards, resume=resume, force=force)
            try:
                check(size=sum(shard.size for i, shard in enumerate(shards) if i not in done))
            except CheckpointError:
                if not done:
                    place.emptied()
                raise
        yield


def checker(work: Work, place: Place, base: Any, out: Any, *, force: bool) -> Callable[..., Path]:
    """What raises an error if the output must not take its place, given the ``size`` to be written.

    Args:
        work: the merge.
        place: the output.
        base: what is read from.
        out: the output as the caller named it.
        force: whether a checkpoint there may be replaced.

    Returns:
        `checked_file` or `checked_output`, with what they are to be asked.
    """
    if place.is_file:
        return partial(checked_file, out, [base], force=force)
    ours = {*work.files, *(shard.name for shard in work.checkpoint.shards)}
    return partial(
        checked_output,
        out,
        [base],
        force=force,
        replaces=lambda name: name in ours or is_checkpoint_file(name),
    )


@contextmanager
def _kept_if_of_use(place: Place, shards: tuple[Shard, ...]) -> Iterator[None]:
    """Removes what was written when something goes wrong from which nobody could go on."""
    try:
        yield
    except BaseException as error:
        is_refusal = isinstance(error, JaxmixError) and not isinstance(error, together.OthersFailed)
        kept = "" if is_refusal else _kept(place, shards)
        if not kept and together.is_first():
            place.removed()
        elif kept and not isinstance(error, OSError):
            error.add_note(kept)
        raise


def _kept(place: Place, shards: tuple[Shard, ...]) -> str:
    """What to say of the shards that are whole; nothing if there are none."""
    whole = len(place.whole(shards))
    if not whole:
        return ""
    return (
        f"{whole} of {len(shards)} shards are whole in {place.beside}: {option('resume')} goes "
        "on from there."
    )
