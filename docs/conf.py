"""How the pages are built: `make docs`. Every code cell is run; a failing one fails the build."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from gnnrec import __version__

HERE = Path(__file__).parent

project, author, release = "gnnrec", "the gnnrec developers", __version__
copyright = f"2026, {author}"
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
html_css_files = ["tables.css"]
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

# A cell of shell commands is shown when it has ended: streamed, its lines are cut anywhere.
_BASH = """
import subprocess
from IPython.core.magic import register_cell_magic

@register_cell_magic
def bash(line, cell):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(["bash", "-ec", cell], check=False, **options)
    print(done.stdout, end="")
    done.check_returncode()
"""
_SETTINGS = Path(tempfile.mkdtemp(prefix="gnnrec-docs-"))
atexit.register(shutil.rmtree, _SETTINGS, ignore_errors=True)
(_SETTINGS / "profile_default" / "startup").mkdir(parents=True)
(_SETTINGS / "profile_default" / "startup" / "bash.py").write_text(_BASH, encoding="utf-8")

# What the cells see: this environment's commands, the helpers here, no progress bars, no network.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
os.environ |= {
    "IPYTHONDIR": str(_SETTINGS),
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
    "GNNREC_ROOT": str(HERE.parent),
    "OMP_NUM_THREADS": "1",
}
