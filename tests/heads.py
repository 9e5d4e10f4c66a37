"""Writes converters/merging/heads.json: transformers' classes with a head for a task.

Run as ``python -m tests.heads`` with torch and transformers. Models are created on torch's meta
device, which takes no memory. A class whose config needs more than its defaults is skipped.
"""

import json
import re
import signal
import warnings
from pathlib import Path
from typing import Any

__all__ = ["FILE", "TASKS", "described"]

FILE = Path(__file__).parents[1] / "converters" / "merging" / "heads.json"
# transformers' mapping, and what PEFT calls the task.
TASKS = {
    "SEQUENCE_CLASSIFICATION": "SEQ_CLS",
    "TOKEN_CLASSIFICATION": "TOKEN_CLS",
    "QUESTION_ANSWERING": "QUESTION_ANS",
    "IMAGE_CLASSIFICATION": "IMAGE_CLS",
    "AUDIO_CLASSIFICATION": "AUDIO_CLS",
    "MULTIPLE_CHOICE": "MULTIPLE_CHOICE",
}
_LABELS, _FEW, _LARGEST, _SECONDS = 7, 3, 10, 20
_OTHERS = ("MODEL", "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_MASKED_LM", "MODEL_FOR_PRETRAINING")


def described(model_type: str, name: str, task: str) -> dict[str, Any] | None:
    """Describes the tensors of a class's checkpoint outside of its body's layers.

    Returns:
        ``prefix``: that of the body; ``head``: the parameters beside it, each with its number of
        rows, "labels", or None for any; ``needs``: parameters of the body that those of another
        head may lack; ``lacks``: those that they may have and this class lacks. None if the
        body's parameters do not share one prefix.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    count = _LABELS
    config = transformers.AutoConfig.for_model(model_type, num_labels=count)
    prefix, shapes = _shapes(getattr(transformers, name), config)
    body, rest = _split(shapes, prefix)
    head = {
        name: "labels" if shape[:1] == (count,) else shape[0] if shape[0] <= _FEW else None
        for name, shape in rest.items()
        if shape
    }
    if not body or not head or len(head) > _LARGEST:
        return None
    others: set[str] = set()
    missing: set[str] = set()
    for mapping in _OTHERS:
        other = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").get(model_type)
        if not isinstance(other, str):
            continue
        other_prefix, other_shapes = _shapes(getattr(transformers, other), config)
        their_body, _ = _split(other_shapes, other_prefix)
        their_body = their_body or set(other_shapes)
        others |= their_body - body
        missing |= body - their_body
    description = {
        "task": TASKS[task],
        "prefix": prefix,
        "head": head,
        "needs": sorted(filter(_is_outside_layers, missing)),
        "lacks": sorted(filter(_is_outside_layers, others)),
    }
    return {key: value for key, value in description.items() if value}


def _shapes(cls: Any, config: Any) -> tuple[str, dict[str, tuple[int, ...]]]:
    """Returns the prefix of a class's body, and its parameters."""
    import torch

    with torch.device("meta"):
        model = cls(config)
    return model.base_model_prefix, {k: tuple(v.shape) for k, v in model.state_dict().items()}


def _split(
    shapes: dict[str, tuple[int, ...]], prefix: str
) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """Splits names into those under a prefix, without it, and the others."""
    start = f"{prefix}."
    body = {name.removeprefix(start) for name in shapes if name.startswith(start)}
    return body, {name: shape for name, shape in shapes.items() if not name.startswith(start)}


def _is_outside_layers(name: str) -> bool:
    return re.search(r"\.\d+\.", name) is None


def main() -> None:
    """Writes the table."""
    import transformers
    from transformers.models.auto import modeling_auto

    def too_slow(*_: Any) -> None:
        raise TimeoutError

    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, too_slow)
    table: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
        for model_type, name in names.items():
            if not isinstance(name, str):
                name = name[0]
            signal.alarm(_SECONDS)
            try:
                description = described(model_type, name, task)
            except Exception as error:  # of any kind: another library, a config without defaults
                print(f"skipped {name}: {type(error).__name__} {str(error)[:60]}")
            else:
                if description:
                    table.setdefault(model_type, {})[name] = description
            finally:
                signal.alarm(0)
    lines = [f'"{name}": {json.dumps(table[name], sort_keys=True)}' for name in sorted(table)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
