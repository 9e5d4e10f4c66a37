"""Makes the goldens in this folder: one small PyTorch model in a library's own tree.

    python -m tests.goldens.image_layouts.make KIND     # with the library, torch and diffusers

A PyTorch model of diffusers has the names and shapes. The library's own loader converts tensors of
these to its leaves. Both names and shapes are recorded, and the leaves' numbers.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from .loading import KINDS, MAXDIFFUSION
from .state import state

__all__ = ["main"]

HERE = Path(__file__).parent
LARGEST = 10_000


def main(kind: str) -> None:
    """Records one model."""
    model, load, layout = KINDS[kind]
    shapes = {name: list(shape) for name, shape in model().items()}
    leaves = {name: np.asarray(leaf) for name, leaf in load(state(shapes)).items()}
    library = kind.partition("-")[0]
    record = {
        "library": library,
        "source": MAXDIFFUSION.get(kind, "installed"),
        "versions": {
            name: version(name)
            for name in ("diffusers", "jax", *(["keras-hub"] if library == "keras_hub" else []))
        },
        "layout": layout,
        "torch": shapes,
        "leaves": {name: list(leaf.shape) for name, leaf in leaves.items()},
    }
    (HERE / f"{kind}.json").write_text(json.dumps(record) + "\n")
    small = {
        name: np.ascontiguousarray(leaf.astype(np.float16))
        for name, leaf in leaves.items()
        if leaf.size <= LARGEST
    }
    assert all((small[name] == leaves[name]).all() for name in small)
    path = HERE / f"{kind}.safetensors"
    save_file(small, path)
    print(path.name, path.stat().st_size, "bytes", len(leaves), "leaves")


if __name__ == "__main__":
    main(*sys.argv[1:])
