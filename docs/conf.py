"""How the pages are built: `make docs`. Every code cell is run, and a failing one fails the build."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gnnrec import __version__

HERE = Path(__file__).parent

project, author, release = "gnnrec", "the gnnrec developers", __version__
copyright = f"2026, {author}"  # noqa: A001 (Sphinx's name)
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gnnrec {release}"
html_static_path = ["_static"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
suppress_warnings = ["mystnb.unknown_mime_type"]

# What the cells see: this environment's commands, the helpers here, no progress bars, no network.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
os.environ |= {"TQDM_DISABLE": "1", "GNNREC_ROOT": str(HERE.parent), "OMP_NUM_THREADS": "1"}
