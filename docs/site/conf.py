"""Sphinx's settings for the course's site, which `make site` builds.

What stands in the source folder is made by tools/build_site.py: copies of the
documents, the lessons with their committed outputs, and pages from docstrings.
"""

project = "LLM distillation, step by step"
author = "The distill_helpers maintainers"
copyright = "the distill_helpers maintainers; code Apache-2.0"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "site_extension",
]
root_doc = "index"
nitpicky = False
highlight_language = "none"

# Lessons are shown as they were committed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
html_math_renderer = "mathml"

add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Attributes as one list, not a heading each.
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "static/favicon.svg"
html_baseurl = ""
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}
html_theme_options = {
    # The menu has search and title; a bar above it would repeat them.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
