"""The tables that ``make aot`` writes stand on their pages."""

import math

import pytest

from ..messages import full_text
from .tables import END, TABLES, Table, by_family, main, written


@pytest.mark.parametrize("name", TABLES)
def test_a_page_has_its_table(name: str) -> None:
    """The mark is on the page, and a table follows it."""
    text = TABLES[name][0].read_text(encoding="utf-8")
    content = text.split(f"<!-- {name} -->\n")[1].split(END)[0]
    assert content.startswith("| ") and "\n\nJAX " in content
    assert written(text, name, content.rstrip("\n")) == text


def test_a_table_replaces_what_was_between_its_marks() -> None:
    """The rest of the page stays."""
    table = Table(("a", "b"), (("1", "2"),)).markdown()
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    page = f"head\n<!-- x -->\nold\n{END}between\n<!-- y -->\n{END}end\n"
    new = f"head\n<!-- x -->\nnew\n{END}between\n<!-- y -->\n{END}end\n"
    assert written(page, "x", "new") == new
    assert written(new, "y", "more") == new.replace("<!-- y -->\n", "<!-- y -->\nmore\n")


def test_unknown_table_is_refused() -> None:
    """A mistyped name lists those that exist."""
    message = f"unknown tables ['compse']; there are {', '.join(TABLES)}"
    with pytest.raises(SystemExit, match=full_text(message)):
        main(["compse"])


def test_families_that_compile_fast_share_a_row() -> None:
    """A family with one slow program has its own row; a stopped compilation is said to be."""
    found = {
        "B": {"compose": 1.0, "unmerged": 5.1},
        "A": {"compose": math.inf, "unmerged": 0.5},
        "C": {"compose": 2.0, "unmerged": 3.0},
        "D": {"compose": 4.0, "unmerged": 1.0},
    }
    others = ("the other 2", "at most 4.0", "at most 3.0")
    assert by_family(found) == (("A", "over 120", "0.5"), ("B", "1.0", "5.1"), others)
