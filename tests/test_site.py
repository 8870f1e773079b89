"""The site: a small one from notebooks made here, and the project's own where its notebooks are, in a real browser."""

import functools
import http.server
import json
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from press import quarto
from press import website as site
from press.website import links, outputs, render, staging, text

ROOT = Path(__file__).parents[1]
PLOTLY = "application/vnd.plotly.v1+json"


# --- the small site -------------------------------------------------------------------------------------------------


def plot(figure):
    return new_output("display_data", {PLOTLY: json.loads(figure.to_json()), "text/plain": "Figure()"})


def show(**data):
    return new_output("display_data", {key.replace("_", "/"): value for key, value in data.items()})


def heat():
    z = [[(i * 7 + j * 3) % 11 - 5 for j in range(12)] for i in range(12)]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            zmid=0,
            colorscale="RdBu",
            colorbar={"title": "effect"},
            hovertext=[[f"L{i}H{j}" for j in range(12)] for i in range(12)],
        )
    )
    return figure.update_layout(
        title="Effect of each head </script> <script> window.escaped=1 </script>",
        xaxis_title="head",
        yaxis_title="layer",
    )


def bars():
    return go.Figure(
        go.Bar(x=["L9H6", "L9H9", "L10H0"], y=[2.0, 1.5, -1.0], error_y={"array": [0.2, 0.2, 0.3]}),
        {"title": {"text": "Top heads"}, "width": 1100},
    )


WIDGETS = {
    "box": {
        "model_name": "VBoxModel",
        "state": {"children": ["IPY_MODEL_slider", "IPY_MODEL_button", "IPY_MODEL_out"]},
    },
    "slider": {"model_name": "IntSliderModel", "state": {"description": "layer", "value": 9}},
    "button": {"model_name": "ButtonModel", "state": {"description": "Press me"}},
    "out": {
        "model_name": "OutputModel",
        "state": {"outputs": [new_output("stream", name="stdout", text="seen from layer 9\n")]},
    },
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
    nb = new_notebook(
        cells=list(cells),
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, **metadata},
    )
    nbformat.write(nb, path)


def sample(folder):
    "Three notebooks that hold one of everything."
    write(
        folder,
        "nbs/index.ipynb",
        new_markdown_cell("# Sample & *study*\n\n> Which heads move the **name**, and how do we know?"),
        new_code_cell("#| hide\nsecret = 1"),
        new_markdown_cell(
            "Read [the steps](00_data.ipynb#the-steps), [the other task](../ioi_nbs/00_data.ipynb) or "
            "[plotly](https://plotly.com). A formula: $\\Delta = \\ell(a) - \\ell(b)$.\n\n"
            "$$\\text{effect} = \\frac{p - c}{m - c}$$"
        ),
        new_markdown_cell(
            "::: {.callout-note}\nA teaching model, `mini`.\n:::\n\n"
            '::: {.callout-warning title="Mind the limits"}\nNo evidence about GPT-2.\n:::'
        ),
        new_code_cell(
            "figure", outputs=[plot(heat()), show(text_markdown="The largest effect is **5**, of head L3H2.")]
        ),
    )
    write(
        folder,
        "nbs/00_data.ipynb",
        new_markdown_cell("# Data\n\n> Prompts, answers and [their](index.ipynb) positions"),
        new_code_cell("#| default_exp sampledata"),
        new_code_cell("#| export\nimport math"),
        new_markdown_cell(
            "## The steps\n\nFirst `name_mover`, then the rest.[^1]\n\n[^1]: A footnote.\n\n"
            "| head | effect |\n|:--|--:|\n| L9H6 | 1.9 |"
        ),
        new_markdown_cell("### name_mover\n\nA section of the same name."),
        new_code_cell(LIBRARY.strip()),
        new_code_cell(
            "import os\nundefined_here = no_such_name",
            outputs=[
                new_output(
                    "stream",
                    name="stdout",
                    text="\x1b[31mred\x1b[0m <b>10%\r 50%\r 100%\nimported once, shown as executed\n",
                )
            ],
        ),
        new_code_cell(
            "table",
            outputs=[
                show(
                    text_html='<style scoped>.x{}</style><table border="1" class="dataframe"><thead><tr>'
                    + "".join(f"<th>column {i}</th>" for i in range(30))
                    + "</tr></thead><tbody><tr>"
                    + "<td>0.123</td>" * 30
                    + "</tr></tbody></table>"
                )
            ],
        ),
        new_code_cell("#| echo: false\nfigure", outputs=[plot(bars())]),
        new_markdown_cell("The first head leads by 0.5."),
        new_code_cell("#| code-fold: true\nlong = 1", outputs=[show(text_plain="1")]),
        new_code_cell(
            "widget",
            outputs=[
                new_output(
                    "display_data",
                    {"application/vnd.jupyter.widget-view+json": {"model_id": "box"}, "text/plain": "VBox()"},
                )
            ],
        ),
        widgets={
            "application/vnd.jupyter.widget-state+json": {"state": WIDGETS, "version_major": 2, "version_minor": 0}
        },
    )
    write(
        folder,
        "ioi_nbs/00_data.ipynb",
        new_markdown_cell("# Data for IOI\n\n> The same for the other task"),
        new_markdown_cell("Back to [MRS](../nbs/00_data.ipynb). " + "A long line of words to read. " * 40),
        new_code_cell(
            (
                "x = 'a very long line of code that does not fit on a narrow screen ' * 3  # and has a comment "
                "behind it as well"
            ),
            outputs=[show(text_plain="y" * 300)],
        ),
    )
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return sample(tmp_path_factory.mktemp("notebooks"))


@pytest.fixture(scope="module")
def small(tree, tmp_path_factory):
    "The small site, below two folders so that it can be served from a sub-path."
    out = tmp_path_factory.mktemp("served") / "docs" / "namemovers"
    assert site.build(tree, out, root=tree) == out / "index.html"
    return out


def text_of(path):
    return path.read_text(encoding="utf-8")


def words(path):
    return text.strip_markup(text_of(path))


# --- what is written ------------------------------------------------------------------------------------------------


def test_pages_and_downloads(small, tree):
    names = {path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file()}
    assert {"index.html", "data.html", "ioi_nbs/data.html", "api.html"} == {
        name for name in names if name.endswith(".html")
    }
    for name in ("nbs/index.ipynb", "nbs/00_data.ipynb", "ioi_nbs/00_data.ipynb"):
        assert (small / "notebooks" / name).read_bytes() == (tree / name).read_bytes()
    assert not names & {"assets/page.html", "assets/unbox.lua"}


def test_what_nbdev_hides_and_shows(small):
    page = text_of(small / "data.html")
    assert "secret" not in text_of(small / "index.html")
    assert "default_exp" not in page
    assert "import math" not in words(small / "data.html")
    assert "return [(9, 6)]" not in page  # the code of an exported function gives way to its documentation
    assert '<h3 class="api" id="name_mover">' in page
    assert "how many heads, at most 12" in page
    assert "in falling order" in page
    assert "eval: false" not in page and "echo: false" not in page
    assert 'href="#name_mover"' in page.split("<main")[0]  # in the table of contents


def test_cells_are_not_run_again(small):
    "The cell names something undefined, and imports; its committed output is shown."
    page = words(small / "data.html")
    assert "undefined_here = no_such_name" in page and "shown as executed" in page and "NameError" not in page


def test_terminal_output_is_plain_text(small):
    page = text_of(small / "data.html")
    assert "\x1b" not in page and "[31m" not in page and "100%" in page and "50%" not in page
    assert site.plain("a\x1b]8;;http://x\x07b\r\n") == "ab\n"


def test_markup(small):
    home, data = text_of(small / "index.html"), text_of(small / "data.html")
    assert "<math" in home and "<mfrac>" in home and "$" not in words(small / "index.html")
    assert 'class="callout-note"' in home and 'title="Mind the limits"' in home
    assert "The largest effect is <strong>5</strong>" in home  # Markdown from code
    assert 'class="footnotes' in data and 'border="1"' not in data and "scoped" not in data
    assert "<title>Sample &amp; study – sample</title>" in home
    assert 'name="description" content="Which heads move the name' in home
    assert "<summary>Code</summary>" in data and "long = 1" in words(small / "data.html")
    assert "<th>head</th>" in data.replace(' style="text-align: left;"', "")


def test_navigation(small):
    data = text_of(small / "data.html")
    assert data.count('aria-current="page"') == 1
    order = re.findall(r'<li><a href="([^"]+)"', data.split('id="page-list"')[1].split("</nav>")[0])
    assert order == ["index.html", "data.html", "ioi_nbs/data.html", "api.html"]
    ioi = text_of(small / "ioi_nbs" / "data.html")
    assert 'rel="prev" href="../data.html"' in ioi and 'rel="next" href="../api.html"' in ioi
    assert 'href="../notebooks/ioi_nbs/00_data.ipynb" download' in ioi and "colab" not in ioi.lower()


def test_links_between_notebooks(small):
    home = text_of(small / "index.html")
    assert 'href="data.html#the-steps"' in home
    assert 'href="ioi_nbs/data.html"' in home
    assert 'href="https://plotly.com"' in home
    assert 'href="../data.html"' in text_of(small / "ioi_nbs" / "data.html")
    assert 'href="index.html">their' in text_of(small / "data.html")
    assert site.check(small) == []


def test_links_in_their_places():
    urls = {
        page.source: page.url
        for page in map(site.Page, ("nbs/01_logit_lens.ipynb", "ioi_nbs/00_data.ipynb", "nbs/core/model.ipynb"))
    }
    here = site.Page("nbs/core/model.ipynb")
    assert (
        site.relink("see [the lens](../01_logit_lens.ipynb#by-layer)", here, urls)
        == "see [the lens](../logit_lens.html#by-layer)"
    )
    code = "```\n[x](00_data.ipynb)\n```"
    assert site.relink(code, here, urls) == code
    with pytest.raises(ValueError, match="names no notebook"):
        links.relink("[x](00_data.ipynb)", here, urls)


def test_addresses_and_order():
    pages = ("nbs/00_data.ipynb", "nbs/core/model.ipynb", "ioi_nbs/comparison.ipynb")
    assert [site.Page(p).url for p in pages] == ["data.html", "core/model.html", "ioi_nbs/comparison.html"]
    contents = [{"href": "index.ipynb", "text": "Home"}, {"section": "The study", "contents": ["00_data.ipynb"]}]
    found = site.read_pages({"website": {"sidebar": {"contents": contents}}})
    assert [(p.section, p.source, p.url) for p in found] == [
        ("", "nbs/index.ipynb", "index.html"),
        ("The study", "nbs/00_data.ipynb", "data.html"),
    ]


def test_unseen_signs_and_markup_in_figures():
    assert site.plain("\x1b[31mred\x1b[0m  10%\r 100%\ndone") == " 100%\ndone" and site.plain("a\u202eb") == "a\\u202eb"
    page = outputs.figure_html({"data": [{"y": [1]}], "layout": {"title": {"text": "a </script> b"}}})
    assert page.count("</script>") == 1
    for title in ("\u202eb", "\\u202eb"):
        assert "\\\\u202e" in outputs.figure_html({"layout": {"title": title}})


def test_a_frame_s_columns():
    import pandas as pd

    frame = pd.DataFrame({"role": ["name mover"], "effect": [0.25]}, index=pd.Index(["L9H6"], name="head"))
    shown = outputs.output_data({"data": {"text/html": frame.to_html()}}, {})["text/html"]
    assert shown.count('class="num"') == 2 and "<th>head</th>" in shown and "<td>name mover</td>" in shown


def test_documented_names_become_links():
    here = site.Page("ioi_nbs/00_data.ipynb")
    urls = {"nbs/core/model.ipynb": "core/model.html"}
    assert (
        site.relink("[`load_model`](/core/model.html#load_model)", here, urls, {"core/model.html#load_model"})
        == "[`load_model`](../core/model.html#load_model)"
    )
    assert (
        site.relink("[`renamed`](/core/model.html#renamed)", here, urls, {"core/model.html#load_model"}) == "`renamed`"
    )
    assert site.relink("[`gone`](/core/gone.html#gone)", here, urls) == "`gone`"


def test_every_address_on_a_page_is_one_place(small):
    for path in small.rglob("*.html"):
        ids = re.findall(r'\bid="([^"]+)"', text_of(path))
        assert len(ids) == len(set(ids)), path
    assert '<h3 class="api" id="name_mover">' in text_of(small / "data.html")  # though a section has the name too


def test_api(small):
    api = text_of(small / "api.html")
    assert 'href="data.html#name_mover"' in api
    assert "The heads that move the name" in api
    assert "namemovers.sampledata" in api


def test_widgets_without_a_kernel(small):
    page = text_of(small / "data.html")
    shown = page[page.index('class="nm-widget"') :].split("</div>\n")[0]
    assert "<dt>layer</dt><dd>9</dd>" in shown and "seen from layer 9" in shown
    assert "Press me" not in page and "<input" not in page.split("<dialog")[0] and "VBox()" not in page


def test_figures(small):
    home = text_of(small / "index.html")
    figure = home[home.index('<figure class="nm-figure"') : home.index("</figure>")]
    assert figure.count("</script>") == 1
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', figure)[1])
    assert data["layout"]["title"]["text"].endswith("</script>") and len(data["data"]) == 1
    assert "The largest effect is 5, of head L3H2." in re.search(r'aria-label="([^"]*)"', figure)[1]
    assert 'aria-label="Top heads. The first head leads by 0.5."' in text_of(small / "data.html")
    assert len(list(small.rglob("plotly.min.js"))) == 1


def test_search_index(small):
    index = json.loads(text_of(small / "assets" / "search-index.js").removeprefix("window.searchIndex="))
    found = {entry["url"]: entry for entry in index}
    assert "L9H6" in found["data.html#name_mover"]["text"] and found["data.html#name_mover"]["heading"] == "name_mover"
    assert "L11H11" in found["index.html"]["text"]  # from a figure
    assert not any("plotly" in entry["text"] and "colorscale" in entry["text"] for entry in index)


def test_the_same_notebooks_give_the_same_site(small, tree, tmp_path):
    site.build(tree, tmp_path / "again", root=tree)
    for path in small.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(small)).read_bytes(), path


def test_colab_where_the_repository_has_an_address():
    config = {"website": {"repo-url": "https://github.com/someone/namemovers"}}
    assert (
        "https://colab.research.google.com/github/someone/namemovers/blob/main/nbs/00_data.ipynb"
        in render.page_actions(site.Page("nbs/00_data.ipynb"), config)
    )


def test_what_stands_below_a_description_is_shown():
    "nbdev shows nothing of a notebook's first cell; the site shows all of it, whatever the page."
    nb = new_notebook(
        cells=[new_markdown_cell("# A page\n\n> What it is.\n\n- order: 3\n\nAn *introduction*.\n\nTwo.")]
    )
    apart = staging._title_apart(json.loads(nbformat.writes(nb)))
    assert [c["source"] for c in apart["cells"]] == [
        "# A page\n\n> What it is.\n\n- order: 3\n\n",
        "An *introduction*.\n\nTwo.",
    ]
    assert staging._title_apart(apart) == apart and nbformat.validate(nbformat.from_dict(apart)) is None
    bare = new_notebook(cells=[new_markdown_cell("# A page\n\n> What it is.")])
    assert len(staging._title_apart(json.loads(nbformat.writes(bare)))["cells"]) == 1


def test_introductions_are_on_the_projects_pages(whole):
    for page in own_pages():
        if page.staged == site.GENERATED:
            continue
        first = staging.source_of(staging.read_notebook(ROOT / page.source)["cells"][0])
        told = first.splitlines()[-1].strip()
        if told and not re.match(r"[#>|-]", told):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", told)
            beginning = re.split(r"[^\w ,;]", plain)[0].strip()
            assert beginning in re.sub(r"\s+", " ", words(whole / page.url)), page.source


# --- mistakes -------------------------------------------------------------------------------------------------------


def refused(folder, tmp_path, match, **options):
    with pytest.raises(ValueError, match=match):
        site.build(folder, tmp_path / "out", root=folder, **options)
    assert not (tmp_path / "out" / "index.html").exists()


def alone(folder, *cells):
    write(folder, "nbs/index.ipynb", new_markdown_cell("# Alone"), *cells)
    (folder / "_quarto.yml").write_text("website: {title: x, sidebar: {contents: [index.ipynb]}}")
    return folder


def test_a_listed_page_must_be_there(tmp_path):
    folder = alone(tmp_path)
    (folder / "_quarto.yml").write_text("website: {sidebar: {contents: [index.ipynb, 01_logit_lens.ipynb]}}")
    refused(folder, tmp_path, "nbs/01_logit_lens.ipynb")


def test_a_link_must_lead_somewhere(tmp_path):
    refused(alone(tmp_path, new_markdown_cell("[x](gone.ipynb)")), tmp_path, "gone.ipynb names no notebook")
    refused(alone(tmp_path, new_markdown_cell("[x](index.ipynb#gone)")), tmp_path, "no such place")
    refused(alone(tmp_path, new_markdown_cell("[x](../settings.ini)")), tmp_path, "does not exist")


@pytest.mark.parametrize(
    "source",
    [
        "![](https://example.org/x.png)",
        "<img src='//example.org/x.png'>",
        '<script src="http://example.org/x.js"></script>',
    ],
)
def test_nothing_is_loaded_from_outside(tmp_path, source):
    refused(alone(tmp_path, new_markdown_cell(source)), tmp_path, "from outside the site")


def test_other_mistakes(tmp_path):
    folder = alone(tmp_path)
    (folder / "nbs" / "01_index.ipynb").write_bytes((folder / "nbs" / "index.ipynb").read_bytes())
    (folder / "_quarto.yml").write_text("website: {sidebar: {contents: [index.ipynb, 01_index.ipynb]}}")
    refused(folder, tmp_path, "two notebooks")
    (folder / "_quarto.yml").write_text("website: {title: x}")
    refused(folder, tmp_path, "lists no pages")
    (folder / "_quarto.yml").unlink()
    refused(folder, tmp_path, "no _quarto.yml")


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    folder = alone(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    refused(folder, tmp_path, "not a site")
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_pages_that_moved_send_their_readers_on(tree, tmp_path):
    folder = tmp_path / "notebooks"
    shutil.copytree(tree, folder)
    config = (folder / "_quarto.yml").read_text()
    (folder / "_quarto.yml").write_text(config + "redirects: {old/place.html: ioi_nbs/data.html}\n")
    site.build(folder, tmp_path / "out", root=folder)
    moved = text_of(tmp_path / "out" / "old" / "place.html")
    assert 'content="0; url=../ioi_nbs/data.html"' in moved and 'href="../ioi_nbs/data.html"' in moved
    for wrong, says in (
        ("{old.html: gone.html}", "gone.html, which is no page"),
        ("{data.html: index.html}", "a page of that address"),
    ):
        (folder / "_quarto.yml").write_text(config + f"redirects: {wrong}\n")
        with pytest.raises(ValueError, match=says):
            site.build(folder, tmp_path / "other", root=folder)


def test_a_damaged_notebook_is_named(tmp_path):
    folder = alone(tmp_path)
    (folder / "nbs" / "index.ipynb").write_text('{"cells": [')
    refused(folder, tmp_path, r"index\.ipynb is not a notebook")


def test_a_page_needs_a_title(tmp_path):
    folder = alone(tmp_path)
    write(folder, "nbs/index.ipynb", new_markdown_cell("No title here."))
    refused(folder, tmp_path, "opens with `# Title`")


# --- Quarto ---------------------------------------------------------------------------------------------------------


def test_quarto_gets_the_same_notebooks(tree, tmp_path):
    import yaml

    given = quarto.write_project(tmp_path / "given", tree)
    config = yaml.safe_load((given / "_quarto.yml").read_text())
    assert config["project"]["render"] == ["index.ipynb", "00_data.ipynb", "ioi_nbs/00_data.ipynb", "api.ipynb"]
    assert config["website"]["title"] == "sample" and config["execute"] == {"enabled": False}
    assert (given / "notebooks" / "nbs" / "00_data.ipynb").is_file() and (given / "assets" / "plotly.min.js").is_file()
    nb = nbformat.read(given / "ioi_nbs" / "00_data.ipynb", 4)
    assert "title: Data for IOI" in nb.cells[0].source and "output-file: data.html" in nb.cells[0].source
    for name in re.findall(r'"(\.\./assets/[^"]+)"', nb.cells[1].source):
        assert (given / "ioi_nbs" / name).resolve().is_file(), name
    assert "../assets/figures.js" in nb.cells[1].source and "(../data.html)" in nb.cells[2].source
    assert "nm-figure" in (given / "index.ipynb").read_text()
    quarto.write_project(given, tree)  # again, in place of itself
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="no project for Quarto"):
        quarto.write_project(tmp_path / "mine", tree)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_configuration_is_one_that_quarto_takes():
    "Keys of its own that a project may have, and a page for every redirect."
    config = site.read_config(ROOT)
    assert set(config) <= {"project", "website", "format", "execute", "redirects"}
    assert set(config["website"]) <= {
        "title",
        "description",
        "search",
        "page-navigation",
        "page-footer",
        "sidebar",
        "repo-url",
        "site-url",
        "favicon",
    }
    assert config["project"]["type"] == "website"


# --- in a browser ---------------------------------------------------------------------------------------------------

AUDIT = (Path(__file__).parent / "site_audit.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(small):
    "The small site on a server, below a sub-path."
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(small.parents[1]))
    handler.func.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/docs/namemovers/"
        server.shutdown()


class Visit:
    "Pages in a browser that stop every request leaving the site and remember whatever went wrong."

    def __init__(self, browser, base, **options):
        self.base, self.wrong, self.asked = base, [], []
        self.context = browser.new_context(
            viewport={"width": options.pop("width", 1300), "height": 900}, **{"reduced_motion": "reduce", **options}
        )
        self.context.route("**/*", self.guard)
        self.page = self.context.new_page()
        self.page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning") and self.wrong.append(f"{self.page.url}: {message.text}")
            ),
        )
        self.page.on("pageerror", lambda error: self.wrong.append(f"{self.page.url}: {error}"))
        self.page.on(
            "response",
            lambda response: response.status >= 400 and self.wrong.append(f"{response.url}: {response.status}"),
        )

    def guard(self, route):
        self.asked.append(route.request.url)
        if route.request.url.startswith((self.base, "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"request outside: {route.request.url}")
            route.abort()

    def open(self, name, draw=True):
        self.page.goto(self.base + name)
        if draw:
            for figure in self.page.query_selector_all(".nm-figure"):
                figure.evaluate("figure => figure.scrollIntoView()")
                self.page.wait_for_function("figure => figure.dataset.state", arg=figure, timeout=120_000)
                assert figure.get_attribute("data-state") == "drawn"
                size = figure.evaluate(
                    """f => {
                        const s = f.querySelector('.main-svg').getBoundingClientRect();
                        const marks = f.querySelectorAll('.main-svg path, .main-svg image, canvas');
                        return [s.width, s.height, marks.length];
                    }"""
                )
                assert min(size) > 0 and size[0] > 150 and size[1] > 80, (name, size)
        return self.page

    def look(self, width, scheme):
        "Another width and another scheme of colours; waits for the figures that follow."
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for figure in self.page.query_selector_all(".nm-figure"):
            figure.evaluate("figure => figure.scrollIntoView()")
            self.page.wait_for_function(
                """([figure, scheme]) => figure.dataset.state === 'drawn' && figure.dataset.theme === scheme
                && Math.abs(figure.dataset.width - figure.querySelector('.nm-plot').clientWidth) < 2""",
                arg=[figure, scheme],
                timeout=120_000,
            )
        # boxes that scroll have been found
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def audit(self):
        return self.page.evaluate(AUDIT)

    def tab_through(self):
        "Every stop of Tab from the skip link to the end of the page, in the order of the page; no trap."
        page = self.page
        page.evaluate("""() => { scrollTo(0, 0); window.stops = []; document.activeElement.blur()
            document.addEventListener('focusin', e => window.stops.push(e.target)) }""")
        page.evaluate("document.querySelector('.skip').focus()")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "page-main"
        expected = page.evaluate("""() => {
            window.stops = [];
            const main = document.querySelector('main');
            const all = main.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]');
            const stops = el => el.tabIndex >= 0 && !el.disabled && el.checkVisibility({ visibilityProperty: true });
            window.expected = [...all].filter(stops);
            return window.expected.length;
        }""")
        for _ in range(expected):
            page.keyboard.press("Tab")
        missed = page.evaluate(
            """() => {
                const said = el => el?.outerHTML.slice(0, 80);
                const was = i => said(window.stops[i]);
                const missed = (el, i) => el === window.stops[i] ? '' : `${i}: ${said(el)}, but was at ${was(i)}`;
                return window.expected.map(missed).filter(Boolean);
            }"""
        )
        assert not missed, missed[:3]
        page.keyboard.press("Tab")
        assert not page.evaluate("document.querySelector('main').contains(document.activeElement)"), (
            "Tab does not leave the text"
        )

    def overflow(self):
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert not self.wrong


def html_pages(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))


def folder_url(folder):
    return folder.resolve().as_uri() + "/"


def test_every_page_from_disk(browser, small):
    with Visit(browser, folder_url(small)) as visit:
        for name in html_pages(small):
            page = visit.open(name)
            assert page.locator("h1").count() == 1 and visit.overflow() == 0
        assert page.evaluate("window.escaped") is None


def test_every_page_from_a_sub_path(browser, small, served):
    with Visit(browser, served) as visit:
        for name in html_pages(small):
            visit.open(name, draw=name == "index.html")
            for target in visit.page.eval_on_selector_all("a[href]", "links => links.map(a => a.href)"):
                if target.startswith(served):
                    assert (small / urlsplit(target).path.removeprefix("/docs/namemovers/")).is_file(), target


def test_plotly_waits_for_a_figure(browser, small):
    with Visit(browser, folder_url(small)) as visit:
        visit.open("ioi_nbs/data.html")
        visit.page.wait_for_timeout(200)
        assert not any("plotly" in url for url in visit.asked)
        visit.open("index.html")
        assert sum("plotly" in url for url in visit.asked) == 1
        assert visit.page.locator(".modebar-btn").count() > 0
        assert visit.page.locator("[data-title*='loud'], [data-title*='Chart Studio'], .modebar-btn--logo").count() == 0


@pytest.mark.parametrize(
    "query, url",
    [("L9H6", "data.html"), ("L11H11", "index.html"), ("name_mover", "data.html#name_mover"), ("footnot", "data.html")],
)
def test_search(browser, small, query, url):
    with Visit(browser, folder_url(small)) as visit:
        page = visit.open("ioi_nbs/data.html", draw=False)
        page.keyboard.press("/")
        page.wait_for_function("window.MiniSearch && window.searchIndex")
        page.keyboard.type(query)
        page.wait_for_selector("#search-hits [aria-selected=true]")
        first = page.locator("#search-hits li a").first
        assert url in first.get_attribute("href")
        page.keyboard.press("Enter")
        page.wait_for_url("**/" + url + ("*" if "#" not in url else ""))


def test_search_that_finds_nothing_says_so(browser, small):
    with Visit(browser, folder_url(small)) as visit:
        page = visit.open("index.html", draw=False)
        page.get_by_role("button", name="Search").click()
        page.wait_for_function("window.MiniSearch && window.searchIndex")
        page.keyboard.type("xylophone")
        page.wait_for_function("document.querySelector('.search-note').textContent === 'Nothing found.'")
        page.keyboard.press("Escape")
        assert page.evaluate("document.querySelector('dialog').open") is False


def test_dark(browser, small):
    light = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(v => v > 128)"
    with Visit(browser, folder_url(small), color_scheme="dark") as visit:
        page = visit.open("index.html")
        assert not page.evaluate(light)
        fill = "() => document.querySelector('.xtick text').style.fill"
        dark_text = page.evaluate(fill)
        page.get_by_role("button", name="Switch between light and dark").click()
        assert page.evaluate(light)
        page.wait_for_function(f"before => ({fill})() !== before", arg=dark_text)
        visit.open("data.html", draw=False)
        assert page.evaluate(light)  # the choice is kept


def test_colours_that_change_while_a_figure_is_drawn(browser, small):
    """A drawing takes a while, and has the colours of its beginning: it is drawn again."""
    with Visit(browser, folder_url(small), color_scheme="light") as visit:
        page = visit.open("index.html")
        page.evaluate("""() => {
            const own = Plotly.react
            Plotly.react = (...given) => new Promise(done => setTimeout(done, 400)).then(() => own(...given))
        }""")
        figure = page.locator(".nm-figure").first
        figure.scroll_into_view_if_needed()
        page.set_viewport_size({"width": 500, "height": 900})
        page.wait_for_function("figure => figure.drawing", arg=figure.element_handle())
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(
            "figure => figure.dataset.state === 'drawn' && figure.dataset.theme === 'dark'",
            arg=figure.element_handle(),
            timeout=20_000,
        )


def test_narrow(browser, small):
    with Visit(browser, folder_url(small), width=360) as visit:
        for name in html_pages(small):
            page = visit.open(name)
            assert visit.overflow() == 0, name
        assert not page.locator("#page-list").is_visible()
        page.get_by_role("button", name="Pages").click()
        assert page.locator("#page-list").is_visible()
        assert page.get_by_role("button", name="Pages").get_attribute("aria-expanded") == "true"
        page.locator("#page-list a").first.click()
        page.wait_for_url("**/index.html")
        page = visit.open("data.html", draw=False)
        assert page.locator(".table-scroll[tabindex='0']").count() == 1  # the wide one alone


def test_keyboard(browser, small):
    with Visit(browser, folder_url(small)) as visit:
        page = visit.open("data.html", draw=False)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "page-main"


def test_the_small_site_for_everybody(browser, small):
    with Visit(browser, folder_url(small)) as visit:
        for name in html_pages(small):
            visit.page.set_viewport_size({"width": 1300, "height": 900})
            visit.page.emulate_media(color_scheme="light", reduced_motion="reduce")
            visit.open(name)
            assert visit.audit() == []
            visit.tab_through()
            visit.look(360, "dark")
            assert visit.audit() == []


BAD = """<!doctype html><html><head><title></title>
<style>.ring:focus { outline: none } a { outline-offset: 0 }</style></head><body style="background: #fff; color: #222">
<main><article><h1>Bad</h1><h3>Skipped</h3>
<p style="color: #888">grey</p>
<p style="background: #fff8; color: rgb(0 0 0 / .5)">half</p>
<button aria-label="x" class="ring" style="outline: none">x</button>
<button></button><a href="#nowhere">lost</a><span onclick="1">press</span>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<table><tr><td>1</td></tr></table>
<i id="twice"></i><i id="twice"></i>
<div style="overflow-x: auto; width: 90px"><div style="width: 3000px">long</div></div>
<div style="overflow: hidden; width: 20px; white-space: nowrap">cut cut cut</div>
<input aria-label="x" tabindex="3" aria-controls="gone">
<div style="width: 3000px">wide</div></article></main></body></html>"""


def test_the_audit_finds_what_is_wrong(browser):
    page = browser.new_page()
    page.set_content(BAD)
    found = "\n".join(page.evaluate(AUDIT))
    for word in (
        "contrast 3.54",
        "contrast 3.98",
        "h3 after h1",
        "focus is not seen",
        "no name",
        "leads nowhere",
        "not reached by keyboard",
        "picture without words",
        "table without headings",
        "called twice",
        "by mouse alone",
        "is cut",
        "order of Tab",
        "aria-controls names nothing",
        "pixels too wide",
        "over the edge",
        "no language or title",
    ):
        assert word in found, (word, found)
    page.close()


FITS = """() => [...document.querySelectorAll('pre.sourceCode')].filter(pre => pre.scrollWidth > pre.clientWidth + 1)
    .map(pre => pre.textContent.slice(0, 60))"""


def test_code_is_read_without_scrolling_sideways(browser, tmp_path):
    "A line of 120 letters stands on one line at 1300 pixels; a longer one, and any on a narrow screen, goes on below."
    lines = ["x = '" + "y" * n + "'" for n in (1, 114, 300)]
    folder = alone(tmp_path, *map(new_code_cell, lines))
    site.build(folder, tmp_path / "out", root=folder)
    height = (
        "[...document.querySelectorAll('pre.sourceCode')].map(pre => Math.round(pre.getBoundingClientRect().height))"
    )
    for width in (1300, 1700, 360):
        with Visit(browser, folder_url(tmp_path / "out"), width=width) as visit:
            page = visit.open("index.html", draw=False)
            assert page.evaluate(FITS) == []
            short, full, longer = page.evaluate(height)
            assert longer > short and (full == short) == (width > 360), (width, short, full, longer)


def test_menu_on_a_narrow_screen_by_keyboard(browser, small):
    with Visit(browser, folder_url(small), width=360) as visit:
        page = visit.open("data.html", draw=False)
        menu = page.get_by_role("button", name="Pages")
        menu.focus()
        page.keyboard.press("Enter")
        assert menu.get_attribute("aria-expanded") == "true"
        seen = []
        for _ in range(12):  # two buttons, four pages, and back to the top: never what the menu covers
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    "[document.activeElement.closest('#page-list')?.id ?? '', "
                    "!!document.activeElement.closest('main, .contents')]"
                )
            )
        assert sum(where == "page-list" for where, _ in seen) >= 4 and not any(covered for _, covered in seen)
        page.keyboard.press("Escape")
        assert menu.get_attribute("aria-expanded") == "false" and not page.locator("#page-list").is_visible()
        assert menu.evaluate("menu => menu === document.activeElement")
        page.keyboard.press("Enter")
        page.set_viewport_size({"width": 1300, "height": 900})  # a wide screen has no menu to close
        page.wait_for_function("!document.querySelector('main').inert")
        assert page.locator("#page-list").is_visible()


def test_search_keeps_and_gives_back_the_focus(browser, small):
    with Visit(browser, folder_url(small)) as visit:
        page = visit.open("data.html", draw=False)
        opener = page.get_by_role("button", name="Search")
        opener.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("window.MiniSearch && window.searchIndex")
        # the ring of the field
        assert page.evaluate("getComputedStyle(document.activeElement.form).boxShadow") != "none"
        for _ in range(4):
            page.keyboard.press("Tab")
            assert page.evaluate("!document.activeElement.closest('main, header.top, #page-list')")
        page.keyboard.press("Escape")
        assert not page.evaluate("document.querySelector('dialog').open")
        assert opener.evaluate("el => el === document.activeElement")


def test_tools_of_a_figure_by_keyboard(browser, small):
    "One stop of Tab for all, arrows between them, and they can be seen then."
    with Visit(browser, folder_url(small)) as visit:
        page = visit.open("index.html")
        bar = page.locator(".modebar")
        assert bar.get_attribute("role") == "toolbar" and bar.get_attribute("aria-label")
        assert bar.locator("button[tabindex='0']").count() == 1
        bar.locator("button[tabindex='0']").focus()
        page.wait_for_function("getComputedStyle(document.activeElement.closest('.modebar-group')).opacity === '1'")
        first = page.evaluate("document.activeElement.getAttribute('aria-label')")
        page.keyboard.press("ArrowLeft")
        last = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert first
        assert last
        assert first != last
        assert bar.locator("button[tabindex='0']").get_attribute("aria-label") == last
        page.keyboard.press("Home")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == first
        range_of = "() => document.querySelector('.nm-plot')._fullLayout.xaxis.range.join()"
        before = page.evaluate(range_of)
        page.get_by_role("button", name="Zoom in").focus()
        page.keyboard.press("Enter")
        page.wait_for_function(f"before => ({range_of})() !== before", arg=before)
        picture = page.locator(".nm-figure svg[role=img]")
        assert picture.count() == 1 and "Effect of each head" in picture.get_attribute("aria-label")


def test_motion_only_where_it_is_wanted(browser, small):
    for wanted, behaviour in (("no-preference", "smooth"), ("reduce", "auto")):
        with Visit(browser, folder_url(small), reduced_motion=wanted) as visit:
            assert (
                visit.open("data.html", draw=False).evaluate(
                    "getComputedStyle(document.documentElement).scrollBehavior"
                )
                == behaviour
            )


def test_colour_scales_follow_the_theme(browser, small):
    "A scale of the library that is white in the middle is dark there on a dark page; another is left as it is."
    from namemovers.plots import DIVERGING, SEQUENTIAL

    script = (site.ASSETS / "figures.js").read_text()
    for scale in (DIVERGING, SEQUENTIAL):
        assert json.dumps([colour for _, colour in scale]) in script
    with Visit(browser, folder_url(small)) as visit:
        page = visit.open("index.html")
        scale = lambda: page.evaluate("document.querySelector('.nm-plot').data[0].colorscale.map(c => c[1])")
        page.evaluate(
            """scale => {
                const s = document.querySelector('.nm-figure script'), f = JSON.parse(s.textContent);
                f.data[0].colorscale = scale;
                s.textContent = JSON.stringify(f);
            }""",
            DIVERGING,
        )
        visit.look(1300, "dark")
        assert scale()[3] == "#2a2f38" and len(scale()) == len(DIVERGING)
        visit.look(1300, "light")
        assert scale() == [colour for _, colour in DIVERGING]


HOSTILE = [
    "<script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    '" onmouseover="window.hacked=1',
    "' onfocus='window.hacked=1",
    "<a href='javascript:window.hacked=1'>x</a>",
    "\u202eabc\u200b\u2066d",
    "````````\n<script>window.hacked=1</script>",
    "${window.hacked=1}",
    "\u2028window.hacked=1//",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    "Strings that a tokenizer or a user may bring, wherever a page shows one."
    import numpy as np
    import pandas as pd
    import xarray as xr
    from namemovers import plots

    folder = tmp_path_factory.mktemp("hostile")
    n = len(HOSTILE)
    grid = xr.DataArray(
        np.random.default_rng(0).normal(size=(3, n, 8)),
        dims=("layer", "position", "prompt"),
        name="effect",
        coords={"position": HOSTILE, "layer": range(3)},
    )
    raw = go.Figure(
        go.Heatmap(z=[[1, 2]], text=[HOSTILE[:2]], texttemplate="%{text}", hovertext=[HOSTILE[2:4]]),
        {"title": {"text": HOSTILE[6] + HOSTILE[0]}},
    )
    figures = [
        plots.heatmap(grid, title=HOSTILE[0], labels=HOSTILE),
        plots.attention(np.eye(n), HOSTILE, title=HOSTILE[6]),
        plots.lines(grid.isel(layer=0), labels=HOSTILE, title=HOSTILE[1]),
        plots.bars({name: grid.isel(layer=0) for name in HOSTILE[:2]}, labels=HOSTILE),
        plots.points(grid.isel(layer=0), grid.isel(layer=1), by="position", title=HOSTILE[3]),
        raw,
    ]
    frame = pd.DataFrame({"token": HOSTILE, "p": range(n)})
    stream = new_output("stream", name="stdout", text="\n".join(HOSTILE))
    write(
        folder,
        "nbs/index.ipynb",
        new_markdown_cell("# Hostile\n\n> Strings of others"),
        *[new_code_cell("f", outputs=[plot(figure)]) for figure in figures],
        new_markdown_cell("Words below."),
        new_code_cell(
            "t",
            outputs=[
                show(text_html=plots.table(frame, caption=HOSTILE[0]).data),
                show(text_html=frame.to_html()),
                show(text_plain="\n".join(HOSTILE)),
                stream,
            ],
        ),
    )
    (folder / "_quarto.yml").write_text("website: {title: x, sidebar: {contents: [index.ipynb]}}")
    out = folder / "out"
    site.build(folder, out, root=folder)
    return out


def test_strings_of_others_are_shown_and_never_obeyed(browser, hostile):
    with Visit(browser, folder_url(hostile)) as visit:
        page = visit.open("index.html")
        for figure in page.query_selector_all(".nm-plot"):  # what the mouse brings up
            figure.evaluate("figure => figure.scrollIntoView({ block: 'center', behavior: 'instant' })")
            places = figure.evaluate("""plot => {
                const marks = [...plot.querySelectorAll('.hm image, .points path, .bars .point path')].slice(0, 40);
                return marks.filter((_, i) => i % 8 === 0).map(el => {
                    const box = el.getBoundingClientRect(), picture = el.localName === 'image';
                    return [box.left + box.width * (picture ? 0.2 : 0.5), box.top + box.height * (picture ? 0.8 : 0.5)];
                });
            }""")
            assert places
            for x, y in places:
                page.mouse.move(x - 2, y)
                page.mouse.move(x, y)
                page.wait_for_timeout(120)
            assert figure.evaluate("plot => plot.querySelectorAll('.hoverlayer text').length") > 0
        assert page.evaluate("window.hacked") is None
        assert (
            page.locator(
                "article img, article [onerror], article [onmouseover], article [onfocus], "
                "article a[href^='javascript'], .main-svg a"
            ).count()
            == 0
        )
        assert page.locator("article script:not([type='application/json'])").count() == 0
        everything = page.evaluate(
            "[document.title, document.querySelector('article').textContent.replace(/\\n/g, ''), "
            "...[...document.querySelectorAll('[aria-label]')].map(el => el.getAttribute('aria-label'))].join('')"
        )
        drawn = page.evaluate("[...document.querySelectorAll('article svg text')].map(t => t.textContent).join('')")
        for text in (everything, drawn):
            assert not re.search("[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]", text)
        assert "<script>window.hacked=1</script>" in drawn and "\\u202eabc" in drawn
        tables = page.locator("article table").all_inner_texts()
        assert len(tables) == 2
        assert all("<script>window.hacked=1</script>" in table and "\\u202eabc" in table for table in tables)
        assert page.locator(".output.stdout pre").inner_text().count("<script>window.hacked=1</script>") == 3
        page.keyboard.press("/")
        page.wait_for_function("window.MiniSearch && window.searchIndex")
        page.keyboard.type("<img src=x onerror='window.hacked=1'> hacked")
        page.wait_for_timeout(200)
        assert page.locator("#search-hits img, #search-hits script").count() == 0
        assert page.evaluate("window.hacked") is None


# --- the project's own site -----------------------------------------------------------------------------------------


def own_pages():
    try:
        return site.read_pages(site.read_config(ROOT))
    except ValueError:
        return []


def test_every_notebook_is_on_the_site():
    listed = {page.source for page in own_pages()}
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("nbs", "ioi_nbs")
        for path in (ROOT / folder).rglob("*.ipynb")
        if not re.search(r"/[._]", path.as_posix()[len(str(ROOT)) :])
    }
    assert there <= listed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The project's site, built once."
    missing = [
        page.source for page in own_pages() if page.staged != site.GENERATED and not (ROOT / page.source).is_file()
    ]
    assert not missing
    out = tmp_path_factory.mktemp("whole") / "site"
    site.build(ROOT, out, root=ROOT)
    return out


@pytest.fixture(scope="module")
def tour(browser, whole):
    with Visit(browser, folder_url(whole)) as visit:
        yield visit


def test_the_projects_site(whole):
    config = site.read_config(ROOT)
    moved = set(config["redirects"])
    assert {"core/site.html", "core/study.html"} <= moved
    assert set(html_pages(whole)) == {page.url for page in own_pages()} | moved
    # nbdev's link to a source that has no address
    assert not any("float:right; font-size" in text_of(page) for page in whole.rglob("*.html"))
    titles = [re.search(r"<title>(.*?)</title>", text_of(page))[1] for page in whole.rglob("*.html")]
    assert len(titles) - len(set(titles)) <= len(titles) // 4, titles  # the two tasks' pages share theirs


@pytest.mark.parametrize("name", [page.url for page in own_pages()])
def test_a_page_for_everybody(tour, name):
    """Light and wide, then dark and narrow: contrast, words for figures, focus, order, nothing cut, nothing too
    wide; then by Tab alone."""
    tour.wrong.clear()
    tour.page.set_viewport_size({"width": 1300, "height": 900})
    tour.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    page = tour.open(name)
    wide = tour.audit()
    assert page.evaluate(FITS) == []
    tour.tab_through()
    tour.look(360, "dark")
    narrow = tour.audit()
    wrong = sorted({f"light, wide: {w}" for w in wide} | {f"dark, narrow: {w}" for w in narrow}) + tour.wrong
    assert not wrong, "\n".join([f"{len(wrong)} defects of {name}", *wrong[:30]])
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"  # motion is not wanted


def test_without_javascript(browser, whole):
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 360, "height": 800}, color_scheme="dark"
    )
    page = context.new_page()
    for name in ("index.html", "activation_patching.html", "ioi_nbs/comparison.html"):
        page.goto(folder_url(whole) + name)
        assert page.locator("h1").is_visible() and page.locator("main p").first.is_visible()
        # ways on
        assert page.locator("#page-list a").first.is_visible() and page.locator("nav.turn a").first.is_visible()
        # nothing that does nothing
        assert not page.locator(".menu, .theme, .search-open, .nm-plot").locator("visible=true").count()
        figures = page.locator(".nm-figure")
        assert figures.count() and all("Figure: " in figures.nth(i).inner_text() for i in range(figures.count()))
        body, head = page.locator("body").bounding_box(), page.locator("header.top").bounding_box()
        assert body["width"] <= 360 and head["width"] <= 360
    context.close()


def test_the_site_of_a_clone_is_built_from_what_the_study_executed(tree, tmp_path, monkeypatch):
    """As the study and the command do it: from the executed copies where there are some, else from the notebooks
    themselves."""
    from press.processes import build_site

    monkeypatch.setenv("MODEL", "")
    root = tmp_path / "clone"
    shutil.copytree(tree, root)
    (root / "settings.ini").write_text("[study]\nmodel = mini\n")
    assert build_site(root) == root / "_site" / "index.html"
    copies = root / "results" / "mini" / "notebooks"
    for folder in ("nbs", "ioi_nbs"):
        shutil.copytree(root / folder, copies / folder)
    path = copies / "nbs" / "00_data.ipynb"
    path.write_text(path.read_text().replace("shown as executed", "shown as executed by the study"))
    build_site(root)
    assert "executed by the study" in text_of(root / "_site" / "data.html")
