"""The import rules between packages, checked against every import."""

import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from .sources import ROOT, Module, imports_of, modules

# Package -> the packages of jaxmix that it may import. "" is jaxmix/__init__.py, the face.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "pytrees": set(),
    "registry": set(),
    "first_use": set(),
    "tables": {"registry"},
    "untrusted": {"errors"},
    "weight_files": set(),
    "operators": {"errors"},
    "affine": {"operators"},
    "row_cuts": {"affine", "operators"},
    "families": {"row_cuts", "affine", "operators"},
    "factors": {"families", "errors"},
    "metadata": {"errors"},
    "placement": {"families", "affine", "untrusted", "registry", "errors"},
    "apply": {"placement", "families", "affine", "operators", "errors"},
    "adapter": {"apply", "placement", "factors", "families", "metadata", "errors"},
    "mixing": {"adapter", "placement", "families", "errors"},
    "singular": {"operators"},
    "effects": {"adapter", "apply", "placement", "families", "affine", "operators", "singular"}
    | {"errors"},
    "low_rank": {"adapter", "effects", "placement", "families", "operators", "singular"}
    | {"metadata", "errors"},
    "pictures": {"untrusted", "errors"},
    "measures": {"adapter", "mixing", "effects", "placement", "operators", "singular", "pictures"}
    | {"errors"},
    "combining": {"adapter", "effects", "low_rank", "apply", "placement", "families", "operators"}
    | {"singular", "metadata", "errors"},
    "unmerged": {"adapter", "mixing", "apply", "placement", "families", "affine", "operators"}
    | {"metadata", "errors"},
    "bank": {"unmerged", "adapter", "mixing", "apply", "placement", "affine", "operators"}
    | {"errors"},
    "training": {"unmerged", "adapter", "mixing", "apply", "placement", "families", "pictures"}
    | {"untrusted", "first_use", "errors"},
    "layout": {"placement"},
    "models": {"untrusted", "weight_files", "first_use", "errors"},
}
# Registering pytrees is for every package.
for allowed_by in ARROWS.values():
    allowed_by.add("pytrees")
LIBRARY = set(ARROWS)
# The packages and modules of converters/adapters, each with those there that it may import. No
# format imports another: what several share is in `common`, and in `lycoris` the meaning of the
# factors in kohya's and diffusers' files.
ADAPTERS: dict[str, set[str]] = {
    "common": set(),
    "format": {"common"},
    "lycoris": {"common"},
    "adapterhub": {"common"},
    "comfyui": {"lycoris", "common"},
    "diffusers": {"lycoris", "common"},
    "kohya": {"lycoris", "common"},
    "mixfile": {"format"},
    "mlx": {"common"},
    "peft": {"common"},
    "qwix": {"common"},
    "single_file": {"common"},
    "downloading": {"single_file", "format", "common"},
    "finding": {"downloading", "single_file", "format", "common"},
}
ADAPTERS["loading"] = set(ADAPTERS)
ADAPTER_ROOMS = {"converters.adapters", *(f"converters.adapters.{name}" for name in ADAPTERS)}
ARROWS |= {
    f"converters.adapters.{name}": {f"converters.adapters.{other}" for other in others}
    | {"converters.names", "converters.checkpoints", "converters.files", *LIBRARY}
    for name, others in ADAPTERS.items()
}
ARROWS |= {
    "": LIBRARY,
    "__main__": {"converters.cli"},
    "demo": {"", *LIBRARY},
    # The packages of converters/. None imports a package that comes after it here.
    "converters.layouts": {"placement"},
    "converters.files": LIBRARY,
    "converters.checkpoints": {"converters.files", *LIBRARY},
    "converters.names": {"converters.checkpoints", "converters.files", *LIBRARY},
    "converters.adapters": set(),
    "converters.merging": {"converters.names", "converters.checkpoints", "converters.files"}
    | {*ADAPTER_ROOMS, *LIBRARY},
    "converters.cli": {"", "converters.merging", "converters.checkpoints", "converters.files"}
    | {*ADAPTER_ROOMS, *LIBRARY},
    "converters": {"converters.cli", "converters.checkpoints", *ADAPTER_ROOMS},
}
# Exceptions: the face reads files through `load`, and the command line starts the demo.
FACE_MAY = tuple(
    f"jaxmix.converters.{name}."
    for name in ("adapters.loading", "adapters.mixfile", "adapters.peft.export", "merging")
)
COMMANDS_MAY = "jaxmix.demo."
# Registers the tables of model libraries and of transformers' names.
TABLES_MAY = ("jaxmix.converters.layouts.TABLES", "jaxmix.converters.names.")
# Modules that a family may import from jaxmix.families; the others there import the families.
SHARED_BY_FAMILIES = ("base", "leaf_update", "positions", "wavelets", "wrapped")
FAMILIES_ABOVE = {"__init__", "together", "rows", "row_counts", "joined_rows", *SHARED_BY_FAMILIES}
FORBIDDEN = ("jax._src", "pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
# Imported on demand, by code that says what to install if they are missing.
EXTRAS = {"matplotlib", "equinox", "qwix", "sklearn", "tokenizers", "torch", "transformers"}
# These build the demo's assets with torch and peft; users do not run them.
MAKERS = {"demo/make_assets.py", "demo/make_text.py"}


def package_of(name: str) -> str | None:
    """Maps ``jaxmix.families.lora`` to ``families``; None for other projects' modules."""
    parts = name.split(".")
    if parts[0] == "demo":  # the scripts of demo/ are run under that name
        return "demo"
    if parts[0] != "jaxmix":
        return None
    for size in (4, 3, 2):
        package = ".".join(parts[1:size])
        if package in ARROWS:
            return package
    return ""


def wrong_arrows(text: str, name: str, is_package: bool) -> list[str]:
    """Describes the imports of a module that the table does not allow."""
    package = package_of(name)
    if package is None or (package == "" and name != "jaxmix"):
        return [f"{name}: its package is not in the table; list its imports there"]
    problems = []
    for imported in imports_of(text, name, is_package):
        target = package_of(imported.name)
        allowed = target is None or target == package or target in ARROWS[package]
        allowed |= package == "" and imported.name.startswith(FACE_MAY)
        allowed |= (
            package == "converters.cli" and imported.lazy and imported.name.startswith(COMMANDS_MAY)
        )
        allowed |= package == "tables" and imported.lazy and imported.name.startswith(TABLES_MAY)
        if not allowed:
            problems.append(f"{name}:{imported.line} imports {imported.name}")
    return problems


def test_arrows() -> None:
    """A room imports only the rooms that the table allows."""
    problems = [line for m in modules() for line in wrong_arrows(m.text, m.name, m.is_package)]
    assert problems == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("jaxmix.errors", "from jaxmix.layout import Layout"),
        ("jaxmix.operators.lowrank", "import jaxmix.affine"),
        ("jaxmix.operators", "def f():\n    from ..families import LoRA"),
        ("jaxmix.families.lora", "from jaxmix.apply import plan"),
        ("jaxmix.families.lora", "from jaxmix.converters.adapters.peft import read_peft"),
        ("jaxmix.models.llama", "from jaxmix.adapter import Adapter"),
        ("jaxmix.mixing", "import jaxmix"),
        ("jaxmix.mixing", "def f():\n    from jaxmix.converters.adapters.loading import load"),
        ("jaxmix", "from jaxmix.converters.adapters.peft import read_peft"),
        ("jaxmix", "from jaxmix import demo"),
        ("jaxmix.converters.cli", "from jaxmix.demo import run"),
        ("jaxmix.new", "import jax"),
        ("jaxmix.tables", "from jaxmix.converters.layouts import TABLES"),
        ("jaxmix.placement.layout", "def f():\n    from jaxmix.converters.layouts import TABLES"),
        ("jaxmix.apply.dense", "def f():\n    from jaxmix.converters.layouts import TABLES"),
        ("jaxmix.converters.layouts.gemma", "from jaxmix.errors import LayoutError"),
        (
            "jaxmix.converters.files.hub",
            "from jaxmix.converters.adapters.finding import find",
        ),
        (
            "jaxmix.converters.adapters.common.base_model",
            "from jaxmix.converters.merging import staged_output",
        ),
        ("jaxmix.placement.sites", "from jaxmix.apply.plan import apply"),
        (
            "jaxmix.converters.adapters.mlx",
            "from jaxmix.converters.adapters.peft.keys import Sites",
        ),
        ("jaxmix.converters.adapters.peft.keys", "import jaxmix.converters.adapters.lycoris"),
        ("jaxmix.converters.adapters.new", "from jaxmix.errors import JaxmixError"),
        (
            "jaxmix.converters.adapters.mixfile.reading",
            "def f():\n    from jaxmix.converters.adapters.loading import FORMATS",
        ),
    ],
)
def test_forbidden_imports_are_found(name: str, source: str) -> None:
    """Each of these imports breaks the table and is reported."""
    assert len(wrong_arrows(source, name, name in {"jaxmix", "jaxmix.operators"})) == 1


def test_allowed_imports_pass() -> None:
    """Each of these imports is allowed."""
    for name, source in {
        "jaxmix": "from jaxmix.converters.merging import merge\nfrom jaxmix.mixing import mix",
        "jaxmix.families.lora": "import jax\nfrom jaxmix.operators import LowRank",
        "jaxmix.converters.cli": "import jaxmix\ndef f():\n    from jaxmix.demo import run",
        "jaxmix.tables": "def f():\n    from jaxmix.converters.layouts import TABLES",
        "jaxmix.converters.layouts": "import re\nfrom jaxmix.placement.layout import Rule",
        "jaxmix.demo.run": "import jaxmix\nfrom jaxmix.models import from_torch",
    }.items():
        assert not wrong_arrows(source, name, name == "jaxmix")


# The modules of placement, each above those that it may import.
PLACEMENT = (
    *(
        "index",
        "regions",
        "transforms",
        "templates",
        "name_map",
        "place",
        "part_places",
        "canonical",
        "assembly",
        "names",
        "orientation",
        "classes",
        "stacks",
        "devices",
        "quantized",
        "params",
    ),
    *("buffers", "ties", "layout", "spelling", "inverse", "form", "tree", "sites", "leaves"),
    *(
        "fused",
        "cutting",
        "joined_experts",
        "joining",
        "inferring",
        "naming",
        "tied",
        "roles",
        "tree_layout",
        "choosing",
        "reading",
    ),
    "resolving",
)


def test_placement_goes_one_way() -> None:
    """No module of placement imports one that builds on it."""
    problems, names = [], []
    for module in modules():
        room, _, name = module.name.removeprefix("jaxmix.").partition(".")
        if room != "placement" or not name:
            continue
        names.append(name)
        for other in imports_of(module.text, module.name, module.is_package):
            inner = other.name.removeprefix("jaxmix.placement.").partition(".")[0]
            is_sibling = other.name.startswith("jaxmix.placement.") and inner in PLACEMENT
            if is_sibling and PLACEMENT.index(inner) >= PLACEMENT.index(name):
                problems.append(f"{name} imports {inner}")
    assert not problems
    assert sorted(names) == sorted(PLACEMENT)


def _family_files() -> list[Module]:
    folder = ROOT / "jaxmix" / "families"
    return [m for m in modules() if m.path.parent == folder and m.path.stem not in FAMILIES_ABOVE]


def test_families_do_not_import_each_other() -> None:
    """A new family is one new file and a line in the table."""
    shared = tuple(f"jaxmix.families.{name}." for name in SHARED_BY_FAMILIES)
    problems = [
        f"{module}:{imported.line} imports {imported.name}"
        for module in _family_files()
        for imported in imports_of(module.text, module.name, module.is_package)
        if imported.name.startswith("jaxmix.families") and not imported.name.startswith(shared)
    ]
    assert problems == []


def third_party_imports(text: str, name: str, is_package: bool) -> list[tuple[str, str, bool]]:
    """Returns (top-level name, full name, lazy) of imports from other projects."""
    return [
        (imported.name.split(".")[0], imported.name, imported.lazy)
        for imported in imports_of(text, name, is_package)
        if imported.name.split(".")[0] not in sys.stdlib_module_names | {"jaxmix", "demo"}
    ]


@cache
def dependencies() -> frozenset[str]:
    """The import names of the dependencies in pyproject.toml, and their own names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {line.split(">=")[0].strip().lower() for line in project["dependencies"]}
    imported = packages_distributions().items()  # reads every installed package
    return frozenset(
        [
            *declared,
            *(
                top
                for top, distributions in imported
                if declared & {d.lower() for d in distributions}
            ),
        ]
    )


def undeclared(text: str, name: str, is_package: bool) -> list[str]:
    """Describes imports that are neither dependencies nor extras imported inside a function."""
    problems = []
    for top, full, lazy in third_party_imports(text, name, is_package):
        if top in EXTRAS:
            problems += [] if lazy else [f"{name} imports the extra {full} outside of a function"]
        elif top not in dependencies():
            problems.append(f"{name} imports {full}, which is no dependency in pyproject.toml")
    return problems


def test_only_declared_dependencies() -> None:
    """Imported packages are dependencies in pyproject.toml; functions may import extras."""
    files = [m for m in modules() if str(m) not in MAKERS]
    assert [line for m in files for line in undeclared(m.text, m.name, m.is_package)] == []


@pytest.mark.parametrize("source", ["import torch", "import pandas", "def f():\n    import pandas"])
def test_undeclared_dependencies_are_reported(source: str) -> None:
    """The check above can fail; an extra inside a function passes."""
    assert len(undeclared(source, "jaxmix.mix", False)) == 1
    assert undeclared("def f():\n    import torch", "jaxmix.mix", False) == []


def forbidden(text: str, name: str, is_package: bool) -> list[str]:
    """Returns imports of private modules, and of modules that can run code from a file."""
    names = [imported.name for imported in imports_of(text, name, is_package)]
    problems = [n for n in names if any(f"{n}.".startswith(f"{f}.") for f in FORBIDDEN)]
    private = [n for n in names if n.split(".")[0] in {"jax", "flax", "numpy", "peft"}]
    return problems + [n for n in private if any(part.startswith("_") for part in n.split(".")[1:])]


def test_forbidden_modules_are_not_imported() -> None:
    """Public JAX only, and nothing is unpickled."""
    imported = {str(m): forbidden(m.text, m.name, m.is_package) for m in modules()}
    assert {file: names for file, names in imported.items() if names} == {}
    words = ("jax._src", "allow_pickle=True")
    assert [(str(m), text) for m in modules() for text in words if text in m.text] == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from jax._src import core", "import jax._src.core", "from flax import _x"],
)
def test_private_and_unsafe_imports_are_found(source: str) -> None:
    """Each of these imports is reported."""
    assert forbidden(source, "jaxmix.mix", False)
