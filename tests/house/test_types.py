"""Every argument and every result on the three floors has a type."""

from __future__ import annotations


def arguments(function):
    """All arguments but `self` and `cls`."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def untyped(source):
    for function in source.functions():
        yield from (f"{source.name}:{a.lineno} {function.name}({a.arg})" for a in arguments(function) if a.annotation is None)
        if function.returns is None:
            yield f"{source.name}:{function.lineno} {function.name} -> ?"


def test_every_argument_and_result_has_a_type(house):
    assert not [place for source in house for place in untyped(source)]


def test_an_untyped_argument_is_seen(read):
    assert len(list(untyped(read("def f(self, a, *b, c: int = 1, **d): ...")))) == 4
