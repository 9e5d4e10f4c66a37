"""Writes the goldens with the installed torch and peft.

    PYTHONHASHSEED=0 python -m tests.goldens.make_goldens

(The seed fixes the order in which PEFT writes its sets.) ``stacks.zip`` holds four adapters of each
of seven families, and the forward of PEFT's mixed model for every single, pair and triple that it
loads, and for every quadruple of LoRA, LoHa, LoKr, AdaLoRA and OFT. ``layers.zip`` holds the table
of layer types in tests/parity/layer_cases.py.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..parity import harness, layer_cases, stacks, truth
from . import nets
from .archive import pack

__all__ = ["main"]

# A smaller copy of the stacks' network; three SHiRA parameters per row and column still fit.
SMALL: nets.Net = (
    nets.Layer("layers.0.lin", "linear", (6, 8)),
    nets.Layer("layers.1.lin", "linear", (8, 10)),
    nets.Layer("layers.2.lin", "linear", (10, 6)),
)
WRITTEN_BY = {name: version(name) for name in ("peft", "torch", "transformers")}


def _stacks(root: Path) -> int:
    model, x = harness.build(SMALL), harness.inputs(SMALL, batch=2)
    stacks.save_all(model, root, SMALL)
    expected = [
        *(stack for n in (1, 2, 3) for stack in stacks.stacks(stacks.KINDS, n)),
        *stacks.stacks(stacks.ADDITIVE_AND_OFT, 4),
    ]
    expected = [stack for stack in expected if _loads(stack)]
    outputs = []
    for stack in expected:
        folders = [root / name for name in stacks.folders_of(stack)]
        outputs.append(harness.forward(harness.mixed_model(model, folders), x))
    data = {
        "written_by.json": WRITTEN_BY,
        "net.json": nets.to_json(SMALL),
        "stacks.json": [stacks.folders_of(stack) for stack in expected],
    }
    tensors = {
        "base.safetensors": harness.state(model),
        "forward.safetensors": {"x": x, "output": np.stack(outputs)},
    }
    return pack("stacks", data, tensors, root)


def _loads(stack: tuple[str, ...]) -> bool:
    """Returns whether PEFT loads the stack: it raises for SHiRA over any other family."""
    return all(kind != "shira" or set(stack[:i]) <= {"shira"} for i, kind in enumerate(stack))


def _layers(root: Path) -> int:
    rows, outputs = [], {}
    for case in layer_cases.CASES:
        layer = truth.run_peft(case, root)
        rows.append(
            {"name": case.name, "net": case.net, "folders": [f.name for f in layer.folders]}
        )
        outputs[case.name] = layer.output
    used = {row["net"]: layer_cases.NETS[row["net"]] for row in rows}
    data = {
        "written_by.json": WRITTEN_BY,
        "nets.json": {name: nets.to_json(net) for name, net in used.items()},
        "cases.json": rows,
    }
    tensors: dict[str, dict[str, np.ndarray]] = {"output.safetensors": outputs}
    for name, net in used.items():
        tensors[f"{name}.safetensors"] = {
            **harness.state(harness.build(net)),
            "x": harness.inputs(net),
        }
    return pack("layers", data, tensors, root)


def main() -> None:
    """Writes both files and prints their sizes."""
    for name, write in (("stacks", _stacks), ("layers", _layers)):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}.zip: {write(Path(folder)):,} bytes")


if __name__ == "__main__":
    main()
