"""Kills merges with SIGKILL at any of their steps.

    python -m tests.converters.merging.killing [--kills 95] [--random 30] [--changing 90] [--two 90]

kills merges of a small checkpoint: one at each of the merge's system calls for a file of the
output; at random moments; while the base changes; and with two merges to one output at the same
time. After each kill, the output must be the old one or a new one, bit for bit. Merging again must
then give the bytes of an undisturbed run, and leave nothing next to them.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jaxmix
from jaxmix import JaxmixError
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError

from ..bases import contents
from .killing_case import CHANGES, Case

__all__ = ["CHANGES", "Case", "kill", "kill_changing", "kill_two"]

# A server that has imported everything forks each merge, because importing is the slow part.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__, "jaxmix.models.checkpoint"])
_KINDS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
_REFUSED = 3


def _merge(
    output: Any, base: Path, adapter: Path, out: Path, number: int, kind: str, at: int, how: str
) -> None:
    """Merges in a child, changes the base at one step, and kills itself at another."""
    lora, count = jaxmix.load(adapter), 0

    def watch(event: str, args: Any) -> None:
        nonlocal count
        is_ours = any(
            isinstance(arg, str | bytes | os.PathLike) and os.fsdecode(arg).startswith(str(out))
            for arg in args
        )
        if (event == "ctypes.dlsym" and "renameat2" in args) or (event in _KINDS and is_ours):
            count += kind in ("any", event)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            if count == at:
                count += 1  # the change itself does not count as a step
                CHANGES[how](base / "model-00002-of-00003.safetensors")

    if number >= 0 or at >= 0:
        sys.addaudithook(watch)
    output.send("now")
    try:
        merge_checkpoint(base, lora, out, force=True)
    except JaxmixError as error:
        output.send(str(error))
        os._exit(_REFUSED)
    os._exit(0)


class _Child:
    """A merge in its own process."""

    def __init__(
        self,
        case: Case,
        adapter: Path,
        *,
        number: int = -1,
        kind: str = "any",
        at: int = -1,
        how: str = "",
    ):
        self.said, theirs = _PROCESSES.Pipe(duplex=False)
        args = (theirs, case.base, adapter, case.out, number, kind, at, how)
        self.process = _PROCESSES.Process(target=_merge, args=args)
        self.process.start()
        theirs.close()
        if self.said.recv() != "now":
            raise RuntimeError("the merge did not begin")

    def ended(self) -> str:
        """How the merge ended: killed, done, or refused with the reason."""
        self.process.join()
        match self.process.exitcode:
            case 0:
                return "ended by itself"
            case code if code == _REFUSED:
                return f"refused: {self.said.recv()}"
            case code if code == -signal.SIGKILL:
                return "killed"
            case code:
                raise RuntimeError(f"a merge ended with {code}")


def kill(
    case: Case,
    number: int,
    kind: str = "any",
    *,
    is_there: bool = True,
    delay: float | None = None,
) -> str:
    """Kills one merge, checks what is left, and resumes it.

    Args:
        case: The merge.
        number: The step at which it is killed; unused with a delay.
        kind: The calls that count as steps, by their names in Python's audit events.
        is_there: Whether an old output exists.
        delay: The number of seconds after which it is killed instead.

    Returns:
        The output that was left, and whether there were shards.
    """
    case.begin(is_there=is_there)
    child = _Child(case, case.adapter, number=-1 if delay is not None else number, kind=kind)
    if delay is not None:
        time.sleep(delay)
        child.process.kill()
    ended = child.ended()
    left = case.left(is_there=is_there, outputs={"new": case.new})
    shards = len(list(case.folder.glob("out.partial/whole/*.json")))
    resumed = case.end(case.new, resume=True)
    return f"{ended}: {left} output, {shards} shards whole, {resumed} resumed"


def kill_changing(case: Case, number: int, at: int, how: str, *, is_there: bool = True) -> str:
    """Kills a merge while its base changes, and merges the new base.

    Args:
        case: The merge.
        number: The step at which it is killed; if it has fewer steps, it ends.
        at: The step at which the base changes.
        how: One of `CHANGES`.
        is_there: Whether an old output exists.

    Returns:
        How the merge ended, and the output that was left.
    """
    case.begin(is_there=is_there)
    before = contents(case.base)
    child = _Child(case, case.adapter, number=number, at=at, how=how)
    ended = child.ended()
    is_changed = contents(case.base) != before
    outputs = {"new": case.new, "the changed base's": case.changed[how]}
    left = case.left(is_there=is_there, outputs=outputs)
    if ended.startswith("refused"):
        if (
            not is_changed
            or "the base changed while it was being read" not in ended
            or left != "old"
        ):
            raise RuntimeError(f"{ended}; {left} output")
        if leftovers := [path.name for path in case.folder.glob("out.*")]:
            raise RuntimeError(f"a refusal left {leftovers}")
    expected = case.changed[how] if is_changed else case.new
    try:
        case.end(expected, resume=True)
        again = "resumed"
    except CheckpointError as error:  # its shards belong to the old base
        if not is_changed or "belongs to another merge" not in str(error):
            raise
        case.end(expected, resume=False)
        again = "begun anew"
    changed = "base changed" if is_changed else "base not changed yet"
    return f"{ended.partition(':')[0]}, {changed}: {left} output, {again}"


def kill_two(case: Case, delays: tuple[float | None, float | None], *, is_there: bool) -> str:
    """Runs two merges to one output at the same time, kills none, one or both, and merges again.

    Args:
        case: The merge; the second one has another adapter.
        delays: The number of seconds after which each is killed; None if it is not.
        is_there: Whether an old output exists.

    Returns:
        How both ended, and the output that was left.
    """
    case.begin(is_there=is_there)
    children = [_Child(case, adapter) for adapter in (case.adapter, case.other_adapter)]
    start = time.monotonic()
    for delay, child in sorted(zip(delays, children, strict=True), key=lambda p: p[0] or 0.0):
        if delay is not None:
            time.sleep(max(0.0, start + delay - time.monotonic()))
            child.process.kill()
    ended = [child.ended() for child in children]
    for ending in ended:
        if ending.startswith("refused") and "is writing the output" not in ending:
            raise RuntimeError(ending)
    outputs = {"the first's": case.new, "the second's": case.other}
    left = case.left(is_there=is_there, outputs=outputs)
    if left == "old" and "ended by itself" in ended:
        raise RuntimeError("a merge ended, and the output is the old one")
    case.end(case.new, resume=False)
    short = sorted(ending.partition(":")[0] for ending in ended)
    return f"{' and '.join(short)}: {left} output"


def main() -> None:
    """Runs the long loop, which CI does not run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=95)
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--changing", type=int, default=90)
    parser.add_argument("--two", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, seen = random.Random(options.seed), Counter[str]()

    def count(event: str, label: str) -> None:
        seen[f"{event}, {label}"] += 1
        print(f"{seen.total()}: {event}, {label}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder))
        for number in range(1, options.kills + 1):
            count("at a step", kill(case, number, is_there=number % 4 != 0))
        for _ in range(options.random):
            count("at random", kill(case, 0, delay=draw.uniform(0, 1.5)))
        for i in range(options.changing):
            at, how = draw.randrange(1, 90), list(CHANGES)[i % len(CHANGES)]
            number = draw.choice([at + draw.randrange(1, 30), draw.randrange(1, 100), 1000])
            outcome = kill_changing(case, number, at, how, is_there=i % 4 != 0)
            count("a changing base", outcome)
        for i in range(options.two):
            delays = tuple(draw.choice([None, draw.uniform(0, 1.5)]) for _ in range(2))
            count("two at once", kill_two(case, (delays[0], delays[1]), is_there=i % 4 != 0))
    for outcome, number in sorted(seen.items()):
        print(f"{number:4} {outcome}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
