"""The package builds and installs in every supported form, and imports from any folder."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from .sources import ROOT, ROOTS, modules

BUILT = ("build", "dist", "site", "jaxmix_peft.egg-info", ".venv")
IMPORT = (
    "import jaxmix, jaxmix.converters.adapters.loading, jaxmix.demo; assert jaxmix.mix;"
    "print(jaxmix.__file__)"
)


def run(*command: object, cwd: Path, path: Path | None = None) -> str:
    """Runs a command and returns what it prints; a failure shows both streams."""
    environment = {**os.environ, "PYTHONPATH": str(path) if path else "", "PYTHONSAFEPATH": ""}
    process = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def build(clone: Path, command: str, out: Path) -> Path:
    """Builds a wheel or an sdist of a clone as pip does, without downloading setuptools."""
    script = (
        "import sys, setuptools.build_meta as backend; print(backend.__getattribute__(sys.argv[1])"
        "(sys.argv[2]))"
    )
    out.mkdir()
    return out / run(sys.executable, "-c", script, command, out, cwd=clone).splitlines()[-1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies the checkout into a folder with the name that `git clone` gives it."""
    copy = tmp_path_factory.mktemp("beside") / "jaxmix"
    ignored = shutil.ignore_patterns(".*", "__pycache__", *BUILT)
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel of the clone."""
    return build(clone, "build_wheel", tmp_path_factory.mktemp("wheel") / "out")


def packages() -> set[str]:
    """Returns the path below site-packages of every module to be installed."""
    return {
        "/".join((*ROOTS[top].split("."), *module.path.relative_to(ROOT / top).parts))
        for module in modules()
        for top in [module.path.relative_to(ROOT).parts[0]]
    }


def imports(clone: Path, installed: Path, tmp_path: Path) -> None:
    """Asserts that the import works from inside the clone, next to it, and elsewhere."""
    for place in (clone, clone.parent, tmp_path):
        location = Path(run(sys.executable, "-c", IMPORT, cwd=place, path=installed).strip())
        # Python looks in the current folder before the installed packages.
        expected = clone if place == clone else installed
        assert location.resolve() == (expected / "jaxmix" / "__init__.py").resolve()


def test_wheel_holds_every_module(wheel: Path) -> None:
    """The wheel holds the modules, the demo's assets and the typed marker, all below jaxmix/."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert packages() <= names and "jaxmix/py.typed" in names
    assert any(name.startswith("jaxmix/demo/assets/") for name in names)
    assert "jaxmix/converters/merging/heads.json" in names
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"jaxmix"}


def test_description_needs_no_repository(wheel: Path) -> None:
    """The description on the package index has no relative link and no picture."""
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    head, _, text = archive.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert text.startswith("# jaxmix") and "```python\nimport" in text
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == [] and "<!--" not in text


def test_wheel_imports_from_every_folder(clone: Path, wheel: Path, tmp_path: Path) -> None:
    """An installed wheel imports from inside the clone, next to it, and elsewhere."""
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    imports(clone, installed, elsewhere)


@pytest.mark.thorough
def test_sdist_builds_the_same_wheel(clone: Path, wheel: Path, tmp_path: Path) -> None:
    """It has files in place of symbolic links, tests and pages, and builds the same wheel."""
    archive = build(clone, "build_sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.glob("jaxmix_peft-*")
    for path in ("CHANGELOG.md", "Makefile", "docs/index.md", "tests/house/test_packaging.py"):
        assert (unpacked / path).is_file()
    rebuilt = build(unpacked, "build_wheel", tmp_path / "again")
    ours = set(zipfile.ZipFile(wheel).namelist())
    assert set(zipfile.ZipFile(rebuilt).namelist()) == ours


def test_editable_install_imports_from_every_folder(clone: Path, tmp_path: Path) -> None:
    """An editable install adds the folder to the path; an import finder would run too late."""
    built = build(clone, "build_editable", tmp_path / "editable")
    names = [n for n in zipfile.ZipFile(built).namelist() if ".dist-info" not in n]
    assert len(names) == 1 and names[0].endswith(".pth")
    folder = zipfile.ZipFile(built).read(names[0]).decode().strip()
    assert Path(folder).resolve() == clone.resolve()
    imports(clone, clone, tmp_path)


def test_uninstalled_clone_imports(clone: Path) -> None:
    """The package imports inside the clone with only its dependencies installed."""
    output = run(sys.executable, "-c", IMPORT, cwd=clone)
    assert Path(output.strip()).resolve().is_relative_to(clone.resolve())


def test_jaxmix_links_to_converters_and_demo() -> None:
    """converters/ and demo/ are real folders, and jaxmix/ has relative links to them."""
    for folder, package in ROOTS.items():
        if folder != "jaxmix":
            link = ROOT / Path(*package.split("."))
            assert link.is_symlink() and not os.readlink(link).startswith("/")
            assert link.resolve() == ROOT / folder and not (ROOT / folder).is_symlink()
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    assert tools["package-dir"] == {"": "."} and "package-data" in tools
