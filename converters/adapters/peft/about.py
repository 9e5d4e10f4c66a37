"""What PEFT's config says about an adapter beside its numbers: for which model and which task."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.errors import AdapterError, UnsupportedError, listing

__all__ = ["TASKS", "about", "about_fields", "checked_task"]

# PEFT's tasks, and the heads that it saves whole for each: it puts no adapter of its own there.
TASKS: Mapping[str, tuple[str, ...]] = {
    "CAUSAL_LM": (),
    "FEATURE_EXTRACTION": (),
    "QUESTION_ANS": ("qa_outputs",),
    "SEQ_2_SEQ_LM": (),
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
}
_STRINGS = ("base_model_name_or_path", "revision", "task_type")
# The class of the model, for AutoPeftModel, where the config names no task.
_CLASS = ("base_model_class", "parent_library")


def about(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say for which model and task an adapter is, out of a config.

    Args:
        values: the config's fields, as they stand in the file.

    Returns:
        Those of them that hold what they should; nothing that jaxmix computes depends on them.

    Example:
        >>> about({"task_type": "CAUSAL_LM", "revision": None, "r": 8})
        {'task_type': 'CAUSAL_LM'}
    """
    found = {key: values[key] for key in _STRINGS if _is_name(values.get(key))}
    mapping = values.get("auto_mapping")
    if isinstance(mapping, dict) and all(_is_name(mapping.get(key)) for key in _CLASS):
        found["auto_mapping"] = {key: mapping[key] for key in _CLASS}
    return found


def about_fields(
    adapter: Adapter, sites: Iterable[str], base: str | None, task: str | None
) -> dict[str, Any]:
    """The same fields for a config that is to be written.

    Args:
        adapter: whose metadata say what its own file said.
        sites: the modules that get factors.
        base: the base's path or hub id, instead of the adapter's.
        task: PEFT's task, instead of the adapter's.

    Returns:
        All four fields, None where nothing is known. A task for which PEFT would save one of the
        sites whole, and so ignore its factors, is left out.

    Raises:
        UnsupportedError: if such a task was asked for.
    """
    said = about(adapter.metadata)
    if base is not None and base != said.get("base_model_name_or_path"):
        said = {key: value for key, value in said.items() if key != "revision"}
        said["base_model_name_or_path"] = base
    if task is not None:
        said["task_type"] = task
    heads = TASKS.get(said.get("task_type", ""), ())
    if lost := [site for site in sites if site.rpartition(".")[2] in heads]:
        if task is not None:
            raise UnsupportedError(
                f"{adapter.name}: for the task {task} PEFT saves heads whole and ignores factors "
                f"there, and this adapter has some at:{listing(lost)}\nLeave task_type out, and "
                "load it with PeftModel.from_pretrained(model, folder)."
            )
        del said["task_type"]
    if said.get("task_type"):
        said.pop("auto_mapping", None)
    return {key: said.get(key) for key in (*_STRINGS, "auto_mapping")}


def checked_task(task: Any) -> str | None:
    """One of PEFT's tasks.

    Args:
        task: what the user said.

    Returns:
        The same.

    Raises:
        AdapterError: if PEFT has no such task.
    """
    if task is None or (isinstance(task, str) and task in TASKS):
        return task
    raise AdapterError(f"task_type is {task!r}, expected one of PEFT's: {', '.join(TASKS)}.")


def _is_name(value: Any) -> bool:
    """Whether a value is a string that a file can hold, and not an empty one."""
    return isinstance(value, str) and bool(value) and value.isprintable()
