"""Regular expressions: those that could take forever are matched in bounded time, or refused."""

import random
import re

import pytest

from jaxmix.converters.adapters.common.values import matches_site
from jaxmix.errors import UnsupportedError
from jaxmix.placement.layout import Rule
from jaxmix.training.targets import Rules
from jaxmix.untrusted import patterns
from jaxmix.untrusted.patterns import find, is_match

from ..messages import full_text

SITE = "model.layers.10.self_attn.q_proj"
# What Unsloth writes, which is slow for a backtracking engine.
LONG = (
    r"(?:.*?(?:vision|image|visual|language|text).*?(?:self_attn|attention|attn|mlp).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\."
    r"(?:(?:k_proj|v_proj|q_proj|out_proj)))"
)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"^(?!.*vision).*q_proj$", SITE, True),
        (r"^(?!.*self_attn).*q_proj$", SITE, False),
        (r"(\w+\.)*q_proj$", SITE, True),
        (LONG, SITE, True),
        (LONG, "model.layers.0.self_attn.o_proj", False),
        (r"([a-z_0-9.]+)+!", 3 * SITE, False),
        (r"(a|a)*$", 60 * "a" + "b", False),
        (r"(x+x+)+y", 60 * "x", False),
        (r"(?=(a+)+b)", 60 * "a", False),
        (r"(a?){30}a{30}", 29 * "a", False),
        (30 * "a?" + 30 * "a", 30 * "a", True),
        (r"(?:(?:a{1000}){1000}){1000}b", 60 * "a", False),
    ],
)
def test_matches_in_bounded_time(pattern, text, expected):
    assert is_match(pattern, text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "reason"),
    [
        (r"(a+)+\1b", 50 * "a", "it uses groupref"),
        (r"(?i:(a+)+)b", 50 * "a", "it uses subpattern"),
        (r"(?i)(a+)+b", 50 * "a", "it sets flags"),
        (r"(a|aa)+b", 40_000 * "a", "has 40,000 characters"),
        (12 * ".*" + "=", 300 * "a", "takes too many steps"),
        ("a{9999999999999999999999}", "a", "nested too deeply, or repeats too often"),
        (5000 * "(" + 5000 * ")", "a", "nested too deeply, or repeats too often"),
        (70_000 * "a", "a", "it has 70,000 characters, expected at most 65,536"),
    ],
)
def test_refused_by_name(pattern, text, reason):
    with pytest.raises(UnsupportedError) as caught:
        is_match(pattern, text)
    message = str(caught.value)
    assert message.startswith(f"the regular expression {pattern[:57]!r}"[:-1]) and reason in message
    assert message.endswith("Write it without nested repeats, or list the modules' names.")


def test_invalid_expression():
    with pytest.raises(re.error):
        is_match("*", "a")


def test_groups():
    groups = find(r".*?\.(\d+)\.", SITE)
    assert groups is not None and groups[1] == "10" and find("x", SITE) is None
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "the regular expression '([\\\\w.]+)*q_proj' could take "
            "forever: its groups can match in too many ways. Write it "
            "without nested repeats, or list the modules' names."
        ),
    ):
        find(r"([\w.]+)*q_proj", SITE)


def test_expressions_from_files():
    evil = "([a-z_0-9.]+)+!"
    assert not matches_site(evil, SITE)
    assert not Rules(evil).takes(SITE)
    assert not Rules(["q_proj"], layers_to_transform=[0], layers_pattern=evil).takes(SITE)
    assert not Rules(["q_proj"], exclude_modules=f"{evil}").excludes(SITE)
    assert Rule(evil, "x").place(SITE) is None


def _drawn(rng, depth):
    """A random expression."""
    kind = rng.randrange(14) if depth else 0
    if kind < 4:
        return rng.choice(
            ["a", "b", ".", r"\d", "[ab]", "[^a]", r"\w", "^", "$", r"\b", r"\B", r"\Z"]
        )
    inner = _drawn(rng, depth - 1)
    if kind < 7:
        return inner + _drawn(rng, depth - 1)
    if kind < 9:
        return f"(?:{inner}|{_drawn(rng, depth - 1)})"
    if kind < 12:
        return f"({inner}){rng.choice(['*', '+', '?', '*?', '{2}', '{1,3}', '{2,}', '{0,2}?'])}"
    return f"({rng.choice(['?=', '?!', '?<=', '?<!'])}{inner})"


def test_agrees_with_re(monkeypatch):
    """Sets of positions agree with `re` on all expressions."""
    rng = random.Random(0)
    monkeypatch.setattr(patterns, "MOST_STEPS", -1)
    patterns._is_quick_at.cache_clear()
    count = 0
    while count < 1000:
        pattern = _drawn(rng, 3)
        text = "".join(rng.choice("ab1.\n") for _ in range(rng.randrange(5)))
        try:
            compiled = re.compile(pattern)
        except re.error:
            continue
        for full in (False, True):
            expected = compiled.fullmatch(text) if full else compiled.match(text)
            assert is_match(pattern, text, full=full) is (expected is not None), (
                pattern,
                text,
                full,
            )
        count += 1
    patterns._is_quick_at.cache_clear()


def test_one_cost_serves_all_short_names():
    """The cost of an expression is not computed again for each length of a name."""
    patterns._is_quick_at.cache_clear()
    assert not any(is_match(r"layers\.(\d+)\.mlp", "x" * length) for length in range(1, 60))
    assert patterns._is_quick_at.cache_info().misses == 1
