"""Every public name documents its arguments, result, shapes or formula, errors and an example."""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from jaxtyping import Array

FACES = (
    "jaxmix",
    "jaxmix.families",
    "jaxmix.layout",
    "jaxmix.models",
    "jaxmix.converters.peft",
)
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Source")
# ``a formula`` or a shape: (out, in), (r, in·k), (V, D), () …
SHAPE_OR_FORMULA = re.compile(r"``[^`]+``|(?<!\w)\((?:[\w*·/]+,(?: ?[\w*·/…]+,?)*)?\)|\{site: ")


def public() -> Iterator[tuple[str, Any]]:
    """Yields (full name, object) for every public class and function."""
    seen = set()
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and id(value) not in seen:
                seen.add(id(value))
                yield f"{face}.{name}", value


PUBLIC = dict(public())


def sections(doc: str) -> dict[str, str]:
    """Splits a docstring into its sections; "" is the text before the first section."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", doc, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def arguments(value: Any) -> list[str]:
    """Returns the names that a caller can pass: parameters, or a dataclass's fields."""
    if dataclasses.is_dataclass(value):
        return [f.name for f in dataclasses.fields(value) if f.init and f.name[0] != "_"]
    if inspect.isclass(value):
        init = vars(value).get("__init__")
        return list(inspect.signature(init).parameters)[1:] if init else []
    return list(inspect.signature(value).parameters)


def raises(value: Any) -> bool:
    """Returns whether its source has a `raise`, other than of NotImplementedError."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    body = tree.body[0]
    parts: list[ast.AST] = [tree]
    if isinstance(body, ast.ClassDef):
        constructors = {"__init__", "__post_init__"}
        parts = [n for n in body.body if isinstance(n, ast.FunctionDef) and n.name in constructors]
    raised = [n for part in parts for n in ast.walk(part) if isinstance(n, ast.Raise)]
    return any("NotImplementedError" not in ast.unparse(n) for n in raised)


def has_arrays(value: Any) -> bool:
    """Returns whether arrays go in or come out; the docstring then needs shapes or a formula."""
    if dataclasses.is_dataclass(value):
        annotations = [str(f.type) for f in dataclasses.fields(value)]
    elif inspect.isclass(value):
        annotations = []
    else:
        annotations = [str(annotation) for annotation in value.__annotations__.values()]
    return any("Array" in text for text in annotations) or "params" in arguments(value)


def lacks(value: Any) -> list[str]:
    """Lists what the docstring of a public class or function lacks."""
    inherited = inspect.isclass(value) and not vars(value).get("__doc__")
    doc = None if inherited else inspect.getdoc(value)
    if not doc:
        return ["a docstring"]
    first = doc.splitlines()[0]
    missing = [] if re.search(r"[.:`?]$", first) else ["a first line that is a sentence"]
    if inspect.isclass(value) and issubclass(value, Exception):
        return missing
    documentation = sections(doc)
    names = arguments(value)
    documented = re.findall(
        r"^ *\*{0,2}(\w+)(?: \([^)]*\))?:", documentation.get("Args", ""), re.MULTILINE
    )
    missing += [f"Args: {name}" for name in names if name not in documented]
    missing += [f"no argument {name}" for name in documented if name not in names]
    if inspect.isfunction(value) and inspect.signature(value).return_annotation is not None:
        missing += [] if {"Returns", "Yields"} & set(documentation) else ["Returns"]
    if raises(value) and "Raises" not in documentation:
        missing.append("Raises")
    if names or inspect.isfunction(value):
        missing += [] if ">>> " in documentation.get("Example", "") else ["Example"]
        missing += [] if documentation.get("Source", "").strip() else ["Source"]
    if has_arrays(value) and not SHAPE_OR_FORMULA.search(doc):
        missing.append("a shape or a formula")
    return missing


def test_public_names_explain_themselves() -> None:
    """A public class or function has all that its kind needs."""
    missing = {name: lacks(value) for name, value in PUBLIC.items()}
    assert {name: parts for name, parts in missing.items() if parts} == {}


def bare_methods(cls: type) -> Iterator[str]:
    """The public methods and properties of a class without a docstring, own or inherited."""
    for method, value in vars(cls).items():
        is_code = inspect.isfunction(value) or isinstance(value, property | classmethod)
        if is_code and not method.startswith("_") and not inspect.getdoc(getattr(cls, method)):
            yield method


def test_public_methods_explain_themselves() -> None:
    """A public method or property has a docstring, its own or the one that it overrides."""
    classes = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
    assert [
        f"{name}.{method}" for name, cls in classes.items() for method in bare_methods(cls)
    ] == []


def test_public_modules_are_documented() -> None:
    """Every public module has a docstring."""
    assert all(importlib.import_module(face).__doc__ for face in FACES)


def _good(x: Array) -> Array:
    """Doubles x.

    Args:
        x: an array (n,).

    Returns:
        An array of its shape.

    Raises:
        ValueError: never.

    Example:
        >>> _good(1)
        2

    Source: arithmetic.
    """
    if x is None:
        raise ValueError
    return 2 * x


@pytest.mark.parametrize(
    ("cut", "lack"),
    [
        ("Args:\n    x: an array (n,).\n", "Args: x"),
        ("Returns:", "Returns"),
        ("Raises:", "Raises"),
        (">>> ", "Example"),
        ("an array (n,)", "a shape or a formula"),
        ("Source: arithmetic.", "Source"),
        ("x: an", "Args: x"),
    ],
)
def test_missing_section_is_found(cut: str, lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check passes a complete docstring and reports each part that is removed."""
    assert lacks(_good) == []
    doc = inspect.getdoc(_good) or ""
    assert cut in doc
    monkeypatch.setattr(_good, "__doc__", doc.replace(cut, ""))
    assert lack in lacks(_good)


def test_shapes_and_formulas_are_found() -> None:
    """The pattern matches shapes and formulas, and no other parentheses."""
    for text in ("A (r, in)", "a scalar ()", "``W + Δ``", "core (r, r, *k)", "(blocks, b)"):
        assert SHAPE_OR_FORMULA.search(text), text
    assert not SHAPE_OR_FORMULA.search("the weights (see there for more) of a model")
