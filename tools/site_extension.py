"""What the site adds to Sphinx: formulas without a script, links to the glossary."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from site_glossary import link_first_uses


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("doctree-resolved", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def formula(source: str, display: str) -> str:
    """LaTeX as MathML, with the space behind ``ln`` that browsers leave out."""
    found = convert(source, display=display)
    names = r"(<mi>(?:ln|log|exp|min|max)</mi>)(?!<mo[^>]*>&#x00028;)"
    return re.sub(names, r'\1<mspace width="0.167em" />', found)


def _inline(translator: Any, node: Any) -> None:
    _write(translator, formula(node.astext(), "inline"))


def _block(translator: Any, node: Any) -> None:
    # It may be wider than a telephone; then it scrolls.
    translator.body.append('<div class="formula">')
    _write(translator, formula(node.astext(), "block"), "</div>")


def _write(translator: Any, formula: str, end: str = "") -> None:
    from docutils import nodes

    translator.body += [formula, end]
    raise nodes.SkipNode
