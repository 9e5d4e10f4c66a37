"""Writes the tables of docs/speed.md and docs/merging.md from what the benchmarks print.

    python -m tests.benchmarks.speed_page [compose] [factored] [merge]

A table is between the comments ``<!-- bench_compose -->`` and ``<!-- end -->``; the text around it
stays. Each table comes from one run, so its ratios compare programs under the same load.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["PAGES", "by_tokens", "table_of", "with_table"]

_DOCS = Path(__file__).parents[2] / "docs"
# Each benchmark, and the page with its table.
PAGES = {
    "compose": _DOCS / "speed.md",
    "factored": _DOCS / "speed.md",
    "merge": _DOCS / "merging.md",
}
# Columns of bench_factored: the time that adapters add, by the factors that `factored` chooses and
# in PEFT.
_OURS, _PEFT = 4, 7


def table_of(output: str) -> str:
    """Returns the table in a benchmark's output.

    Raises:
        ValueError: If there is none.
    """
    lines = [line for line in output.splitlines() if line.startswith("|")]
    if len(lines) < 3:
        raise ValueError("the benchmark printed no table; see its output above.")
    return "\n".join(lines)


def by_tokens(table: str) -> str:
    """Returns the table of `bench_factored` with a row per mix, two columns per count of tokens."""
    _, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    counts = list(dict.fromkeys(row[1] for row in rows))
    titles = [f"{count} token{'' if count == '1' else 's'} | PEFT" for count in counts]
    lines = [f"| adapters | {' | '.join(titles)} |", f"|{' --- |' * (1 + 2 * len(counts))}"]
    for name in dict.fromkeys(row[0] for row in rows):
        own = [f"{row[_OURS]} | {row[_PEFT]}" for row in rows if row[0] == name]
        lines.append(f"| {name} | {' | '.join(own)} |".replace("-", "−"))
    return "\n".join(lines)


def with_table(page: str, name: str, table: str) -> str:
    """Returns the page with the table of one benchmark replaced.

    Raises:
        ValueError: If the page has no place for it.
    """
    begin, end = f"<!-- bench_{name} -->\n", "\n<!-- end -->"
    place = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if len(place.findall(page)) != 1:
        raise ValueError(f"the page has no {begin.strip()} before a table, or several.")
    return place.sub(lambda _: table, page)


def main() -> None:
    """Runs benchmarks and writes their tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PAGES))
    for name in parser.parse_args().names or PAGES:
        run = [sys.executable, "-m", f"tests.benchmarks.bench_{name}"]
        output = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(output, flush=True)
        table = by_tokens(table_of(output)) if name == "factored" else table_of(output)
        page = PAGES[name].read_text(encoding="utf-8")
        PAGES[name].write_text(with_table(page, name, table), encoding="utf-8")


if __name__ == "__main__":
    main()
