"""Every public name explains itself: arguments, result, shapes or formula, errors, example."""

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
    """(full name, object) of every class and function on the faces."""
    seen = set()
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            found = getattr(module, name)
            if (inspect.isclass(found) or inspect.isfunction(found)) and id(found) not in seen:
                seen.add(id(found))
                yield f"{face}.{name}", found


PUBLIC = dict(public())


def sections(doc: str) -> dict[str, str]:
    """The text of each section of a docstring; "" for what stands before the first."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", doc, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def arguments(found: Any) -> list[str]:
    """What a caller may give: parameters, or a dataclass's fields."""
    if dataclasses.is_dataclass(found):
        return [f.name for f in dataclasses.fields(found) if f.init and f.name[0] != "_"]
    if inspect.isclass(found):
        made = vars(found).get("__init__")
        return list(inspect.signature(made).parameters)[1:] if made else []
    return list(inspect.signature(found).parameters)


def raises(found: Any) -> bool:
    """Whether calling it meets a `raise` of its own source, "not written yet" left aside."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(found)))
    body = tree.body[0]
    parts: list[ast.AST] = [tree]
    if isinstance(body, ast.ClassDef):
        made = {"__init__", "__post_init__"}
        parts = [n for n in body.body if isinstance(n, ast.FunctionDef) and n.name in made]
    raised = [n for part in parts for n in ast.walk(part) if isinstance(n, ast.Raise)]
    return any("NotImplementedError" not in ast.unparse(n) for n in raised)


def has_arrays(found: Any) -> bool:
    """Whether arrays go in or come out: then shapes are said, or a formula."""
    if dataclasses.is_dataclass(found):
        told = [str(f.type) for f in dataclasses.fields(found)]
    elif inspect.isclass(found):
        told = []
    else:
        told = [str(annotation) for annotation in found.__annotations__.values()]
    return any("Array" in text for text in told) or "params" in arguments(found)


def lacks(found: Any) -> list[str]:
    """What the docstring of a public class or function does not say."""
    inherited = inspect.isclass(found) and not vars(found).get("__doc__")
    doc = None if inherited else inspect.getdoc(found)
    if not doc:
        return ["a docstring"]
    first = doc.splitlines()[0]
    lacking = [] if re.search(r"[.:`?]$", first) else ["a first line that is a sentence"]
    if inspect.isclass(found) and issubclass(found, Exception):
        return lacking
    said = sections(doc)
    given = arguments(found)
    documented = re.findall(r"^ *\*{0,2}(\w+)(?: \([^)]*\))?:", said.get("Args", ""), re.MULTILINE)
    lacking += [f"Args: {name}" for name in given if name not in documented]
    lacking += [f"no argument {name}" for name in documented if name not in given]
    if inspect.isfunction(found) and inspect.signature(found).return_annotation is not None:
        lacking += [] if {"Returns", "Yields"} & set(said) else ["Returns"]
    if raises(found) and "Raises" not in said:
        lacking.append("Raises")
    if given or inspect.isfunction(found):
        lacking += [] if ">>> " in said.get("Example", "") else ["Example"]
        lacking += [] if said.get("Source", "").strip() else ["Source"]
    if has_arrays(found) and not SHAPE_OR_FORMULA.search(doc):
        lacking.append("a shape or a formula")
    return lacking


def test_public_names_explain_themselves() -> None:
    """A public class or function has all that its kind needs."""
    missing = {name: lacks(found) for name, found in PUBLIC.items()}
    assert {name: parts for name, parts in missing.items() if parts} == {}


def bare_methods(cls: type) -> Iterator[str]:
    """The public methods and properties of a class without a docstring, own or inherited."""
    for method, found in vars(cls).items():
        is_code = inspect.isfunction(found) or isinstance(found, property | classmethod)
        if is_code and not method.startswith("_") and not inspect.getdoc(getattr(cls, method)):
            yield method


def test_public_methods_explain_themselves() -> None:
    """A public method or property has a docstring, its own or the one that it overrides."""
    classes = {name: found for name, found in PUBLIC.items() if inspect.isclass(found)}
    assert [
        f"{name}.{method}" for name, cls in classes.items() for method in bare_methods(cls)
    ] == []


def test_modules_explain_themselves() -> None:
    """And so do the faces."""
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
def test_a_lack_is_seen(cut: str, lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check passes a good docstring, and misses each part that is cut out of it."""
    assert lacks(_good) == []
    doc = inspect.getdoc(_good) or ""
    assert cut in doc
    monkeypatch.setattr(_good, "__doc__", doc.replace(cut, ""))
    assert lack in lacks(_good)


def test_shapes_are_seen() -> None:
    """What counts as a shape or a formula, and what does not."""
    for text in ("A (r, in)", "a scalar ()", "``W + Δ``", "core (r, r, *k)", "(blocks, b)"):
        assert SHAPE_OR_FORMULA.search(text), text
    assert not SHAPE_OR_FORMULA.search("the weights (see there for more) of a model")
