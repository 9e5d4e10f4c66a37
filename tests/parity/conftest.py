"""Fixtures for parity with PEFT; without torch, peft and transformers its tests are skipped."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if any(find_spec(name) is None for name in ("torch", "peft", "transformers")):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def mlp() -> Any:
    """Returns the model of the stacks without adapters."""
    from ..goldens.nets import MLP
    from .harness import build

    return build(MLP)


@pytest.fixture(scope="session")
def saved(mlp: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the stacks' adapters, which PEFT saves once per session."""
    from .stacks import save_all

    root = tmp_path_factory.mktemp("peft_stacks")
    save_all(mlp, root)
    return root


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints how many cases were compared, and the largest error."""
    passed = terminalreporter.stats.get("passed", [])
    rows = [dict(report.user_properties) for report in passed]
    rows = [row for row in rows if "parity_cases" in row]
    if rows:
        cases = sum(row["parity_cases"] for row in rows)
        worst = max(row["parity_worst"] for row in rows)
        terminalreporter.write_line(
            f"parity with PEFT: {cases} cases, largest relative error {worst:.1e}"
        )
