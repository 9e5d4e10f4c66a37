"""Writes docs/peft_divergence.md: where PEFT's merged model differs from its forward, measured.

python -m tests.parity.divergence_table
"""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ..goldens.nets import MLP
from . import probes, probes_types
from .harness import TorchNet, build, difference, exact, forward, inputs, mixed_model
from .ours import jaxmix_model
from .stacks import ADDITIVE_AND_OFT, KINDS, folders_of, save_all, stacks

__all__ = ["main"]

X = inputs(MLP)
PAGE = Path(__file__).parents[2] / "docs" / "peft_divergence.md"
NAMES = dict(zip(KINDS, ("LoRA", "LoHa", "LoKr", "AdaLoRA", "OFT", "SHiRA", "DoRA"), strict=True))
# A larger difference means that a merged model is wrong; rounding stays below 1e-12.
WRONG = 1e-9


@dataclass(frozen=True)
class Row:
    """The largest relative differences from PEFT's unmerged forward, for one stack."""

    merge_and_unload: float
    safe_merge: float
    merge_adapter: float
    unmerged: float
    bits_restored: bool
    jaxmix: float


def _measure(model: TorchNet, folders: list[Path]) -> Row | None:
    """Measures one stack with every way of merging; returns None if PEFT refuses to load it."""
    try:
        mixed = mixed_model(model, folders)
    except ValueError:
        return None
    truth = forward(mixed, X)
    with exact():
        merged = copy.deepcopy(mixed).merge_and_unload()
        safe = copy.deepcopy(mixed).merge_and_unload(safe_merge=True)
        before = {k: v.clone() for k, v in mixed.state_dict().items()}
        mixed.merge_adapter()
    in_place = forward(mixed, X)
    with exact():
        mixed.unmerge_adapter()
    after = mixed.state_dict()
    return Row(
        merge_and_unload=difference(forward(merged, X), truth),
        safe_merge=difference(forward(safe, X), truth),
        merge_adapter=difference(in_place, truth),
        unmerged=difference(forward(mixed, X), truth),
        bits_restored=all(torch.equal(before[k], after[k]) for k in before),
        jaxmix=difference(forward(jaxmix_model(model, folders), X), truth),
    )


def _pairs(rows: dict[tuple[str, ...], Row | None]) -> list[str]:
    header = "| first, then | " + " | ".join(NAMES[kind] for kind in KINDS) + " |"
    lines = [header, "| --- " * (len(KINDS) + 1) + "|"]
    for inner in KINDS:
        cells = []
        for outer in KINDS:
            row = rows[inner, outer]
            if row is None:
                cells.append("raises")
            else:
                divergent = row.merge_and_unload > WRONG
                cells.append(f"**{row.merge_and_unload:.2f}**" if divergent else "0")
        lines.append(f"| {NAMES[inner]} | " + " | ".join(cells) + " |")
    return lines


def _counts(title: str, rows: list[Row | None]) -> str:
    measured = [row for row in rows if row is not None]
    divergent = [row for row in measured if row.merge_and_unload > WRONG]
    safe = sum(row.safe_merge > WRONG for row in measured)
    in_place = sum(row.merge_adapter > WRONG for row in measured)
    not_restored = sum(row.unmerged > WRONG for row in measured)
    exactly_restored = sum(row.bits_restored for row in measured)
    worst = max((row.merge_and_unload for row in divergent), default=0.0)
    jaxmix_wrong = sum(row.jaxmix > WRONG for row in measured)
    worst_jaxmix = max(row.jaxmix for row in measured)
    return (
        f"| {title} | {len(measured)} | {len(divergent)} | {worst:.2f} | {safe} | {in_place} "
        f"| {not_restored} | {exactly_restored} | {jaxmix_wrong} | {worst_jaxmix:.0e} |"
    )


def _page_text(rows: dict[tuple[str, ...], Row | None]) -> str:
    def rows_of(kinds: tuple[str, ...], length: int) -> list[Row | None]:
        return [rows[stack] for stack in stacks(kinds, length)]

    four_kinds = ("lora", "loha", "lokr", "oft")
    return "\n".join(
        [
            "# Where PEFT's merged model is not PEFT's forward",
            "",
            f"Written by `python -m tests.parity.divergence_table` with peft {version('peft')} and "
            f"torch {version('torch')}, float64, a toy MLP of three linear layers; do not edit.",
            "",
            "Adapters are loaded from left to right. A number is the largest difference between "
            "PEFT's `merge_and_unload` and the unmerged forward of the same `PeftMixedModel`, over "
            "the largest output; 0 is rounding (below 1e-12). jaxmix composes weights that equal "
            "the *forward*, for every order.",
            "",
            "## Pairs: `merge_and_unload` against the forward",
            "",
            *_pairs(rows),
            "",
            "## How many stacks go wrong",
            "",
            "`safe_merge` is `merge_and_unload(safe_merge=True)`, in place is `merge_adapter()`, "
            "and after it `unmerge_adapter()` should give the forward, and the bits, back (a "
            "rotation is inverted in float32: stacks with OFT miss by 1e-8 at least).",
            "",
            "| stacks | PEFT loads | merged wrong | by up to | safe_merge wrong | in place wrong "
            "| wrong after unmerge | bits restored | jaxmix wrong | jaxmix by up to |",
            "| --- " * 10 + "|",
            _counts("pairs of seven kinds", rows_of(KINDS, 2)),
            _counts("pairs of LoRA, LoHa, LoKr, AdaLoRA, OFT", rows_of(ADDITIVE_AND_OFT, 2)),
            _counts("triples of seven kinds", rows_of(KINDS, 3)),
            _counts("triples of LoRA, LoHa, LoKr, AdaLoRA, OFT", rows_of(ADDITIVE_AND_OFT, 3)),
            _counts("quadruples of LoRA, LoHa, LoKr, OFT", rows_of(four_kinds, 4)),
            _counts("quadruples of LoRA, LoHa, LoKr, AdaLoRA, OFT", rows_of(ADDITIVE_AND_OFT, 4)),
            "",
            "## Other differences, and what jaxmix does",
            "",
            "Each line was run when this page was written; *found* is what PEFT did.",
            "",
            "| case | found in PEFT | jaxmix |",
            "| --- | --- | --- |",
            *(
                f"| {case} | {measured} | {worst_jaxmix} |"
                for case, measured, worst_jaxmix in _probe_results()
            ),
            "",
        ]
    )


def _probe_results() -> list[tuple[str, str, str]]:
    results = []
    for case, probe, worst_jaxmix in (*probes.PROBES, *probes_types.PROBES):
        with tempfile.TemporaryDirectory() as folder:
            results.append((case, _outcome(probe, Path(folder)), worst_jaxmix))
    return results


def _outcome(probe: Callable[[Path], str], folder: Path) -> str:
    """Returns a probe's result, or the error that it raised."""
    try:
        with exact():
            return probe(folder)
    except Exception as raised:
        message = " ".join(str(raised).split()).replace("|", "\\|")
        return f"raises {type(raised).__name__}: {message[:90]}"


def main() -> None:
    """Measures everything and writes the page."""
    start, model = time.monotonic(), build(MLP)
    selected = [stack for length in (2, 3) for stack in stacks(KINDS, length)]
    selected += stacks(ADDITIVE_AND_OFT, 4)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save_all(model, root)
        rows = {s: _measure(model, [root / folder for folder in folders_of(s)]) for s in selected}
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(_page_text(rows), encoding="utf-8")
    worst = np.max([row.jaxmix for row in rows.values() if row])
    print(f"{PAGE.name}: {len(rows)} stacks in {time.monotonic() - start:.0f} s; {worst:.1e}")


if __name__ == "__main__":
    main()
