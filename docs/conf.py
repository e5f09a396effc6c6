"""How Sphinx builds these pages: `sphinx-build -W --keep-going -b html docs docs/_build`."""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the API pages are read from the package's docstrings

project = "funcnn"
author = "the funcnn authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!funcnn\b).*")]  # a link into funcnn has to lead somewhere

html_theme = "furo"
html_title = "funcnn"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["math.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "tango"
copybutton_prompt_text = ">>> |[.]{3} "  # what is typed, without the prompts
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

add_module_names = False
autodoc_typehints = "none"  # the sections Args and Returns say more: shapes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # rules=RULES, not the forty rules that it holds
napoleon_use_ivar = True
napoleon_attr_annotations = False


LABEL = re.compile(r"^(Source:|Call:|Args of the call:|Args of(?= `)|Returns of(?= `))")  # sections of one paragraph
MARKUP = re.compile(r"[\\|*]|\b_+(?!\w)|(?<!\w)_")  # what |a| or w_ would mean in reStructuredText


def prepare_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`, for people who read them in a shell: here they become reStructuredText."""
    doctest = literal = False
    previous = ""
    for n, line in enumerate(lines):
        text = line.strip()
        doctest = text.startswith(">>>") or (doctest and bool(text))
        literal = previous.endswith("::") or (literal and (not text or line.startswith("  ")))
        if not (doctest or literal):
            pieces = re.split(r"`(.*?)`", line)
            pieces = [f"``{piece}``" if i % 2 else MARKUP.sub(r"\\\g<0>", piece) for i, piece in enumerate(pieces)]
            if previous == "Returns:":  # so that napoleon takes nothing before a colon for a type
                pieces[0] = re.sub(r"^( *)", r"\1: ", pieces[0])
            lines[n] = LABEL.sub(r"**\1**", "".join(pieces))
        previous = text or previous


def add_mathml(translator: Any, node: nodes.math | nodes.math_block, *, block: bool) -> None:
    """Writes an equation as MathML, which browsers show by themselves: no script, no font, no network."""
    try:
        mathml = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("cannot set %r: %s", node.astext(), error, location=node)
        raise nodes.SkipNode from error
    # The word joiner keeps a comma or full stop on the equation's line.
    translator.body.append(f'<div class="math">{mathml}</div>' if block else f"{mathml}\u2060")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)  # before napoleon's 500
    app.add_html_math_renderer(
        "mathml",
        (lambda translator, node: add_mathml(translator, node, block=False), None),
        (lambda translator, node: add_mathml(translator, node, block=True), None),
    )
