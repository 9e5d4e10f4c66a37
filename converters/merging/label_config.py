"""The fields of config.json that hold a classifier's labels."""

from collections.abc import Mapping
from typing import Any

__all__ = ["label_fields"]


def label_fields(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Returns the label fields of config.json for a head with a given number of labels.

    Args:
        config: The base's config.
        count: The number of rows of the head.

    Returns:
        ``id2label`` and ``label2id``, unless the base has that many labels already: ``LABEL_0``, …
        as transformers names them; and ``num_labels`` if the config has it.
    """
    fields: dict[str, Any] = {}
    if "num_labels" in config:
        fields["num_labels"] = count
    names = config.get("id2label")
    if not isinstance(names, Mapping) or len(names) != count:
        fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        fields["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    return fields
