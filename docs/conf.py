"""How the documentation is built: `make docs` writes `build/docs/index.html`, without a network.

The pages are the Markdown files of this folder; README, ARCHITECTURE, CONTRIBUTING and CHANGELOG are
included, not copied. The API reference is written from docstrings, formulas become MathML, and the
tutorials are run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import partikel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "Partikel"
author = "the authors of Partikel"
copyright = "the authors of Partikel, Apache-2.0"
version = release = partikel.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "_ext.api",
    "_ext.explorer",
    "_ext.formulas",
    "_ext.pages",
]
exclude_patterns = ["_ext", "reproduce/README.md"]  # papers.md includes it
nitpicky = True
html_math_renderer = "mathml"

# Markdown, as the forges read it
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# every tutorial runs at every build: what it shows is what today's code does
nb_execution_mode = "force"
nb_execution_in_temp = True  # what they write is left nowhere
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
nb_output_stderr = "remove"
suppress_warnings = [
    "misc.highlighting_failure"
]  # commands of tutorials (`!partikel`) are no Python
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `partikel`
os.environ["TTY_COMPATIBLE"] = "0"  # kernels say that they are terminals: no bars in pages
os.environ["OMP_NUM_THREADS"] = "1"  # pictures do not depend on the machine

# docstrings: Google's style, types from the signatures
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
napoleon_attr_annotations = False  # types stand in the signature
add_module_names = False
# what other packages document, and names of type variables
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|nn|accelerate|collections|pathlib|typing|dataclasses|abc)\..*"),
]

html_theme = "furo"
html_title = f"Partikel {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
