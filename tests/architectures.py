"""Writes docs/architectures.md: the architectures of transformers on which jaxmix equals PEFT.

Run as ``python -m tests.architectures ROWS.json``. The rows are the verdicts of a script outside
the repository, which creates a tiny random model of each architecture, and adapters by PEFT. A row
is an object with these fields:

- ``name``: the architecture; ``variant``: the kind of adapter, one of `VARIANTS`;
- ``path``: "a" (compose in memory), "b" (a merge on disk), "c" (the forward of `jaxmix.models`);
- ``verdict``: "ok", "refused", "wrong", "crashed", or "can't" if PEFT fails; ``detail``: why;
- ``notes``: remarks: "untied", or "alone: …" if no second adapter follows the LoRA;
- ``beyond``: whether PEFT itself misreads the file.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "VARIANTS", "main", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
Row = Mapping[str, Any]
# The variants of the script, by their names on the page.
VARIANTS = {
    "all": "linear",
    "default": "default",
    "experts": "experts",
    "saved": "saved",
    "order": "order",
    "old": "disk names",
    "each": "each expert",
    "base": "base",
}
_COMPOSE, _MERGE, _OWN = "a", "b", "c"
_ALONE = "alone: "

_TEXT = """\
# Architectures

<!-- Written by `python -m tests.architectures`. -->

{summary}

For each architecture a script creates a tiny model with random weights, saves it with
`save_pretrained`, and lets PEFT create adapters with random factors. The reference is the output of
PEFT's unmerged model; a result is *ok* if it differs by at most 1e-4 of the largest number.

- *In memory*: `jaxmix.compose` on the model's `state_dict()`, which torch's model then loads.
- *On disk*: `jaxmix.merge_checkpoint` on the folder, which `from_pretrained` then opens without
  missing or unexpected tensors.

Adapters that were checked:

| name | adapter |
| --- | --- |
| linear | a LoRA with `target_modules="all-linear"`, then a LoHa or an OFT on the attention |
| default | the same, on the modules that PEFT chooses for this model type |
| experts | a LoRA with `target_parameters` on the parameters that hold all experts |
| saved | a LoRA with `modules_to_save`: the embedding and the head |
| order | that of *linear* with its `target_parameters` in the other order |
| disk names | that of *linear* under the names on disk, which transformers 4 had in memory too |
| each expert | a LoRA for each expert, as PEFT made them with transformers 4 |

What follows an @ is how the checkpoint differs from the model: `@bare` has no head, `@mlm` and
`@causal` have the head of a language model, `@gamma` and `@v4` have names of older versions.

| architecture | adapters | in memory | on disk | notes |
| --- | --- | --- | --- | --- |
{rows}

*Untied*: with `untie=True`, because the adapter saves an embedding or head that the checkpoint
stores once (see [merging](merging.md#tied-tensors)). *LoRA alone*: PEFT can't mix a second adapter,
or the model has no attention with linear layers. *PEFT misreads*: PEFT itself applies the file to
other modules or to none. The result is compared with what the file describes: the adapter before it
got these names, or experts merged by hand. It is not counted. *PEFT can't*: PEFT or transformers
fails.

## How this page is made

```sh
python zoo.py --json rows.json             # a script outside this repository; needs torch and PEFT
python -m tests.architectures rows.json    # writes this page
```

The docstring of `tests/architectures.py` describes the rows. [Names](names.md) explains what
differs between these architectures, and what to do for a new version of transformers.
"""


def main(file: str) -> None:
    """Writes the page.

    Args:
        file: The file with the rows.
    """
    rows = json.loads(Path(file).read_text(encoding="utf-8"))
    libraries = {
        name: version(name).partition("+")[0] for name in ("transformers", "peft", "torch", "jax")
    }
    day = datetime.fromtimestamp(Path(file).stat().st_mtime, UTC).date().isoformat()
    PAGE.write_text(page(rows, libraries, day), encoding="utf-8")
    print(PAGE)


def page(rows: Sequence[Row], libraries: Mapping[str, str], day: str) -> str:
    """Returns the page.

    Args:
        rows: The verdicts.
        libraries: The versions with which they were found.
        day: The date on which they were found.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    counted = [row for row in rows if row["verdict"] != "can't" and not row.get("beyond")]
    failed = {row["name"] for row in counted if row["verdict"] != "ok"}
    checked = {row["name"] for row in counted}
    both = [row for row in counted if row["path"] != _OWN]
    summary = (
        f"{len(checked) - len(failed)} of {len(checked)} architectures of transformers give PEFT's "
        f"results in all checks, {_share(both)} checks in total, on {day} with "
        f"{', '.join(f'{name} {number}' for name, number in libraries.items())}."
    )
    lines = [_line(name, [row for row in rows if row["name"] == name]) for name in names]
    return _TEXT.format(summary=_wrapped(summary), rows="\n".join(lines))


def _line(name: str, rows: Sequence[Row]) -> str:
    """Returns the line of one architecture."""
    checked = [row for row in rows if row["verdict"] != "can't"]
    variants = dict.fromkeys(_variant(row) for row in checked)
    counted = [row for row in checked if not row.get("beyond")]
    cells: list[str] = [f"`{name}`", ", ".join(variants) or "–"]
    for path in (_COMPOSE, _MERGE):
        path_rows = [row for row in counted if row["path"] == path]
        cells.append(
            "ok"
            if path_rows and all(r["verdict"] == "ok" for r in path_rows)
            else _share(path_rows)
        )
    return f"| {' | '.join([*cells, '; '.join(_notes(rows))])} |".replace("|  |", "| |")


def _variant(row: Row) -> str:
    """Returns the page's name for a row's kind of adapter."""
    name: str = row["variant"]
    return VARIANTS.get(name, name)


def _share(rows: Sequence[Row]) -> str:
    """Returns the number of passed checks, such as "4 of 5"."""
    return f"{sum(row['verdict'] == 'ok' for row in rows)} of {len(rows)}" if rows else "–"


def _notes(rows: Sequence[Row]) -> list[str]:
    """Returns the notes on an architecture: each remark with the adapters that it concerns."""
    remarks: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for remark in _remarks(row):
            variant = _variant(row)
            remarks.setdefault(remark, {})[variant] = None
    notes = [
        f"{remark}: {', '.join(variants)}{f' ({reason})' if reason else ''}"
        for (remark, reason), variants in remarks.items()
    ]
    own_rows = [row for row in rows if row["path"] == _OWN]
    if own_rows and all(row["verdict"] == "ok" for row in own_rows):
        notes.append("also as a model of `jaxmix.models`")
    return notes


def _remarks(row: Row) -> Iterator[tuple[str, str]]:
    """Yields the remarks on a verdict, each with its reason."""
    is_good = row["verdict"] in ("ok", "refused") if row.get("beyond") else row["verdict"] == "ok"
    if row.get("beyond"):
        yield f"PEFT misreads, {row['verdict']} here", ""
    if row["verdict"] == "can't":
        yield "PEFT can't", _reason(row["detail"])
    elif not is_good:
        yield row["verdict"], _reason(row["detail"])
    if "untied" in row["notes"]:
        yield "untied", ""
    if any(note.startswith(_ALONE) for note in row["notes"]):
        yield "LoRA alone", ""


def _reason(detail: str) -> str:
    """Returns the first sentence of an error, without the run's folder or characters of tables."""
    text = re.sub(r"/\S*/zoo-\w+/", "", " ".join(detail.split())).replace("|", "/")
    return re.split(r"(?<=\w)[.;] ", text)[0].rstrip(".")[:160]


def _wrapped(text: str) -> str:
    """Wraps a string into lines of at most 100 characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > 99:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1])
