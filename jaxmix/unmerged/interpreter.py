"""Runs a program on weights that keep base and map separate.

The program is a jaxpr. Equations without such a weight among their inputs are evaluated unchanged,
in one piece, which keeps JAX's custom derivatives, kernels and collectives. For equations with such
a weight, a rule for the primitive applies the operators: rules for inner programs are at the end of
this file, all others in `rules`. Without a rule, or if the rule has no form for this weight, the
weight is made dense, and this is reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax import lax
from jax.extend import core

from jaxmix.unmerged.rules import RULES, Values
from jaxmix.unmerged.uses import Report, as_array, within
from jaxmix.unmerged.views import by_layer
from jaxmix.unmerged.weight import Weight

__all__ = ["run"]


def run(program: core.ClosedJaxpr, args: Sequence[Any], report: Report) -> Values:
    """Returns the outputs of a program.

    Args:
        program: The jaxpr, traced with an array for each weight.
        args: Arrays and weights.
        report: Called for each use that makes a weight dense for lack of a factored form.

    Returns:
        Its outputs, which may include weights that are passed through.
    """
    jaxpr = program.jaxpr
    frame = _Frame(jaxpr, dict(zip(jaxpr.constvars, program.consts, strict=True)), _last(jaxpr))
    frame.values.update(zip(jaxpr.invars, args, strict=True))
    waiting: list[Any] = []
    for number, eqn in enumerate(jaxpr.eqns):
        if not any(isinstance(frame.read(atom), Weight) for atom in eqn.invars):
            waiting.append(eqn)
            continue
        frame.evaluate(waiting, number)
        waiting = []
        outs = _outputs(eqn, [frame.read(atom) for atom in eqn.invars], report)
        if outs is None:
            for atom in eqn.invars:
                if isinstance(value := frame.read(atom), Weight):
                    frame.values[atom] = as_array(value, report, eqn)
            frame.evaluate([eqn], number)
        else:
            frame.values.update(zip(eqn.outvars, outs, strict=True))
    frame.evaluate(waiting, len(jaxpr.eqns))
    return [frame.read(atom) for atom in jaxpr.outvars]


def _outputs(eqn: Any, values: Values, report: Report) -> Values | None:
    """The outputs of an equation with a weight as input; None without a factored form."""
    name = eqn.primitive.name
    if name in _PROGRAMS:
        return _PROGRAMS[name](eqn, values, within(eqn, report))
    rule = RULES.get(name)
    return None if rule is None else rule(eqn.params, values)


@dataclass(frozen=True)
class _Frame:
    """A jaxpr, the values of its variables, and the last equation that uses each."""

    jaxpr: core.Jaxpr
    values: dict[Any, Any]
    last: dict[Any, int]

    def read(self, atom: Any) -> Any:
        """An equation's inputs; None for those not evaluated yet."""
        return atom.val if isinstance(atom, core.Literal) else self.values.get(atom)

    def evaluate(self, eqns: Sequence[Any], number: int) -> None:
        """Evaluates all pending equations without weights before this number."""
        if not eqns:
            return
        made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
        used = [atom for eqn in eqns for atom in eqn.invars if not isinstance(atom, core.Literal)]
        taken = [var for var in dict.fromkeys(used) if var not in made]
        kept = [var for var in made if self.last.get(var, -1) >= number]
        effects = frozenset().union(*(eqn.effects for eqn in eqns))
        piece = self.jaxpr.replace(
            constvars=[], invars=taken, outvars=kept, eqns=list(eqns), effects=effects
        )
        outs = core.jaxpr_as_fun(core.ClosedJaxpr(piece, []))(*(self.values[v] for v in taken))
        self.values.update(zip(kept, outs, strict=True))


def _last(jaxpr: core.Jaxpr) -> dict[Any, int]:
    """The number of the last equation that uses each variable; past the end for outputs."""
    taken = [*((n, a) for n, eqn in enumerate(jaxpr.eqns) for a in eqn.invars)]
    taken += [(len(jaxpr.eqns), atom) for atom in jaxpr.outvars]
    return {atom: number for number, atom in taken if not isinstance(atom, core.Literal)}


# ---------------------------------------------------------------- inner programs


def _closed(program: Any) -> core.ClosedJaxpr:
    """A program with its constants; that of `jax.checkpoint` has none."""
    return core.ClosedJaxpr(program, []) if isinstance(program, core.Jaxpr) else program


def _called(eqn: Any, values: Values, report: Report) -> Values:
    return run(_closed(eqn.params["jaxpr"]), values, report)


def _checkpointed(eqn: Any, values: Values, report: Report) -> Values:
    """`jax.checkpoint`, with its own policy of what is saved and rematerialized."""
    body = _closed(eqn.params["jaxpr"])
    again = jax.checkpoint(
        lambda values: run(body, values, report),
        prevent_cse=eqn.params["prevent_cse"],
        policy=eqn.params["policy"],
    )
    return again(values)


def _scanned(eqn: Any, values: Values, report: Report) -> Values:
    """`jax.lax.scan`: scans a stack layer by layer, base and map."""
    params, program = eqn.params, _closed(eqn.params["jaxpr"])
    first, second = _scan_parts(eqn)
    consts = values[:first]
    carry = _carried(program, first, values[first:second], eqn, report)
    xs = [_scannable(x, eqn, report) for x in values[second:]]

    def body(carry: Values, xs: Values) -> tuple[Values, Values]:
        outs = run(program, [*consts, *carry, *xs], report)
        ys = [y if _is_layer(y) else as_array(y, report, eqn) for y in outs[len(carry) :]]
        return _carried_on(outs, carry, eqn, report), ys

    known = {
        k: params[k] for k in ("reverse", "length", "unroll", "_split_transpose") if k in params
    }
    carry, ys = lax.scan(body, carry, xs, **known)
    ys = [replace(y, stack=-len(y.shape)) if isinstance(y, Weight) else y for y in ys]
    return [*carry, *ys]


def _is_layer(y: Any) -> bool:
    """Whether a value is a weight that can be one layer of a stack."""
    return isinstance(y, Weight) and not y.is_stacked


def _carried(
    program: core.ClosedJaxpr, first: int, carry: Values, eqn: Any, report: Report
) -> Values:
    """A loop's initial carry: weights that its body passes through unchanged, and arrays."""
    given, handed = program.jaxpr.invars[first:], program.jaxpr.outvars
    return [
        value if handed[i] is given[i] else as_array(value, report, eqn)
        for i, value in enumerate(carry)
    ]


def _carried_on(outs: Values, carry: Values, eqn: Any, report: Report) -> Values:
    """A loop body's carry: arrays, except for weights that are passed through."""
    pairs = zip(outs, carry, strict=False)
    return [out if isinstance(old, Weight) else as_array(out, report, eqn) for out, old in pairs]


def _scan_parts(eqn: Any) -> tuple[int, int]:
    """The range of a scan's carry among its inputs: constants, carry, scanned inputs.

    The parameters with these counts differ between versions of JAX: ``num_consts`` and
    ``num_carry`` until 0.11, ``ft_in`` in 0.12. In all versions the body has the scanned inputs and
    outputs without their first axis, and the others unchanged.
    """
    body = _closed(eqn.params["jaxpr"])

    def scanned(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(len(atom.aval.shape) > len(aval.shape) for atom, aval in pairs)

    second = len(eqn.invars) - scanned(eqn.invars, body.in_avals)
    carried = len(eqn.outvars) - scanned(eqn.outvars, body.out_avals)
    return second - carried, second


def _scannable(x: Any, eqn: Any, report: Report) -> Any:
    """A weight with layers as its first axis, or an array."""
    is_stack = isinstance(x, Weight) and x.axes[2] == 0
    return by_layer(x) if is_stack else as_array(x, report, eqn)


def _looped(eqn: Any, values: Values, report: Report) -> Values:
    """`jax.lax.while_loop`."""
    params, program = eqn.params, _closed(eqn.params["body_jaxpr"])
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    ahead, inside = values[:first], values[first:second]
    carry = _carried(program, params["body_nconsts"], values[second:], eqn, report)

    def go_on(carry: Values) -> Any:
        return run(_closed(params["cond_jaxpr"]), [*ahead, *carry], report)[0]

    def body(carry: Values) -> Values:
        return _carried_on(run(program, [*inside, *carry], report), carry, eqn, report)

    return lax.while_loop(go_on, body, carry)


def _branched(eqn: Any, values: Values, report: Report) -> Values:
    """`jax.lax.cond` and `jax.lax.switch`; weights passed through by all branches stay outside."""
    which, *rest = values
    programs = [_closed(program) for program in eqn.params["branches"]]
    handed = [
        _handed(outs, programs, rest)
        for outs in zip(*(program.jaxpr.outvars for program in programs), strict=True)
    ]

    def branch(program: core.ClosedJaxpr) -> Callable[[Values], Values]:
        def outputs(rest: Values) -> Values:
            pairs = zip(run(program, rest, report), handed, strict=True)
            return [as_array(out, report, eqn) for out, weight in pairs if weight is None]

        return outputs

    outs = iter(lax.switch(which, [branch(program) for program in programs], rest))
    return [next(outs) if weight is None else weight for weight in handed]


def _handed(
    outs: Sequence[Any], programs: Sequence[core.ClosedJaxpr], values: Values
) -> Weight | None:
    """The weight that all programs pass through as the same output; None if they do not."""
    positions = {
        next((i for i, var in enumerate(program.jaxpr.invars) if var is out), None)
        for out, program in zip(outs, programs, strict=True)
    }
    at = positions.pop()
    weight = None if at is None or positions else values[at]
    return weight if isinstance(weight, Weight) else None


_PROGRAMS: dict[str, Callable[[Any, Values, Report], Values]] = {
    "jit": _called,
    "pjit": _called,
    "remat": _checkpointed,
    "remat2": _checkpointed,
    "checkpoint": _checkpointed,
    "scan": _scanned,
    "while": _looped,
    "cond": _branched,
}
