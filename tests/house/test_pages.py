"""The code of README.md and of every page in docs/ runs from top to bottom in a fresh folder."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxmix

from .pages import MARK, blocks_of, pages, run_page
from .sources import ROOT


def page_id(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def check_scale_page(names: dict[str, Any]) -> None:
    """Checks the results of docs/scale.md, which runs on eight devices."""
    logits, answers, tokens = names["logits"], names["answers"], names["tokens"]
    assert len(logits.devices()) == 8 and logits.shape == answers.shape == (8, 32, 256)
    assert bool(jnp.isfinite(logits).all()) and float(names["before"]) > 0
    merged = jaxmix.models.from_torch(names["config"], names["composed"])
    gap = jnp.abs(jax.jit(lambda model: model(tokens))(merged) - logits).max()
    assert float(gap) < 1e-3, gap


# Results that are checked after a page has run.
CHECKS = {"docs/scale.md": check_scale_page}
# The pages that take the longest. Other tests nearly always fail with these.
THOROUGH = {
    "docs/bank.md",
    "docs/combining.md",
    "docs/from_other_tools.md",
    "docs/from_peft.md",
    "docs/index.md",
    "docs/scale.md",
    "docs/start/peft.md",
    "docs/start/serving.md",
    "docs/start/training.md",
    "docs/training.md",
    "docs/unmerged.md",
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.thorough] * (page_id(page) in THOROUGH))
        for page in pages()
    ],
    ids=page_id,
)
def test_code_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order, in one namespace; marked blocks compile."""
    monkeypatch.chdir(tmp_path)
    names = run_page(page)
    if page_id(page) in CHECKS:
        CHECKS[page_id(page)](names)


def test_few_blocks_are_not_run() -> None:
    """Most blocks run, and each other one gives a reason."""
    blocks = [block for page in pages() for block in blocks_of(page)]
    marked = [block for block in blocks if block.reason is not None]
    assert len(marked) < len(blocks) / 4
    assert not [block.place for block in marked if not block.reason]


def test_every_step_of_the_scale_page_is_there() -> None:
    """The page covers loading onto a mesh, compose, running, Bank, training and saving."""
    blocks = [b for b in blocks_of(ROOT / "docs" / "scale.md") if b.reason is None]
    assert len(blocks) == 6


PAGE = ROOT / "docs" / "a.md"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\n1 +\n```\n", "invalid syntax"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2, 'x'\n```\n", "x"),
        (f"```python\n{MARK}it needs the network.\n1 +\n```\n", "invalid syntax"),
        ("```py\n1\n```\n", "expected python or sh, found 'py'"),
        ("```sh\njaxmix inspect nowhere/at/all\n```\n", "a.md:2: jaxmix inspect nowhere/at/all"),
        ("- item\n\n  ```sh\n  jaxmix inspect nowhere/at/all\n  ```\n", "a.md:4: jaxmix inspect"),
        ("```sh\nrm -r folder\n```\n", "unknown program 'rm'"),
    ],
)
def test_wrong_block_fails(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A block that fails, or is neither run nor marked, is reported."""
    with pytest.raises((AssertionError, SyntaxError), match=message):
        run_page(PAGE, text)


def test_marked_block_is_not_run() -> None:
    """A marked block is compiled and not run; the others share their names."""
    text = (
        f"```python\nx = 1\n```\n\n```python\n{MARK}it needs a cluster.\nx = 2\n```\n\n"
        f"```sh\n{MARK}it needs the network.\njaxmix inspect nowhere/at/all\npip install .\n```\n"
    )
    assert run_page(PAGE, text)["x"] == 1
    assert [block.reason for block in blocks_of(PAGE, text)][1:] == [
        "it needs a cluster.",
        "it needs the network.",
    ]
