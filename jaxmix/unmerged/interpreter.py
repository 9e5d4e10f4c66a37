"""Runs a program on weights whose base and map are apart.

The program is a jaxpr. Equations that no such weight enters are run as they are, in one piece, so
that whatever JAX knows (custom derivatives, kernels, collectives) stays as it was. Where one
enters, a rule for the primitive runs it by the operators: those at the end for programs inside the
program, those of `rules` for all others. Without a rule, or where the rule has no form for this
weight, the weight is made dense there, and that is reported.
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
    """The outputs of a program.

    Args:
        program: what was traced with an array for each weight.
        args: arrays and weights.
        report: called at each use that makes a weight dense because it has no factored form.

    Returns:
        Its outputs, weights among them where one is handed through.
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
    """What an equation gives that a weight enters; None where it has no factored form."""
    name = eqn.primitive.name
    if name in _PROGRAMS:
        return _PROGRAMS[name](eqn, values, within(eqn, report))
    rule = RULES.get(name)
    return None if rule is None else rule(eqn.params, values)


@dataclass(frozen=True)
class _Frame:
    """A jaxpr, the values of its variables, and the last equation that takes each."""

    jaxpr: core.Jaxpr
    values: dict[Any, Any]
    last: dict[Any, int]

    def read(self, atom: Any) -> Any:
        """What an equation takes; None for what waits to be evaluated."""
        return atom.val if isinstance(atom, core.Literal) else self.values.get(atom)

    def evaluate(self, eqns: Sequence[Any], number: int) -> None:
        """Run equations which no weight enters, all that come before the one of this number."""
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
    """The number of the last equation that takes each variable; past the end for outputs."""
    taken = [*((n, a) for n, eqn in enumerate(jaxpr.eqns) for a in eqn.invars)]
    taken += [(len(jaxpr.eqns), atom) for atom in jaxpr.outvars]
    return {atom: number for number, atom in taken if not isinstance(atom, core.Literal)}


# ---------------------------------------------------------------- programs inside


def _closed(program: Any) -> core.ClosedJaxpr:
    """A program with its constants; JAX gives `jax.checkpoint`'s without."""
    return core.ClosedJaxpr(program, []) if isinstance(program, core.Jaxpr) else program


def _called(eqn: Any, values: Values, report: Report) -> Values:
    return run(_closed(eqn.params["jaxpr"]), values, report)


def _checkpointed(eqn: Any, values: Values, report: Report) -> Values:
    """`jax.checkpoint`: what is saved and what is made again is its own affair."""
    body = _closed(eqn.params["jaxpr"])
    again = jax.checkpoint(
        lambda values: run(body, values, report),
        prevent_cse=eqn.params["prevent_cse"],
        policy=eqn.params["policy"],
    )
    return again(values)


def _scanned(eqn: Any, values: Values, report: Report) -> Values:
    """`jax.lax.scan`: a stack is scanned layer by layer, base and map."""
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
    """Whether it is a weight that can be one layer of a stack."""
    return isinstance(y, Weight) and not y.is_stacked


def _carried(
    program: core.ClosedJaxpr, first: int, carry: Values, eqn: Any, report: Report
) -> Values:
    """What a loop begins with: weights that its body hands through as they are, and arrays."""
    given, handed = program.jaxpr.invars[first:], program.jaxpr.outvars
    return [
        value if handed[i] is given[i] else as_array(value, report, eqn)
        for i, value in enumerate(carry)
    ]


def _carried_on(outs: Values, carry: Values, eqn: Any, report: Report) -> Values:
    """What a loop's body gives for a carry: arrays but for weights handed through."""
    pairs = zip(outs, carry, strict=False)
    return [out if isinstance(old, Weight) else as_array(out, report, eqn) for out, old in pairs]


def _scan_parts(eqn: Any) -> tuple[int, int]:
    """Where a scan's carry begins and ends among its inputs: constants, carry, what is scanned.

    The parameters that count these are not the same in all versions of JAX: ``num_consts`` and
    ``num_carry`` until 0.11, ``ft_in`` in 0.12. In all of them the body sees the scanned inputs and
    outputs without their first axis, and the others as they are.
    """
    body = _closed(eqn.params["jaxpr"])

    def scanned(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(len(atom.aval.shape) > len(aval.shape) for atom, aval in pairs)

    second = len(eqn.invars) - scanned(eqn.invars, body.in_avals)
    carried = len(eqn.outvars) - scanned(eqn.outvars, body.out_avals)
    return second - carried, second


def _scannable(x: Any, eqn: Any, report: Report) -> Any:
    """A weight whose first axis is that of its layers, or an array."""
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
    """`jax.lax.cond` and `jax.lax.switch`. Weights that all branches hand through stay outside."""
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
    """The weight that several programs hand through as the same output; None if they do not."""
    found = {
        next((i for i, var in enumerate(program.jaxpr.invars) if var is out), None)
        for out, program in zip(outs, programs, strict=True)
    }
    at = found.pop()
    weight = None if at is None or found else values[at]
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
