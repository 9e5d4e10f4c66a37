"""Writes docs/peft_types.md: the PEFT types that are read, and their errors relative to PEFT.

python -m tests.parity.types_table
"""

from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from peft import PeftType

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.refusals import REFUSED_TYPES

__all__ = ["main"]

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "peft_types.md"
_TESTS = ("adamss", "drawn", "forms", "layers", "other_forms", "unilora_dealt")
TESTS = tuple(f"test_{name}.py" for name in _TESTS)
# Plugins are imported before pytest can rewrite them, which does not matter here.
_OPTIONS = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
# The six types of PEFT's mixed model are compared in every order, in stacks of up to four.
STACKED = ("LORA", "ADALORA", "LOHA", "LOKR", "OFT", "SHIRA")
LAYERS = {
    "gpt2": "Conv1D",
    "conv1d": "Conv1d",
    "conv2d": "Conv2d",
    "conv3d": "Conv3d",
    "embedding": "Embedding",
    "norm": "norms",
}


_TEXT = """\
# PEFT's types

Every `PeftType` of peft {version} is either read, with parity to PEFT's own unmerged forward in
float64, or refused with the reason why it is not a function of weights. `make pages` writes this
page from the parity tests; a test iterates over `peft.PeftType` and fails for any other type.

*Alone* is the largest relative difference between PEFT's forward and the composed weights, over all
forms and layer types; *between* is that of LoRA → type → LoHa, with PEFT's wrappers nested by hand
(– where PEFT can't wrap a wrapped layer or drops what is inside: see [where PEFT
differs](peft_divergence.md)). Errors of 1e-7 and more come from float32 inside PEFT. *Needs* lists
what some files of the type omit: the base is given as `jaxmix.load(…, base=params)`; torch
(`pip install 'jaxmix-peft[torch]'`) draws what PEFT draws from a seed, and AdaMSS also needs
scikit-learn. `jaxmix.save` stores what was drawn, so it is needed only once.

| type | layers | forms | alone | between | needs |
| --- | --- | --- | --- | --- | --- |
{rows}

BONE, which PEFT dropped, is read as MISS, and the OFT of peft 0.13, 0.15 and 0.17 as these versions
computed it. All ordered pairs, triples and quadruples of LoRA, AdaLoRA, LoHa, LoKr and OFT, and
those with SHiRA and DoRA that PEFT loads, are compared too: see [the stacks](peft_divergence.md).

## Refused

| type | reason |
| --- | --- |
{refused}

## Fields of LoRA's config that are refused

| type | field | reason, and what to do |
| --- | --- | --- |
{fields}
"""


@dataclass
class _Summary:
    """The results of the tests for one type."""

    layers: set[str] = field(default_factory=set)
    forms: int = 0
    alone: float = 0.0
    between: list[float] = field(default_factory=list)
    needs: set[str] = field(default_factory=set)


class _Recorder:
    """A pytest plugin that collects what the parity tests record."""

    def __init__(self) -> None:
        self.types: dict[str, _Summary] = defaultdict(_Summary)
        keywords = {"base": "_base", "torch": "torch"}
        for event, name in keywords.items():
            setattr(File, name, self._recording(getattr(File, name), event))

    def _recording(self, method: Any, event: str) -> Any:
        def recording_call(file: File, *args: Any, **more: Any) -> Any:
            self.types[file.config.family].needs.add(event)
            return method(file, *args, **more)

        return recording_call

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Collects a passed test's errors."""
        measured = dict(report.user_properties).get("parity_type")
        if report.when != "call" or measured is None:
            return
        assert report.passed, report.nodeid
        kind, net, errors = measured
        summary = self.types[kind]
        layer = next((name for key, name in LAYERS.items() if net.startswith(key)), "Linear")
        summary.layers.add(layer)
        summary.forms += 1
        summary.alone = max(summary.alone, errors[0])
        summary.between += errors[1:]


def main() -> None:
    """Runs the parity tests and writes the page."""
    recorder = _Recorder()
    if pytest.main(_OPTIONS + [str(HERE / test) for test in TESTS], [recorder]):
        raise SystemExit("a parity test failed; the page is as it was")
    PAGE.write_text(_page(recorder.types), encoding="utf-8")
    print(PAGE)


def _page(types: dict[str, _Summary]) -> str:
    rows = [_row(name, types[name]) for name in sorted(PEFT_TYPES) if name != "BONE"]
    refused = [f"| {name} | {refusal} |" for name, refusal in sorted(REFUSED_TYPES.items())]
    fields = [
        f"| {name} | `{key}` | {reason.reason}. {reason.remedy} |"
        for name, kind in sorted(PEFT_TYPES.items())
        for key, reason in sorted(kind.fields.refused.items())
        if name == "LORA"
    ]
    unhandled = {kind.value for kind in PeftType} - set(PEFT_TYPES) - set(REFUSED_TYPES)
    if unhandled:
        raise SystemExit(f"neither read nor refused: {sorted(unhandled)}")
    return _TEXT.format(
        version=version("peft"),
        rows="\n".join(rows),
        refused="\n".join(refused),
        fields="\n".join(fields),
    )


def _row(name: str, summary: _Summary) -> str:
    between = "in every stack" if name in STACKED else "–"
    if summary.between:
        between = f"{max(summary.between):.0e}"
    needs = ", ".join(sorted(summary.needs)) or "–"
    layers = ", ".join(sorted(summary.layers))
    return f"| {name} | {layers} | {summary.forms} | {summary.alone:.0e} | {between} | {needs} |"


if __name__ == "__main__":
    main()
