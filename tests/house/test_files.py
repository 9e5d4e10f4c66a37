"""Files: their length, what they must not name, what the wheel takes; and pages that tell true."""

import ast
import re
import subprocess
import sys
import tomllib

import jax
import pytest

import jaxmix

from .sources import ROOT, modules, tracked

LIMIT = 300
# Spelled in parts, so that this file does not hold what it looks for.
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
    """The lines that name a folder of somebody's own machine."""
    return [line for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_no_path_of_a_machine() -> None:
    """No tracked file names one."""
    found = {}
    for path in tracked():
        try:
            lines = machine_paths(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if lines:
            found[path.relative_to(ROOT).as_posix()] = lines
    assert not found


def test_a_path_of_a_machine_is_seen() -> None:
    """The check above can fail, and a relative path does not make it."""
    assert machine_paths('open("' + "/op" + 't/x")') and machine_paths("in " + "/ro" + "ot/y")
    assert not machine_paths("my" + "/op" + "t/x and net" + "work/x")


def test_every_folder_is_a_package() -> None:
    """A folder without `__init__.py` would be left out of the wheel."""
    folders = {m.path.parent for m in modules()}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_the_typed_marker_is_shipped() -> None:
    """`py.typed` and the demo's assets are package data."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    assert (ROOT / "jaxmix" / "py.typed").exists() and data["jaxmix"] == ["py.typed"]
    assert any((ROOT / "demo").glob(data["jaxmix.demo"][0]))


# ---------------------------------------------------------------- what the pages promise


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    """Every `make x` on a page is a target."""
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?:`|^ *|&& )make ([a-z-]+)", text, re.MULTILINE))
    assert named and named <= targets(), named - targets()


def test_subcommands_exist() -> None:
    """Every `jaxmix x` in README's code is a command of the program."""
    code = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", (ROOT / "README.md").read_text(), re.DOTALL)
    named = {name for pair in code for span in pair for name in COMMANDS.findall(span)}
    program = [sys.executable, "-m", "jaxmix", "--help"]
    told = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert named and not {name for name in named if not re.search(rf"\b{name}\b", told)}


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page: str) -> None:
    """Every link into the repository leads somewhere."""
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / link).exists(), link


def unknown_tests(text: str) -> set[str]:
    """The files of tests that a page names, by path or by name, and that are not there."""
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"\btests/[\w/]+\.py\b|\btest_\w+\.py\b", text))
    return {name for name in named if name not in there and not (ROOT / name).is_file()}


def test_tests_on_pages_exist() -> None:
    """A page that says where something is tested says it of files that are there."""
    pages = [*PAGES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
    assert not {page: lost for page in pages if (lost := unknown_tests((ROOT / page).read_text()))}
    assert unknown_tests("`tests/none.py`, test_none.py, test_files.py") == {
        "tests/none.py",
        "test_none.py",
    }


def test_readme_code_names_what_exists() -> None:
    """README's Python parses, and each `jaxmix.x` in it is there."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jaxmix":
                assert hasattr(jaxmix, node.attr), node.attr


@pytest.mark.parametrize("page", ["docs/layouts.md", "docs/training.md"])
def test_code_on_pages_runs(page: str) -> None:
    """What a page shows runs, from top to bottom."""
    names: dict[str, object] = {}
    # A reader has JAX's own rules of promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            exec(compile(block, page, "exec"), names)


def test_readme_tells_nobody_to_install_the_other_package() -> None:
    """On the package index the bare name is somebody else's."""
    told = re.findall(r"pip install[^`\n]*", "".join((ROOT / page).read_text() for page in PAGES))
    assert told and not [line for line in told if re.search(r"\bjaxmix(?!-peft)", line)]


def test_the_design_names_every_room() -> None:
    """Whoever reads docs/design.md finds each file and folder of jaxmix/ there."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rooms = [*(ROOT / "jaxmix").glob("*.py"), *(ROOT / "jaxmix").glob("*/__init__.py")]
    names = {p.name if p.parent.name == "jaxmix" else f"{p.parent.name}/" for p in rooms}
    assert not {name for name in names if f"  {name} " not in page}
