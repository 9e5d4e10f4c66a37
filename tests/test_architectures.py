"""The script that writes docs/architectures.md."""

import re
from typing import Any

from .architectures import PAGE, page


def row(variant: str, path: str, verdict: str = "ok", **more: Any) -> dict[str, Any]:
    """Returns a verdict as the script of the rows writes it."""
    detail = "off by 2e-06" if verdict == "ok" else "LayoutError: no leaf in /a/zoo-x1/b; d. More"
    fields = {"name": "tiny", "variant": variant, "path": path, "verdict": verdict}
    return fields | {"detail": detail, "notes": [], "mixed": True, "beyond": False} | more


def line(*rows: dict[str, Any]) -> str:
    """Returns the line of the only architecture."""
    text = page(rows, {"peft": "1.2"}, "2026-01-02")
    return next(line for line in text.splitlines() if line.startswith("| `tiny`"))


def test_architecture_without_problems() -> None:
    """Its line names the adapters that were checked, and its notes are short."""
    rows = [row("all", "a"), row("all", "b"), row("saved", "a"), row("all", "c")]
    rows.append(row("saved", "b", notes=["untied", "never called: x"]))
    note = "also as a model of `jaxmix.models`"
    assert line(*rows) == f"| `tiny` | linear, saved | ok | ok | untied: saved; {note} |"


def test_failures_state_their_reason_without_folders() -> None:
    """A refusal is counted and stated once, without the folder of the run."""
    rows = [row(variant, "b", "refused") for variant in ("order", "each")]
    text = line(row("all", "a"), row("all", "b"), *rows)
    notes = "refused: order, each expert (LayoutError: no leaf in b)"
    assert text == f"| `tiny` | linear, order, each expert | ok | 1 of 3 | {notes} |"


def test_files_that_peft_misreads_do_not_count() -> None:
    """The notes name such files, and what PEFT can't create."""
    rows = [row("old", "a", "refused", beyond=True), row("all", "a"), row("all", "b")]
    rows.append(row("experts", "-", "can't", detail="PEFT: it | fails"))
    notes = "PEFT misreads, refused here: disk names; PEFT can't: experts (PEFT: it / fails)"
    assert line(*rows) == f"| `tiny` | disk names, linear | ok | ok | {notes} |"
    text = page(rows, {"peft": "1.2"}, "2026-01-02")
    summary = text.split("\n\n")[2].replace("\n", " ")
    assert summary.startswith("1 of 1 architectures") and "2 of 2 checks in total" in summary
    assert summary.endswith("on 2026-01-02 with peft 1.2.")


def test_committed_page_has_the_scripts_form() -> None:
    """The committed page is the script's, except for its rows and summary."""
    text = PAGE.read_text(encoding="utf-8")
    empty = page([], {}, "")
    start, end = empty.index("\n\nFor each"), empty.index("| --- | --- | --- | --- | --- |\n")
    assert empty[start:end] in text and text.endswith(empty[empty.index("\n\n*Untied*") :])
    assert len(re.findall(r"^\| `", text, re.MULTILINE)) >= 90 and "/zoo-" not in text
