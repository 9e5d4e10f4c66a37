"""The fields of PEFT's config that describe an adapter: its model and its task."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.errors import AdapterError, UnsupportedError, listing, option

__all__ = ["TASKS", "about", "about_fields", "checked_task"]

# PEFT's tasks, and the heads that PEFT saves whole for each, and so does not adapt.
TASKS: Mapping[str, tuple[str, ...]] = {
    "CAUSAL_LM": (),
    "FEATURE_EXTRACTION": (),
    "QUESTION_ANS": ("qa_outputs",),
    "SEQ_2_SEQ_LM": (),
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
}
_STRINGS = ("base_model_name_or_path", "revision", "task_type")
# The model's class, which AutoPeftModel needs if the config has no task.
_CLASS = ("base_model_class", "parent_library")


def about(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config that describe the adapter's model and task.

    Args:
        values: The config's fields, as stored.

    Returns:
        The valid ones; nothing that jaxmix computes depends on them.

    Example:
        >>> about({"task_type": "CAUSAL_LM", "revision": None, "r": 8})
        {'task_type': 'CAUSAL_LM'}
    """
    fields = {key: values[key] for key in _STRINGS if _is_name(values.get(key))}
    mapping = values.get("auto_mapping")
    if isinstance(mapping, dict) and all(_is_name(mapping.get(key)) for key in _CLASS):
        fields["auto_mapping"] = {key: mapping[key] for key in _CLASS}
    return fields


def about_fields(
    adapter: Adapter, sites: Iterable[str], base: str | None, task: str | None
) -> dict[str, Any]:
    """Returns the same fields for a config to write.

    Args:
        adapter: The adapter, whose metadata has the fields of its file.
        sites: The modules that get factors.
        base: The base's path or hub id, instead of the one in the metadata.
        task: PEFT's task, instead of the one in the metadata.

    Returns:
        All four fields, None if unknown. A task is left out if PEFT would save one of the sites
        whole for it, and so ignore the site's factors.

    Raises:
        UnsupportedError: If such a task is given explicitly.
    """
    fields = about(adapter.metadata)
    if base is not None and base != fields.get("base_model_name_or_path"):
        fields = {key: value for key, value in fields.items() if key != "revision"}
        fields["base_model_name_or_path"] = base
    if task is not None:
        fields["task_type"] = task
    heads = TASKS.get(fields.get("task_type", ""), ())
    if ignored := [site for site in sites if site.rpartition(".")[2] in heads]:
        if task is not None:
            raise UnsupportedError(
                f"{adapter.name}: for the task {task} PEFT saves heads whole and ignores their "
                f"factors, which this adapter has at:{listing(ignored)}\nLeave "
                f"{option('task_type', task)} out, and load it with "
                "PeftModel.from_pretrained(model, folder)."
            )
        del fields["task_type"]
    if fields.get("task_type"):
        fields.pop("auto_mapping", None)
    return {key: fields.get(key) for key in (*_STRINGS, "auto_mapping")}


def checked_task(task: Any) -> str | None:
    """Checks that a task is one of PEFT's.

    Args:
        task: The user's ``task_type=``.

    Returns:
        The task.

    Raises:
        AdapterError: If PEFT has no such task.
    """
    if task is None or (isinstance(task, str) and task in TASKS):
        return task
    raise AdapterError(f"task_type is {task!r}, expected one of PEFT's: {', '.join(TASKS)}.")


def _is_name(value: Any) -> bool:
    """Whether a value is a printable string that is not empty."""
    return isinstance(value, str) and bool(value) and value.isprintable()
