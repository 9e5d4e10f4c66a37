"""Files: their length, forbidden paths, the contents of the wheel; and claims of the pages."""

import re
import subprocess
import sys
import tomllib

import pytest

from ..longest import LONGEST
from .sources import ROOT, modules, tracked

LIMIT = 300
# Split into parts so that this file does not match its own pattern.
MACHINE_PATH = re.compile(
    r"(?<![\w.~])/(?:" + "|".join(["wo" + "rk", "op" + "t", "ro" + "ot"]) + ")/"
)
PAGES = ("README.md", "CONTRIBUTING.md")
COMMANDS = re.compile(r"(?:\bjaxmix|-m jaxmix\.converters) ([a-z]+)")


def test_no_long_file() -> None:
    """A file is about 150 lines; one of more than 300 is two files."""
    lines = {str(m): len(m.text.splitlines()) for m in modules() if str(m)[:5] != "demo/"}
    assert {file: count for file, count in lines.items() if count > LIMIT} == {}


def machine_paths(text: str) -> list[str]:
    """Returns the lines that contain an absolute path of one machine."""
    return [line for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_longest_files_exist() -> None:
    """A renamed file would start in its turn instead of first."""
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_no_tracked_file_has_a_machine_path() -> None:
    """No tracked file contains an absolute path of one machine."""
    matches = {}
    for path in tracked():
        try:
            lines = machine_paths(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if lines:
            matches[path.relative_to(ROOT).as_posix()] = lines
    assert not matches


def test_machine_path_is_found() -> None:
    """The check above can fail, and ignores relative paths."""
    assert machine_paths('open("' + "/op" + 't/x")') and machine_paths("in " + "/ro" + "ot/y")
    assert not machine_paths("my" + "/op" + "t/x and net" + "work/x")


def test_every_folder_is_a_package() -> None:
    """Every folder has an `__init__.py`; a folder without it would be missing from the wheel."""
    folders = {m.path.parent for m in modules()}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_package_data_is_declared() -> None:
    """`py.typed` and the demo's assets are package data."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["package-data"]
    assert (ROOT / "jaxmix" / "py.typed").exists() and data["jaxmix"] == ["py.typed"]
    assert any((ROOT / "demo").glob(data["jaxmix.demo"][0]))


# ---------------------------------------------------------------- claims of the pages


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_on_pages_exist(page: str) -> None:
    """Every `make x` on a page is a target of the Makefile."""
    text = (ROOT / page).read_text(encoding="utf-8")
    on_pages = set(re.findall(r"(?:`|^ *|&& )make ([a-z-]+)", text, re.MULTILINE))
    assert on_pages and on_pages <= targets(), on_pages - targets()


def test_readme_subcommands_exist() -> None:
    """Every `jaxmix x` in README's code is a subcommand."""
    code = re.findall(
        r"```sh\n(.*?)```|`([^`\n]+)`", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    on_page = {name for pair in code for span in pair for name in COMMANDS.findall(span)}
    program = [sys.executable, "-m", "jaxmix", "--help"]
    help_text = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert on_page and not {name for name in on_page if not re.search(rf"\b{name}\b", help_text)}


@pytest.mark.parametrize("page", PAGES)
def test_links_on_pages_exist(page: str) -> None:
    """Every link into the repository points to an existing file."""
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


def unknown_tests(text: str) -> set[str]:
    """Returns the test files that a page names, by path or name, and that do not exist."""
    existing = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    on_page = set(re.findall(r"\btests/[\w/]+\.py\b|\btest_\w+\.py\b", text))
    return {name for name in on_page if name not in existing and not (ROOT / name).is_file()}


def test_tests_on_pages_exist() -> None:
    """Pages name only test files that exist."""
    pages = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
    assert not {
        page: missing
        for page in pages
        if (missing := unknown_tests((ROOT / page).read_text(encoding="utf-8")))
    }
    assert unknown_tests("`tests/none.py`, test_none.py, test_files.py") == {
        "tests/none.py",
        "test_none.py",
    }


def test_pages_install_our_distribution() -> None:
    """The pages install `jaxmix-peft`; `jaxmix` on the package index is another project."""
    commands = re.findall(
        r"pip install[^`\n]*", "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    )
    assert commands and not [line for line in commands if re.search(r"\bjaxmix(?!-peft)", line)]


def test_design_page_names_every_module() -> None:
    """docs/design.md names every module and package of jaxmix/."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    modules_of_jaxmix = [*(ROOT / "jaxmix").glob("*.py"), *(ROOT / "jaxmix").glob("*/__init__.py")]
    names = {
        p.name if p.parent.name == "jaxmix" else f"{p.parent.name}/" for p in modules_of_jaxmix
    }
    assert not {name for name in names if f"  {name} " not in page}
