"""The tables on the pages about speed are those that the benchmarks print."""

import pytest

from .benchmarks.speed_page import PAGES, by_tokens, table_of, with_table
from .messages import full_text

OUTPUT = "9 MB, medians of 5\n\n| a | b |\n| --- | --- |\n| LoRA | 1\\2 |\n\nnote\n"
TABLE = "| a | b |\n| --- | --- |\n| LoRA | 1\\2 |"


@pytest.mark.parametrize("name", PAGES)
def test_page_has_a_place_for_each_table(name: str) -> None:
    """The text around the table stays, and writing it again changes nothing."""
    page = PAGES[name].read_text(encoding="utf-8")
    once = with_table(page, name, TABLE)
    assert TABLE in once and with_table(once, name, TABLE) == once
    start, _, rest = page.partition(f"<!-- bench_{name} -->")
    assert once.startswith(start) and once.endswith(rest.partition("<!-- end -->")[2])


def test_table_is_found_in_the_output() -> None:
    """Other lines of the output are left out."""
    assert table_of(OUTPUT) == TABLE


def test_unmerged_table_has_a_row_per_mix() -> None:
    """Two columns per count of tokens: ours and PEFT's."""
    title = "| adapters | tokens | base ms | factored | auto | dense | torch | PEFT | error |\n"
    rows = [
        f"| A, B | {n} | 9.00 | +9% | {ours} | +7% | 5.00 | {peft} | 1e-07 |"
        for n, ours, peft in ((1, "-5%", "+46%"), (128, "+3%", "+20%"))
    ]
    assert by_tokens(title + "| --- " * 9 + "|\n" + "\n".join(rows)).splitlines() == [
        "| adapters | 1 token | PEFT | 128 tokens | PEFT |",
        "| --- | --- | --- | --- | --- |",
        "| A, B | −5% | +46% | +3% | +20% |",
    ]


def test_missing_tables_and_places_are_errors() -> None:
    """Nothing is written then."""
    with pytest.raises(
        ValueError, match=full_text("the benchmark printed no table; see its output above.")
    ):
        table_of("Traceback")
    message = full_text("the page has no <!-- bench_bank --> before a table, or several.")
    with pytest.raises(ValueError, match=message):
        with_table("text", "bank", TABLE)
