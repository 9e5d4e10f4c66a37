"""Several processes at one merge: who writes which shard, and how all learn that one has failed."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmix.converters.checkpoints.huggingface import Shard
from jaxmix.errors import CheckpointError

__all__ = ["OthersFailed", "agreed", "gathered", "is_first", "mine", "only_first"]


class OthersFailed(CheckpointError):
    """Something went wrong in another process, which says what; here all is well."""


def is_first() -> bool:
    """Whether this process makes the folder, and brings it to its place."""
    return jax.process_index() == 0


def mine(shards: Mapping[int, Shard]) -> dict[int, Shard]:
    """The shards for this process: the largest first, each to who has the fewest bytes.

    Args:
        shards: those to write, by number; the same in all processes.
    """
    count = jax.process_count()
    load, dealt = [0] * count, {number: 0 for number in shards}
    for number in sorted(shards, key=lambda number: (-shards[number].size, number)):
        least = load.index(min(load))
        load[least] += shards[number].size
        dealt[number] = least
    return {n: shard for n, shard in shards.items() if dealt[n] == jax.process_index()}


def agreed(error: BaseException | None = None) -> None:
    """Waits for all processes, and fails in all of them if one has.

    Args:
        error: what went wrong in this one.

    Raises:
        CheckpointError: if something went wrong in another process.
    """
    failed: Sequence[int] = ()
    if jax.process_count() > 1:
        # A barrier that carries a word: a process that fails must not leave the others waiting.
        from jax.experimental import multihost_utils

        told = multihost_utils.process_allgather(np.array([error is not None]))
        failed = np.flatnonzero(np.asarray(told)).tolist()
    if error is not None:
        raise error
    if failed:
        raise OthersFailed(
            f"the merge failed in process {', '.join(map(str, failed))} of {jax.process_count()}; "
            "what it says there is the reason."
        )


def only_first(work: Callable[[], object]) -> None:
    """Lets the first process do something, for which all others wait.

    Args:
        work: what it does.

    Raises:
        CheckpointError: in the others, if it fails.
    """
    error: BaseException | None = None
    if is_first():
        try:
            work()
        except BaseException as caught:
            error = caught
    agreed(error)


def gathered(told: Any) -> list[Any]:
    """What each process has to tell, in order: anything that JSON has.

    Args:
        told: this one's.
    """
    if jax.process_count() == 1:
        return [told]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(told).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([data.size]))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
