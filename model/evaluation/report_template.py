"""How a page is made from a template: every value escaped, and an unknown name an error instead of nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def template(path: Path, filters: Mapping[str, Callable[..., Any]]) -> jinja2.Template:
    """The template in a file, with filters by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(path.name)
