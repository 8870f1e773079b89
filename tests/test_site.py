"""The site: a small one from notebooks made here, and the project's own where its notebooks are, in a real browser."""

import functools
import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from namemovers import site

ROOT = Path(__file__).parents[1]
PLOTLY = "application/vnd.plotly.v1+json"


# --- the small site -------------------------------------------------------------------------------------------------

def plot(figure):
    return new_output("display_data", {PLOTLY: json.loads(figure.to_json()), "text/plain": "Figure()"})


def show(**data):
    return new_output("display_data", {key.replace("_", "/"): value for key, value in data.items()})


def heat():
    z = [[(i * 7 + j * 3) % 11 - 5 for j in range(12)] for i in range(12)]
    figure = go.Figure(go.Heatmap(z=z, zmid=0, colorscale="RdBu", colorbar={"title": "effect"}, hovertext=[[f"L{i}H{j}" for j in range(12)] for i in range(12)]))
    return figure.update_layout(title="Effect of each head </script><script>window.escaped=1</script>", xaxis_title="head", yaxis_title="layer")


def bars():
    return go.Figure(go.Bar(x=["L9H6", "L9H9", "L10H0"], y=[2.0, 1.5, -1.0], error_y={"array": [.2, .2, .3]}), {"title": {"text": "Top heads"}, "width": 1100})


WIDGETS = {
    "box": {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_slider", "IPY_MODEL_button", "IPY_MODEL_out"]}},
    "slider": {"model_name": "IntSliderModel", "state": {"description": "layer", "value": 9}},
    "button": {"model_name": "ButtonModel", "state": {"description": "Press me"}},
    "out": {"model_name": "OutputModel", "state": {"outputs": [new_output("stream", name="stdout", text="seen from layer 9\n")]}},
}

LIBRARY = '''
#| export
def name_mover(
    model: str, # the model's name
    k: int = 3, # how many heads, at most 12
) -> list[tuple[int, int]]: # heads as (layer, head)
    """
    The heads that move the name, as in L9H6.

    Returns pairs, in falling order of `effect`. Raises `ValueError` for a negative `k`.
    """
    return [(9, 6)][:k]
'''


def write(folder, name, *cells, **metadata):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nb = new_notebook(cells=list(cells), metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, **metadata})
    nbformat.write(nb, path)


def sample(folder):
    "Three notebooks that hold one of everything."
    write(folder, "nbs/index.ipynb",
        new_markdown_cell("# Sample & *study*\n\n> Which heads move the **name**, and how do we know?"),
        new_code_cell("#| hide\nsecret = 1"),
        new_markdown_cell("Read [the steps](00_data.ipynb#the-steps), [the other task](../ioi_nbs/00_data.ipynb) or [plotly](https://plotly.com). A formula: $\\Delta = \\ell(a) - \\ell(b)$.\n\n$$\\text{effect} = \\frac{p - c}{m - c}$$"),
        new_markdown_cell("::: {.callout-note}\nA teaching model, `mini`.\n:::\n\n::: {.callout-warning title=\"Mind the limits\"}\nNo evidence about GPT-2.\n:::"),
        new_code_cell("figure", outputs=[plot(heat()), show(text_markdown="The largest effect is **5**, of head L3H2.")]))
    write(folder, "nbs/00_data.ipynb",
        new_markdown_cell("# Data\n\n> Prompts, answers and [their](index.ipynb) positions"),
        new_code_cell("#| default_exp sampledata"),
        new_code_cell("#| export\nimport math"),
        new_markdown_cell("## The steps\n\nFirst `name_mover`, then the rest.[^1]\n\n[^1]: A footnote.\n\n| head | effect |\n|:--|--:|\n| L9H6 | 1.9 |"),
        new_code_cell(LIBRARY.strip()),
        new_code_cell("import os\nundefined_here = no_such_name", outputs=[new_output("stream", name="stdout", text="\x1b[31mred\x1b[0m <b>10%\r 50%\r 100%\nimported once, shown as executed\n")]),
        new_code_cell("table", outputs=[show(text_html="<style scoped>.x{}</style><table border='1' class='dataframe'><thead><tr>" + "".join(f"<th>column {i}</th>" for i in range(30)) + "</tr></thead><tbody><tr>" + "<td>0.123</td>" * 30 + "</tr></tbody></table>")]),
        new_code_cell("#| echo: false\nfigure", outputs=[plot(bars())]),
        new_markdown_cell("The first head leads by 0.5."),
        new_code_cell("#| code-fold: true\nlong = 1", outputs=[show(text_plain="1")]),
        new_code_cell("widget", outputs=[new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "box"}, "text/plain": "VBox()"})]),
        widgets={"application/vnd.jupyter.widget-state+json": {"state": WIDGETS, "version_major": 2, "version_minor": 0}})
    write(folder, "ioi_nbs/00_data.ipynb",
        new_markdown_cell("# Data for IOI\n\n> The same for the other task"),
        new_markdown_cell("Back to [MRS](../nbs/00_data.ipynb). " + "A long line of words to read. " * 40),
        new_code_cell("x = 'a very long line of code that does not fit on a narrow screen ' * 3  # and has a comment behind it as well", outputs=[show(text_plain="y" * 300)]))
    (folder / "_quarto.yml").write_text("""
website:
  title: sample
  sidebar:
    contents:
      - {href: index.ipynb, text: Home}
      - section: The study
        contents: [00_data.ipynb]
      - section: IOI
        contents: [ioi_nbs/00_data.ipynb]
      - section: Library
        contents: [api.ipynb]
""")
    return folder
