"""How Sphinx makes the slides: cells of the notebooks (slides.toml); reveal.js and MathJax are part of the site."""

project = "nesskit"
html_title = "nesskit: slides"
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_revealjs"]
templates_path = ["_templates"]

nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
nb_mime_priority_overrides = [("revealjs", "text/html", 10), ("revealjs", "text/markdown", 20)]
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
mathjax_path = "../../_static/mathjax/tex-chtml.js"

html_copy_source = False
revealjs_static_path = ["_static"]
revealjs_css_files = ["slides.css"]
revealjs_style_theme = "white-contrast"
revealjs_script_plugins = [{"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"}]
revealjs_script_conf = {"width": 1120, "height": 700, "hash": True, "slideNumber": "c/t", "transition": "none"}
