"""Writes docs/strengths.png and the table of docs/training.md, for strengths learned on the demo.

``python -m tests.training.strengths_page``, or ``make pages``.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxmix
from jaxmix.training import draw_strengths, strengths_by_site

from ..house.sources import ROOT
from .demo_fit import DOMAINS, trial

PAGE, PICTURE = ROOT / "docs" / "training.md", ROOT / "docs" / "strengths.png"
START, END = "<!-- measured -->\n", "<!-- until here -->\n"
STEPS, LENGTH = 80, 128
PER: tuple[Any, ...] = ("mix", "adapter", "site")


def main() -> None:
    """Learns the strengths for each choice of `per`, and writes the table and the picture."""
    demo = trial()
    rows = [_row("the base", demo.losses(jaxmix.mix()), "")]
    rows += [
        _row(f"{part.name} alone", demo.losses(jaxmix.mix(part)), "1") for part in demo.mix.parts
    ]
    rows.append(_row("all strengths 1", demo.losses(demo.mix), "1, 1"))
    for per in PER:
        start = time.monotonic()
        fitted = demo.fitted(per, STEPS, length=LENGTH).mix
        print(f"per {per}: {time.monotonic() - start:.0f} s")
        rows.append(_row(f'`per="{per}"`', demo.losses(fitted), _strengths(fitted)))
        if per == "site":
            _draw(fitted)
    head = ["| strengths | " + " | ".join(DOMAINS) + " | lora, loha |", "| --- | --- | --- | --- |"]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(
        before + START + "\n".join([*head, *rows]) + "\n" + END + rest.partition(END)[2],
        encoding="utf-8",
    )


def _row(name: str, losses: Mapping[str, float], strengths: str) -> str:
    cells = [name, *(f"{losses[domain]:.3f}" for domain in DOMAINS), strengths]
    return "| " + " | ".join(cells) + " |"


def _strengths(mixed: jaxmix.Mix) -> str:
    """Returns the strengths, or the range of each adapter's strengths."""
    site_strengths = [list(values.values()) for values in strengths_by_site(mixed).values()]
    return ", ".join(
        f"{min(values):.2f}" if np.ptp(values) < 1e-6 else f"{min(values):.2f} to {max(values):.2f}"
        for values in site_strengths
    )


def _draw(mixed: jaxmix.Mix) -> None:
    draw_strengths(mixed, PICTURE)
    size = os.path.getsize(PICTURE)
    print(f"{PICTURE.name}: {size} bytes")
    assert size <= 120_000


if __name__ == "__main__":
    main()
