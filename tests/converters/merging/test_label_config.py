"""The fields of config.json for the labels of a new head."""

from typing import Any

import pytest

from jaxmix.converters.merging.label_config import label_fields

THREE = {
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, THREE),
        ({"id2label": {"0": "bad", "1": "good"}}, THREE),
        ({"id2label": {"0": "bad", "1": "fair", "2": "good"}}, {}),
        ({"id2label": ["bad", "fair", "good"]}, THREE),  # not an object
        ({"num_labels": 2}, {"num_labels": 3, **THREE}),
        ({"num_labels": 2, **THREE}, {"num_labels": 3}),
    ],
)
def test_labels_match_the_head(config: dict[str, Any], expected: dict[str, Any]) -> None:
    """The base's own labels are kept if there are as many as rows."""
    assert label_fields(config, 3) == expected
