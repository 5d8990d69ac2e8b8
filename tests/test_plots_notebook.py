"""show(): a real kernel displays the picture with its description, closes the figure, and a strict re-run compares."""

import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from pictures import read_picture

from nesskit.plots import picture_html

SOURCE = """
import matplotlib.pyplot as plt
from nesskit.plots import show
figure, axes = plt.subplots(1, 2)
axes[0].plot([1, 2])
show({what}, "A line that rises from 1 to 2.")
print(len(plt.get_fignums()))
"""


def executed(what="figure"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE.format(what=what))])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    return notebook


@pytest.mark.parametrize("what", ["figure", "axes[1]"])
def test_a_figure_is_shown_once_with_its_description(what):
    shown, printed = executed(what).cells[0].outputs
    assert shown.output_type == "display_data"
    alt, picture = read_picture(shown.data)
    assert alt == shown.data["text/plain"] == "A line that rises from 1 to 2."
    assert picture.shape[:2] == (528, 704)
    assert printed.text == "0\n"


def test_a_description_may_hold_any_character(tmp_path):
    pixels = tmp_path / "pixel.png"
    plt.imsave(pixels, np.zeros((2, 3)))
    alt = 'Smaller < "quoted" & larger > 1'
    read, picture = read_picture({"text/html": picture_html(pixels.read_bytes(), alt)})
    assert (read, picture.shape[:2]) == (alt, (2, 3))


@pytest.mark.every
def test_a_strict_re_run_passes_and_finds_another_description(tmp_path):
    notebook = executed()
    for name, alt, code in (("same", "A line that rises from 1 to 2.", 0), ("other", "A line that falls.", 1)):
        notebook.cells[0].outputs[0].data["text/plain"] = alt
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", f"{name}.ipynb"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == code
