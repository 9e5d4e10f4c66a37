"""The axis order of stacked experts, which is a property of the model's class.

PEFT treats a parameter as (experts, out, in), or as (experts, in, out) if its module has
``is_transposed``. Shapes determine the order, except for square matrices.
"""

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.names.table import name_map, named_parts

__all__ = ["has_inputs_first"]

_LIBRARY = "transformers.models."


def has_inputs_first(file: File, module: str) -> bool | None:
    """Returns whether a module's experts are stored as (experts, in, out).

    Args:
        file: The adapter's file.
        module: The module's path.

    Returns:
        The answer of the base's config, of the model's class in the adapter's config, or of the
        bias of another of the module's parameters; None if none of them determines it.
    """
    if file.base and file.base.in_memory:
        return file.base.in_memory.names.has_inputs_first(module)
    by_class = _of_class(file, module)
    return _by_bias(file, module) if by_class is None else by_class


def _of_class(file: File, module: str) -> bool | None:
    """Returns the answer of the model's class that PEFT has written to the adapter's config.

    For a nested model the class may not be the usual one, so the answer may be unknown.
    """
    mapping = file.config.values.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if not isinstance(library, str) or not library.startswith(_LIBRARY):
        return None
    config = {"model_type": library.removeprefix(_LIBRARY).partition(".")[0]}
    names = name_map(config)
    if names is None:
        return None
    is_first = names.has_inputs_first(module)
    is_in_part = any(f".{path}." in f".{module}" for path in named_parts(config))
    return None if is_in_part and not is_first else is_first


def _by_bias(file: File, module: str) -> bool | None:
    """Whether a bias of experts, which has as many numbers as outputs, fits the last axis only."""
    shapes = file.base.shapes if file.base else {}
    answers = set()
    for name, shape in shapes.items():
        inside, bias = name.rpartition(".")[0], shapes.get(f"{name}_bias")
        if shape and bias and len(shape) == 3 and shape[1] != shape[2]:
            is_inside = inside == module or module.endswith(f".{inside}")
            if is_inside or inside.endswith(f".{module}"):
                answers |= {axis == 2 for axis in (1, 2) if bias == (shape[0], shape[axis])}
    return answers.pop() if len(answers) == 1 else None
