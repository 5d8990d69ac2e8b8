"""How Sphinx makes the site. `python -m course.site` gathers what it reads, and calls it."""

import re

import nesskit

project = "nesskit"
author = copyright = "The nesskit developers"
release = nesskit.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_design",
]
exclude_patterns = ["slides"]

# Notebooks are shown as they were executed.
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # tables that code has made
nb_output_stderr = "remove-warn"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# The API: names as people write them, and everything that is said about an argument beside its name.
default_role = "literal"
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
toc_object_entries_show_parents = "hide"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in one list; properties have their own lines
napoleon_use_rtype = False

# Everything comes from the site itself: MathJax too, which is copied there.
mathjax_path = "mathjax/tex-chtml.js"

html_title = "nesskit"
html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "notation", "glossary", "genindex", "search")}  # of one page each
html_theme_options = {
    "logo": {"text": "nesskit"},
    "header_links_before_dropdown": 8,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# A long signature has a line for each parameter. Sphinx makes definitions without terms of them, which screen readers
# announce as such.
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>(?:(?!</?d[dl]>).)*</dd>\s*)+)</dl>", re.DOTALL)


def plain_parameters(app, pagename, templatename, context, doctree):
    """Lines instead of definitions."""

    def lines(found):
        return found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")

    context["body"] = PARAMETERS.sub(lines, context.get("body", ""))


def setup(app):
    """Called by Sphinx."""
    app.connect("html-page-context", plain_parameters)
