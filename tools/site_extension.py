"""What the site adds to Sphinx: formulas without a script, links to the glossary."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert
from site_glossary import link_first_uses


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("doctree-resolved", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: Any) -> None:
    _write(translator, convert(node.astext(), display="inline"))


def _block(translator: Any, node: Any) -> None:
    # It may be wider than a telephone; then it scrolls.
    translator.body.append('<div class="formula">')
    _write(translator, convert(node.astext(), display="block"), "</div>")


def _write(translator: Any, formula: str, end: str = "") -> None:
    from docutils import nodes

    translator.body += [formula, end]
    raise nodes.SkipNode
