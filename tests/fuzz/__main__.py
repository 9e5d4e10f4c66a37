"""Runs mutated inputs from the command line, without end.

    python -m tests.fuzz --inputs 100000 --seed 1 --jobs 2 --seconds 600
    python -m tests.fuzz --kinds peft-lora,mix --inputs 2000
    python -m tests.fuzz --only peft-lora:17

The exit code is 1 if an input shows a fault. ``--keep`` adds the inputs with faults to seeds.json,
which the tests replay.
"""

import argparse
import sys
from pathlib import Path

from .kinds import KINDS
from .running import Tally, inputs, judged_here, run, table, work
from .seeds import add_seeds


def main() -> int:
    """Runs the fuzzer by the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Mutated inputs, judged."
    )
    parser.add_argument("--inputs", type=int, default=5000, help="how many (5000)")
    parser.add_argument("--seed", type=int, default=0, help="which of them (0)")
    parser.add_argument("--seconds", type=float, help="begin no new input after so long")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes (1)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--only", help="one input, as kind:number, shown in full")
    parser.add_argument("--table", type=Path, help="a file to write the table to")
    parser.add_argument("--keep", action="store_true", help="add faults to seeds.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown kinds: {', '.join(unknown)}; expected some of {', '.join(KINDS)}")
    if options.only:
        kind, _, number = options.only.partition(":")
        ((_, verdict),) = judged_here([(kind, int(number))])
        print(f"{verdict.name}\n{verdict.why}\nchanged: {'; '.join(verdict.changes) or 'nothing'}")
        return 0
    tally = run(
        inputs(options.inputs, options.seed, kinds),
        jobs=options.jobs,
        seconds=options.seconds,
        progress=_Progress(),
    )
    text = f"{table(tally)}\n"
    print(text)
    refused = sum(tally.readable.values())
    print(f"{tally.inputs:,} inputs in {tally.seconds:,.0f} s; {refused:,} were refused that the")
    print(f"oracle reads; {len(tally.faults):,} faults")
    if options.table:
        options.table.write_text(text)
    if options.keep:
        add_seeds(mutation for mutation, _ in tally.faults)
    return 1 if tally.faults else 0


class _Progress:
    """Prints each fault once, and the progress of the run."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, tally: Tally) -> None:
        for (kind, number), verdict in tally.faults[self.shown :]:
            print(f"{kind}:{number}: {verdict.name}\n  changed: {'; '.join(verdict.changes)}")
            print("  " + verdict.why[-1500:].replace("\n", "\n  "), flush=True)
            self.shown += 1
        summary = f"{tally.inputs:,} inputs, {len(tally.faults):,} faults, {tally.seconds:,.0f} s"
        print(summary, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
