"""A merge by several processes: distributes the shards and makes all processes fail together."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmix.converters.checkpoints.huggingface import Shard
from jaxmix.errors import CheckpointError

__all__ = [
    "OtherProcessFailed",
    "gather",
    "is_first",
    "own_shards",
    "raise_together",
    "run_on_first",
]


class OtherProcessFailed(CheckpointError):
    """Another process failed and reports the reason; this one did not."""


def is_first() -> bool:
    """Whether this process creates the folder and moves it into place."""
    return jax.process_index() == 0


def own_shards(shards: Mapping[int, Shard]) -> dict[int, Shard]:
    """Returns this process's shards: largest first, each to the process with the fewest bytes.

    Args:
        shards: The shards to write by number, the same in all processes.
    """
    count = jax.process_count()
    load, owners = [0] * count, {number: 0 for number in shards}
    for number in sorted(shards, key=lambda number: (-shards[number].size, number)):
        least = load.index(min(load))
        load[least] += shards[number].size
        owners[number] = least
    return {n: shard for n, shard in shards.items() if owners[n] == jax.process_index()}


def raise_together(error: BaseException | None = None) -> None:
    """Waits for all processes, and raises in all of them if one has failed.

    Args:
        error: The error in this process, if any.

    Raises:
        CheckpointError: If another process failed.
    """
    failed: Sequence[int] = ()
    if jax.process_count() > 1:
        # A barrier that carries a flag: a process that fails must not leave the others waiting.
        from jax.experimental import multihost_utils

        flags = multihost_utils.process_allgather(np.array([error is not None]))
        failed = np.flatnonzero(np.asarray(flags)).tolist()
    if error is not None:
        raise error
    if failed:
        raise OtherProcessFailed(
            f"the merge failed in process {', '.join(map(str, failed))} of {jax.process_count()}. "
            "See the error message of that process."
        )


def run_on_first(action: Callable[[], object]) -> None:
    """Runs an action in the first process while the others wait.

    Args:
        action: The action.

    Raises:
        CheckpointError: In the other processes, if the action fails.
    """
    error: BaseException | None = None
    if is_first():
        try:
            action()
        except BaseException as caught:
            error = caught
    raise_together(error)


def gather(data: Any) -> list[Any]:
    """Returns the data of every process, in order of the processes.

    Args:
        data: This process's data, as JSON can hold it.
    """
    if jax.process_count() == 1:
        return [data]
    from jax.experimental import multihost_utils

    encoded = np.frombuffer(json.dumps(data).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([encoded.size]))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: encoded.size] = encoded
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    # The project's own data, encoded above: the reader for foreign JSON is not needed.
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
