"""The measures of the house: what is past the soft measure is listed as a warning, what is past the hard one fails.

A place that must be longer gets a line in EXCUSED with its own measure, and the commit says why.
"""

from __future__ import annotations

import ast
import warnings

FILE = (250, 400)
FUNCTION = (30, 60)
CONSTRUCTOR = (20, 40)
COMPONENT_BODY = (2, 12)
PIPELINE_PARAMETERS = (6, 8)
EXCUSED: dict[str, int] = {}


class HouseMeasureWarning(UserWarning):
    """A place past its soft measure."""


def judge(what, unit, measures, sizes):
    """Fails past the hard measure, warns past the soft one; `sizes` is place -> size."""
    soft, hard = measures
    past_soft = {place: size for place, size in sizes.items() if size > soft}
    if past_soft:
        listed = ", ".join(f"{place} {size}" for place, size in sorted(past_soft.items(), key=lambda item: -item[1]))
        warnings.warn(f"{what} past {soft} {unit}: {listed}", HouseMeasureWarning, stacklevel=2)
    past_hard = {place: size for place, size in past_soft.items() if size > EXCUSED.get(place, hard)}
    assert not past_hard, f"{what} past {hard} {unit}: {past_hard}"


def body_lines(function):
    """Lines from `def` to the end, without the docstring and the decorators."""
    length = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        length -= first.end_lineno - first.lineno + 1
    return length


def statements(function):
    """Statements of a body at any depth, the docstring not counted."""
    count = sum(isinstance(node, ast.stmt) for part in function.body for node in ast.walk(part))
    return count - (ast.get_docstring(function) is not None)


def decorated_by(function, name):
    return any(name in ast.unparse(decorator).split("(")[0].split(".") for decorator in function.decorator_list)


def test_no_file_is_longer_than_a_reader_can_hold(sources):
    judge("files", "lines", FILE, {source.name: source.lines for source in sources})


def test_no_function_is_longer_than_a_screen(sources):
    functions = {f"{s.name}:{f.name}": body_lines(f) for s in sources for f in s.functions() if f.name != "__init__"}
    judge("functions", "lines", FUNCTION, functions)


def test_no_constructor_does_the_work_of_a_builder(sources):
    constructors = {s.at(f): body_lines(f) for s in sources for f in s.functions() if f.name == "__init__"}
    judge("constructors", "lines", CONSTRUCTOR, constructors)


def test_the_doors_of_the_platform_are_thin(house):
    components = {f"{s.name}:{f.name}": statements(f) for s in house for f in s.functions() if decorated_by(f, "component")}
    judge("component bodies", "statements", COMPONENT_BODY, components)


def test_the_pipeline_has_few_parameters(house):
    graphs = {f"{s.name}:{f.name}": len(f.args.args) for s in house for f in s.functions() if decorated_by(f, "pipeline")}
    judge("pipelines", "parameters", PIPELINE_PARAMETERS, graphs)


def test_the_measures_measure(read):
    source = read(
        '@dsl.component\ndef f(a: int) -> int:\n    """Says."""\n    b = a\n    if b:\n        return 1\n    return 2\n'
    )
    (function,) = source.functions()
    assert (body_lines(function), statements(function), decorated_by(function, "component")) == (5, 4, True)
