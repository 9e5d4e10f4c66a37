"""Merges that are killed, by the signal that nobody can catch, at any of their steps.

    python -m tests.converters.merging.killing [--kills 95] [--random 30] [--seed 0]

kills that many merges of a small checkpoint: one at each of the merge's calls to the system for a
file of the output, one after the other, and then at random moments. After each the output must be
the old one or the new one, and `resume` must end with the very bytes of an unbroken run.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from jaxmix.converters.merging import merge_checkpoint

from ..bases import contents, save_adapters, save_base

__all__ = ["Case", "kill"]

# The program: it counts what Python tells of its calls to the system, and kills itself at one.
PROGRAM = """
import os, signal, sys
base, adapter, out, number, kind = sys.argv[1:]
import jaxmix
from jaxmix.converters.merging import merge_checkpoint

lora, count, names = jaxmix.load(adapter), 0, []
KINDS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}

def watch(event, args):
    global count
    if event == "ctypes.dlsym" and "renameat2" in args or (
        event in KINDS and any(isinstance(arg, (str, bytes, os.PathLike)) and
                               os.fsdecode(arg).startswith(out) for arg in args)
    ):
        names.append(event)
        count += kind in ("any", event)
        if count == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

if int(number) >= 0:
    sys.addaudithook(watch)
print("now", flush=True)
merge_checkpoint(base, lora, out, force=True)
print(count, *names, flush=True)
"""


class Case:
    """A base in three shards, an adapter, the old output and the new one.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "out"
        self.base = save_base(folder / "base", shards=3)
        self.adapter = save_adapters(folder / "adapters")["lora"]
        import jaxmix

        self.lora = jaxmix.load(self.adapter)
        merge_checkpoint(self.base, self.lora, folder / "new")
        merge_checkpoint(self.base, [], folder / "old")
        self.new, self.old = contents(folder / "new"), contents(folder / "old")

    def begin(self, *, is_there: bool) -> None:
        """The old output, or none; nothing else."""
        for path in self.folder.glob("out*"):
            shutil.rmtree(path)
        if is_there:
            shutil.copytree(self.folder / "old", self.out)


def kill(
    case: Case,
    number: int,
    kind: str = "any",
    *,
    is_there: bool = True,
    delay: float | None = None,
) -> str:
    """Kills one merge, looks at what is left, and goes on.

    Args:
        case: the merge.
        number: at which step; with a delay it does not matter.
        kind: which calls count, by their names in Python's audit events.
        is_there: whether an old output is.
        delay: or how many seconds after its begin.

    Returns:
        What was left: which output, and whether shards were.
    """
    case.begin(is_there=is_there)
    number = -1 if delay is not None else number
    words = [case.base, case.adapter, case.out, number, kind]
    program = [sys.executable, "-c", PROGRAM, *map(str, words)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "now\n"
        if delay is not None:
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        child.communicate()
    if child.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the merge ended with {child.returncode}")
    found = contents(case.out) if case.out.exists() else None
    left = (
        "new" if found == case.new else "old" if found == (case.old if is_there else None) else ""
    )
    if not left:
        raise RuntimeError(
            f"step {number} {kind}: the output is neither the old one nor the new one"
        )
    shards = len(list(case.folder.glob("out.partial/whole/*.json")))
    merged = merge_checkpoint(case.base, case.lora, case.out, force=True, resume=True)
    if contents(case.out) != case.new or list(case.folder.glob("out.*")):
        raise RuntimeError(f"step {number}: what `resume` made is not the new output, or more")
    ended = "killed" if child.returncode else "ended by itself"
    return f"{ended}: {left} output, {shards} shards whole, {merged.resumed} gone on from"


def main() -> None:
    """The long loop, which CI does not run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=95)
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, seen = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder))
        for number in range(1, options.kills + 1):
            seen[kill(case, number, is_there=number % 4 != 0)] += 1
        for _ in range(options.random):
            seen[kill(case, 0, delay=draw.uniform(0, 1.5))] += 1
    for told, count in sorted(seen.items()):
        print(f"{count:4} {told}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
