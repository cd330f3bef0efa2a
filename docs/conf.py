# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Sphinx, for `make docs`: https://www.sphinx-doc.org/en/master/usage/configuration.html"""

import re
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the API pages are of this checkout

import mmdense  # noqa: E402

project = 'mmdense'
author = copyright = 'mmdense authors'
release = version = mmdense.__version__

extensions = [
    'myst_nb',  # MyST, and the notebook as it was run
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'sphinxcontrib.programoutput',
]
exclude_patterns = ['_build']
smartquotes = False
highlight_language = 'text'  # of blocks without one: output

nb_execution_mode = 'off'
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3
copybutton_exclude = '.linenos, .gp, .go'  # prompts and output are not copied

autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_inherit_docstrings = False
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
toc_object_entries = False

html_theme = 'furo'
html_title = f'mmdense {release}'
html_static_path = ['_static']
html_css_files = ['mmdense.css']
html_math_renderer = 'mathml'
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False


def setup(app) -> None:
    app.add_html_math_renderer('mathml', (_inline_math, None), (_block_math, None))
    app.connect('source-read', _unlink_what_is_outside)
    app.connect('autodoc-skip-member', _skip_fields)


# Equations as MathML, which browsers draw by themselves: no script, and nothing from elsewhere.
def _inline_math(writer, node) -> None:
    writer.body.append(convert(node.astext()))
    raise SkipNode


def _block_math(writer, node) -> None:
    math = convert(node.astext().strip(), display='block')
    writer.body.append(f'<div class="math">{math}</div>')
    raise SkipNode


def _unlink_what_is_outside(app, name, source) -> None:
    """The site has the folder docs/ alone; in the repository these links work."""
    source[0] = re.sub(r'\[([^]]+)\]\((?:\.\./)+(?!\w*\.md)[^)]*\)', r'\1', source[0])


def _skip_fields(app, what, name, member, skip, options) -> bool:
    """Of named tuples: their classes say what they are."""
    return skip or (member.__doc__ or '').startswith('Alias for field number')
