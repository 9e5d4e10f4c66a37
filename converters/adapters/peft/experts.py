"""The axis order of stacked experts, which is a property of the model's class.

PEFT takes a parameter (experts, out, in), unless its module's ``is_transposed`` says that it is
(experts, in, out). Shapes show which one it is, except for square matrices.
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
        What the base's config, the model's class in the adapter's config, or the bias of another of
        the module's parameters determines; None if nothing does.
    """
    if file.base and file.base.in_memory:
        return file.base.in_memory.names.has_inputs_first(module)
    found = _of_class(file, module)
    return _by_bias(file, module) if found is None else found


def _of_class(file: File, module: str) -> bool | None:
    """What the class determines that PEFT has written to the adapter's config.

    The models inside it that its config names may be others than usually.
    """
    mapping = file.config.values.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if not isinstance(library, str) or not library.startswith(_LIBRARY):
        return None
    config = {"model_type": library.removeprefix(_LIBRARY).partition(".")[0]}
    found = name_map(config)
    if found is None:
        return None
    is_first = found.has_inputs_first(module)
    is_in_part = any(f".{path}." in f".{module}" for path in named_parts(config))
    return None if is_in_part and not is_first else is_first


def _by_bias(file: File, module: str) -> bool | None:
    """Whether a bias of experts, which has as many numbers as outputs, fits the last axis only."""
    shapes = file.base.shapes if file.base else {}
    found = set()
    for name, shape in shapes.items():
        inside, bias = name.rpartition(".")[0], shapes.get(f"{name}_bias")
        if shape and bias and len(shape) == 3 and shape[1] != shape[2]:
            is_inside = inside == module or module.endswith(f".{inside}")
            if is_inside or inside.endswith(f".{module}"):
                found |= {axis == 2 for axis in (1, 2) if bias == (shape[0], shape[axis])}
    return found.pop() if len(found) == 1 else None
