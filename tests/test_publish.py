"""Files for papers: real PDF, SVG, PNG and HTML with fonts, sizes and provenance; tables; a page as one file."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from conftest import warned
import xarray as xr
from PIL import Image

from namemovers import plots
from namemovers.publish import (
    drawing,
    figures,
    lacking,
    latex_text,
    look,
    notes,
    read_provenance,
    save_figure,
    save_table,
    tables,
)
from namemovers.stats import summarise
from press.page import export_page

ROOT = Path(__file__).parents[1]
WRITEUP = ROOT / "nbs" / "writeup.ipynb"
SVG = "{http://www.w3.org/2000/svg}"
N = 16  # prompts: enough for a cell among fifteen to be significant
ATTRS = dict(
    model="mini",
    weights_hash="c0ffee" * 10,
    task="mrs",
    n=N,
    seed=3,
    corruption="switch_subjects",
    namemovers_version="0.1.0",
    note='a <b> & "ü"',
)


@pytest.fixture(scope="module")
def browser():
    if wrong := lacking():
        if os.environ.get("CI"):
            pytest.fail(f"CI must write PDF, SVG and PNG, and lacks {wrong}.")
        pytest.skip(f"lacking {wrong}")


@pytest.fixture(scope="module")
def result():
    values = np.random.default_rng(0).normal(0.1, 0.2, (3, 5, N))
    values[1, 2] += 2
    values[2, 0] -= 1
    return xr.Dataset(
        {"effect": (("layer", "head", "prompt"), values)}, coords={"layer": range(3), "head": range(5)}, attrs=ATTRS
    )


@pytest.fixture(scope="module")
def figure(result):
    return plots.heatmap(
        summarise(result.effect, n_resamples=199),
        title="Heads <of> mini & what they do: a title that is too long for one column of a paper",
    )


@pytest.fixture(scope="module")
def files(browser, figure, result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return {
        end: save_figure(figure, folder / f"heads.{end}", columns=1, result=result)
        for end in ("pdf", "svg", "png", "html")
    }


def content(pdf):
    from pypdf import PdfReader

    return PdfReader(pdf)


def fonts(pdf):
    "Name of each font of a PDF, and the length of its font file, by pypdf; None where it is not embedded."
    found = {}
    for page in content(pdf).pages:
        for ref in (page["/Resources"].get("/Font") or {}).values():
            font = ref.get_object()
            inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
            drawn = "/CharProcs" in font  # Type 3: glyphs are in the file as drawings
            what = inner.get("/FontDescriptor", {})
            file = next((what[k] for k in ("/FontFile", "/FontFile2", "/FontFile3") if k in what), None)
            found[str(font.get("/BaseFont", ref))] = (
                1 if drawn else len(file.get_object().get_data()) if file is not None else None
            )
    return found


# ---- figures


def test_pdf_has_its_size_fonts_and_text(files):
    reader = content(files["pdf"])
    assert len(reader.pages) == 1
    box = reader.pages[0].mediabox
    assert float(box.width) == pytest.approx(3.25 * 72, abs=0.5) and 100 < float(box.height) < 300
    embedded = fonts(files["pdf"])
    assert embedded and all(embedded.values()) and any("Inter" in name for name in embedded)
    text = " ".join(reader.pages[0].extract_text().split())
    assert "Heads <of> mini & what they do" in text and "layer" in text and "head" in text and "1 clean" in text
    images = [
        o
        for o in (reader.pages[0]["/Resources"].get("/XObject") or {}).values()
        if o.get_object().get("/Subtype") == "/Image"
    ]
    assert not images, "cells are to be vectors"


def test_svg_parses_and_is_complete(files, figure):
    root = ET.fromstring(files["svg"].read_text(encoding="utf-8"))
    assert root.tag == SVG + "svg" and root.get("width") == "3.2500in" and root.get("height").endswith("in")
    text = files["svg"].read_text(encoding="utf-8")
    assert "data:font/woff2;base64," in text and not re.search(r'(?:href|src)="https?:', text)
    cells = root.findall(f".//{SVG}g[@class='cells']/{SVG}rect")
    assert len(cells) == 15 and not root.findall(f".//{SVG}image")
    colours = {c.get("fill") for c in cells}
    assert len(colours) > 5
    wide, tall = map(float, root.get("viewBox").split()[2:])
    for t in root.iter(SVG + "text"):  # the title is broken, so that no line leaves the figure
        longest = max([len(t.text or "")] + [len(s.text or "") for s in t])
        assert longest * 5 < wide


def test_png_shows_something_at_its_resolution(files):
    with Image.open(files["png"]) as image:
        image.verify()  # the sums of its chunks
    with Image.open(files["png"]) as image:
        pixels, dpi = np.asarray(image), image.info["dpi"]
    tall, wide = pixels.shape[:2]
    assert abs(wide - 3.25 * 300) <= 1 and tall > 300
    assert [round(d / 0.0254) for d in dpi] == [11811, 11811]
    assert len(np.unique(pixels[::3, ::3].reshape(-1, pixels.shape[2]), axis=0)) > 20
    assert (pixels[:3, :3, :3] == 255).all()  # paper is white, also in a viewer with a dark ground
    dark = np.array([0x12, 0x3F, 0x7C])  # the largest effect
    assert (np.abs(pixels[..., :3].astype(int) - dark).sum(-1) < 12).mean() > 0.01


def test_all_say_where_they_come_from(files):
    notes = {end: read_provenance(path) for end, path in files.items()}
    for about in notes.values():
        assert {k: about[k] for k in ATTRS} == ATTRS
        assert about["made_by"].startswith("namemovers ")
        assert about["title"].startswith("Heads <of> mini & what they do")
    assert len({json.dumps(a, sort_keys=True) for a in notes.values()}) == 1
    info = content(files["pdf"]).metadata
    assert info["/Title"].startswith("Heads <of> mini")
    assert info["/Creator"].startswith("namemovers")
    assert "/CreationDate" not in info


def test_the_same_figure_gives_the_same_file(browser, figure, result, files, tmp_path):
    for end in ("pdf", "html"):
        assert (
            save_figure(figure, tmp_path / f"other.{end}", columns=1, result=result).read_bytes()
            == files[end].read_bytes()
        ), end
    assert figure.layout.width and "Inter" not in str(figure.layout.font), "the figure itself is left as it was"


def test_width_height_and_title(browser, figure, tmp_path):
    page = content(save_figure(figure, tmp_path / "a.pdf", width=5, height=2, title=False)).pages[0]
    assert (float(page.mediabox.width), float(page.mediabox.height)) == (
        pytest.approx(360, abs=0.5),
        pytest.approx(144, abs=0.5),
    )
    assert "Heads" not in page.extract_text() and read_provenance(tmp_path / "a.pdf")["title"].startswith("Heads")


def test_layout():
    wide, scale = look.laid_out(plots.heatmap(xr.DataArray(np.eye(4), dims=("layer", "head"))), 6.75)
    assert wide.layout.width * scale == pytest.approx(6.75 * 96) and 13 * scale * 0.75 == pytest.approx(8, rel=0.01)
    fixed, _ = look.laid_out(wide, 3.25, aspect=2)
    assert fixed.layout.width / fixed.layout.height == pytest.approx(2, rel=0.01)
    long = go.Figure(
        go.Scatter(y=[1, 2]), layout=dict(xaxis_title="a name of an axis that is much too long for a column of a paper")
    )
    assert "<br>" in look.laid_out(long, 3.25)[0].layout.xaxis.title.text
    assert "<br>" not in look.laid_out(long, 6.75)[0].layout.xaxis.title.text
    level = go.Figure(
        go.Bar(y=[1] * 8), layout=dict(xaxis=dict(tickvals=list(range(8)), ticktext=["L10H10"] * 8, tickangle=0))
    )
    assert look.laid_out(level, 3.25)[0].layout.xaxis.tickangle == -60
    assert look.laid_out(level, 6.75)[0].layout.xaxis.tickangle == 0
    graph = plots.graph(pd.DataFrame({"sender": ["L0H0", "L1H11"], "receiver": ["L1H11", "logits"]}))
    with warned("columns=2"):
        laid, scale = look.laid_out(graph, 3.25)
    assert laid.layout.width == graph.layout.width and laid.layout.width * scale == pytest.approx(3.25 * 96)


def test_html_makes_no_request(browser, files):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=drawing.browser_path(), args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 900, "height": 700})
        asked, wrong = [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.goto(files["html"].as_uri())
        page.wait_for_selector(".heatmaplayer image")
        assert not wrong
        assert not [u for u in asked if not u.startswith(("data:", "blob:")) and u != files["html"].as_uri()]
        assert page.evaluate("document.fonts.check('13px Inter')")
        assert "Inter" in page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fontFamily")
        chromium.close()


def test_several_results(figure, result, tmp_path):
    other = result.assign_attrs(task="ioi", corruption="switch_s2")
    for many in ([result, other], {"MRS": result, "IOI": other}):
        about = read_provenance(save_figure(figure, tmp_path / "x.html", result=many))
        assert about["task"] == ["mrs", "ioi"]
        assert about["n"] == N
        assert about["corruption"] == ["switch_subjects", "switch_s2"]
    assert set(read_provenance(save_figure(figure, tmp_path / "x.html"))) == {"title", "made_by"}


@pytest.mark.parametrize(
    "name, given, says",
    [
        ("x.jpg", {}, r"path must end in \.pdf, \.svg, \.png or \.html"),
        ("x", {}, "path must end"),
        ("nowhere/x.pdf", {}, "no folder"),
        ("x.pdf", dict(columns=3), "columns must be 1 or 2"),
        ("x.pdf", dict(columns=True), "columns: True is no such number"),
        ("x.pdf", dict(columns=1, width=3), "both set the width"),
        ("x.pdf", dict(height=1, aspect=2), "both set the height"),
        ("x.pdf", dict(width=-1), "width must be"),
        ("x.png", dict(dpi=0), "dpi: 0 is no such number"),
        ("x.pdf", dict(result=3), "result must be"),
        ("x.pdf", dict(result=xr.DataArray([1.0])), "no provenance"),
    ],
)
def test_wrong_arguments(figure, tmp_path, name, given, says):
    with pytest.raises(ValueError, match=says):
        save_figure(figure, tmp_path / name, **given)
    assert not list(tmp_path.iterdir())


def test_not_a_figure(tmp_path):
    with pytest.raises(ValueError, match="fig: .* is no plotly figure"):
        save_figure(pd.DataFrame(), tmp_path / "x.pdf")


def test_without_chromium(figure, tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    from choreographer.browsers import chromium

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    for name in ("get_chrome_download_path", "get_old_chrome_download_path"):
        monkeypatch.setattr(chromium, name, lambda *a, **k: None)
    assert drawing.browser_path() is None
    for end in ("pdf", "svg", "png"):
        with pytest.raises(RuntimeError, match="apt-get install chromium"):
            save_figure(figure, tmp_path / f"x.{end}")
    with pytest.raises(RuntimeError, match="apt-get install chromium"):
        export_page(WRITEUP, tmp_path / "x.pdf")
    assert not list(tmp_path.iterdir())
    assert save_figure(figure, tmp_path / "x.html").is_file()  # which needs neither


def test_without_kaleido(figure, tmp_path, monkeypatch):
    there = drawing.find_spec
    for module in (drawing, notes):
        monkeypatch.setattr(
            module, "find_spec", lambda name: None if name in ("kaleido", "pypdf", "PIL") else there(name)
        )
    with pytest.raises(RuntimeError, match=r"kaleido and pypdf and pillow: pip install 'namemovers\[figures\]'"):
        save_figure(figure, tmp_path / "x.svg")
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(ImportError, match=r"namemovers\[figures\]"):
        read_provenance(tmp_path / "x.pdf")
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    with pytest.raises(ImportError, match=r"Pillow.*namemovers\[figures\]"):
        read_provenance(tmp_path / "x.png")


def test_whole_or_not_at_all(figure, tmp_path, monkeypatch):
    path = tmp_path / "x.svg"
    path.write_text("what was there")

    def breaks(*a):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", breaks)
    for end, save in dict(html=save_figure, tex=save_table).items():
        with pytest.raises(OSError, match="disk full"):
            save(figure if end == "html" else pd.DataFrame({"a": [1]}), tmp_path / f"y.{end}")
    monkeypatch.undo()
    monkeypatch.setattr(figures, "with_browser", breaks)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.svg"] and path.read_text() == "what was there"


def test_nothing_to_read(tmp_path):
    for name, data, says in [
        ("a.svg", b"<svg/>", "holds no provenance"),
        ("a.html", b"<html>", "holds no provenance"),
        ("a.tex", b"x", "holds no provenance"),
        ("a.png", b"x", "is no PNG"),
        ("a.pdf", b"x", "is no PDF"),
        ("a.csv", b"a\n1", "no other kind"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=says):
            read_provenance(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file"):
        read_provenance(tmp_path / "none.svg")


# ---- tables

HARD = pd.DataFrame(
    {
        "who_#1": ["50 % & more", "a_b^c~d\\e", "[x] {y} $z$", "*star", "<b> → −2 ≥ α₁ “q” --n"],
        "effect": [0.123456789, -1.5, np.nan, 1e-9, 2.0],
        "n": [1, 2, 3, 4, 5],
        "ok": [True, False, True, True, False],
    }
)


def body(tex):
    "Rows of a LaTeX table, split into cells."
    inside = re.search(r"\\toprule\n(.*)\\bottomrule", tex, re.S)[1]
    rows = [l.strip() for l in inside.split("\n") if l.strip() and l.strip() != r"\midrule"]
    assert all(r.endswith(r"\\") for r in rows)
    return [re.split(r"(?<!\\) & ", r.removesuffix(r"\\").rstrip()) for r in rows]


def balanced(tex):
    plain = re.sub(r"\\[\\{}$%&#_]", "", "\n".join(l for l in tex.split("\n") if not l.startswith("%")))
    depth = 0
    for c in plain:
        depth += {"{": 1, "}": -1}.get(c, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[#%~^<>]|(?<!\$)_", plain.replace("$_", "").replace("$^", ""))
    opened = re.findall(r"\\begin\{(\w+)\}", plain)
    assert opened == re.findall(r"\\end\{(\w+)\}", plain)[::-1]


def test_latex(tmp_path, result):
    tex = save_table(HARD, tmp_path / "t.tex", caption="100 % of_it", label="tab:hard", result=result).read_text(
        encoding="utf-8"
    )
    balanced(tex)
    rows = body(tex)
    assert re.search(r"\\begin\{tabular\}\{(\w+)\}", tex)[1] == "lrrl" and all(len(r) == 4 for r in rows)
    assert r"\caption{100 \% of\_it}" in tex and r"\label{tab:hard}" in tex and "booktabs" in tex
    assert rows[0] == [r"who\_\#1", "effect", "n", "ok"]
    assert rows[1] == [r"50 \% \& more", "0.12", "1", "yes"] and rows[2][1] == "$-$1.50" and rows[3][1] == "--"
    assert rows[3][0].startswith("{}[") and rows[4][0].startswith("{}*")
    assert rows[5][0] == r"\textless{}b\textgreater{} $\rightarrow$ $-$2 $\geq$ $\alpha$$_1$ ``q'' -{}-n"
    assert read_provenance(tmp_path / "t.tex")["weights_hash"] == ATTRS["weights_hash"]
    bare = save_table(HARD, tmp_path / "t.tex").read_text()
    assert "table}" not in bare and "centering" not in bare


def test_latex_compiles(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not on the PATH; test_latex looks at braces, columns and escapes")
    save_table(HARD, tmp_path / "t.tex", caption="100 % of_it", label="tab:hard")
    save_table(pd.DataFrame({"sign": list(tables.TEX)}), tmp_path / "signs.tex")
    (tmp_path / "p.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
        "\\input{t.tex}\\tiny\\input{signs.tex}\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "p.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-1500:]


def test_latex_text_escapes_every_sign():
    for sign in "&%$#_{}~^\\<>|":
        assert latex_text(sign) != sign and sign not in re.sub(r"\\[&%$#_{}]|\\text\w+\{\}", "", latex_text(sign))
    assert latex_text("\x07") == r"\textbackslash{}x07"


def test_csv_comes_back(tmp_path, result):
    back = pd.read_csv(save_table(HARD, tmp_path / "t.csv"))
    pd.testing.assert_frame_equal(back, HARD)
    summary = summarise(result.effect, n_resamples=199)
    back = pd.read_csv(save_table(summary, tmp_path / "s.csv"))
    assert len(back) == 15 and back["head"][0] == "L1H2" and (back["mean"].abs().diff().dropna() <= 0).all()
    for row in back.itertuples():
        layer, head = map(int, re.fullmatch(r"L(\d+)H(\d+)", row.head).groups())
        here = summary.sel(layer=layer, head=head)
        assert row.mean == float(here["mean"])
        assert row.low == float(here.low)
        assert row.q == float(here.q)
        assert row.significant == bool(here.significant)
        assert row.n == N


def test_tables_of_every_kind(tmp_path, result):
    summary = summarise(result.effect, n_resamples=599)
    rows = body(save_table(summary.where(summary.significant), tmp_path / "s.tex", result=result).read_text())
    assert rows[0] == ["head", "effect (0 corrupted, 1 clean)", r"95 \% interval", "q", "n"]
    assert len(rows) == 1 + int(summary.significant.sum())
    low, high = (float(summary[v].sel(layer=1, head=2)) for v in ("low", "high"))
    assert rows[1][0] == "L1H2" and rows[1][2] == f"{low:.2f} to {high:.2f}" and rows[1][4] == str(N)
    shown = plots.table(HARD, caption="a_b")
    tex = save_table(shown, tmp_path / "h.tex").read_text()
    balanced(tex)
    assert r"\caption{a\_b}" in tex and body(tex)[2][1:] == ["$-$1.50", "2", "no"] and "{lrrl}" in tex
    with open(save_table(shown, tmp_path / "h.csv"), encoding="utf-8", newline="") as f:
        assert list(csv.reader(f))[2] == ["a_b^c~d\\e", "-1.50", "2", "no"]
    assert body(save_table(HARD.set_index("n"), tmp_path / "i.tex", index=True).read_text())[0][0] == "n"
    assert read_provenance(save_table(result, tmp_path / "r.tex"))["task"] == "mrs"


@pytest.mark.parametrize(
    "table, given, says",
    [
        ([1], {}, "must be a DataFrame"),
        (HARD, dict(digits=-1), "digits"),
        (HARD, dict(label="a b}"), "label"),
        (pd.DataFrame(), {}, "no columns"),
        (pd.DataFrame({("a", "b"): [1]}), {}, "one row of column names"),
    ],
)
def test_wrong_tables(table, given, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        save_table(table, tmp_path / "x.tex", **given)
    with pytest.raises(ValueError, match=r"\.tex or \.csv"):
        save_table(HARD, tmp_path / "x.xlsx")


# ---- a page


def figures_of(notebook):
    return [
        o["data"]["application/vnd.plotly.v1+json"]
        for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for o in c.get("outputs", [])
        if "application/vnd.plotly.v1+json" in o.get("data", {})
    ]


@pytest.fixture(scope="module")
def pages(browser, result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writeup")
    return {end: export_page(WRITEUP, folder / f"writeup.{end}", result=result) for end in ("html", "pdf")}


def test_writeup_as_pdf(pages):
    reader = content(pages["pdf"])
    assert 5 <= len(reader.pages) <= 25
    assert all(float(p.mediabox.width) == pytest.approx(595, abs=1) for p in reader.pages)
    embedded = fonts(pages["pdf"])
    assert all(embedded.values()) and any("Inter" in name for name in embedded)
    text = " ".join(" ".join(p.extract_text() for p in reader.pages).split())
    squeezed = re.sub(r"\s", "", text)
    figures = figures_of(WRITEUP)
    assert len(figures) > 5
    for f in figures:
        title = re.sub(r"\s", "", re.sub(r"<[^>]+>", " ", f["layout"]["title"]["text"]))
        assert title in squeezed, title
        for axis in ("xaxis", "yaxis"):
            name = (f["layout"].get(axis, {}).get("title") or {}).get("text")
            assert not name or re.sub(r"\s|<br>", "", name) in squeezed, name
    for c in json.loads(WRITEUP.read_text(encoding="utf-8"))["cells"]:
        if c["cell_type"] == "markdown":
            for heading in re.findall(r"^#+ (.+)$", "".join(c["source"]), re.M):
                assert re.sub(r"\s", "", heading) in squeezed, heading
    assert "(drawnwithJavaScript)" not in squeezed and f"1 / {len(reader.pages)}" in text
    assert [o["/Title"] for o in reader.outline if not isinstance(o, list)], "headings are bookmarks"
    assert read_provenance(pages["pdf"])["weights_hash"] == ATTRS["weights_hash"]
    assert read_provenance(pages["pdf"])["notebook"] == "writeup.ipynb"
    for page in reader.pages:  # a heading is not the last thing on a page
        lines = [
            l.strip()
            for l in page.extract_text().split("\n")
            if l.strip() and not re.fullmatch(r"\d+ ?/ ?\d+|Write-up|\d+ / \d+.*", l.strip())
        ]
        assert lines and lines[-1] not in ("Question", "Tasks", "Methods", "Results", "Limits", "References")


def test_writeup_as_html(pages):
    from playwright.sync_api import sync_playwright

    assert read_provenance(pages["html"])["task"] == "mrs"
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=drawing.browser_path(), args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        asked, wrong = [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.goto(pages["html"].as_uri())
        boxes = page.locator(".nm-figure")
        assert boxes.count() == len(figures_of(WRITEUP))
        boxes.first.scroll_into_view_if_needed()
        page.wait_for_selector('.nm-figure[data-state="drawn"]')
        boxes.last.scroll_into_view_if_needed()
        page.wait_for_function("[...document.querySelectorAll('.nm-figure')].at(-1).dataset.state === 'drawn'")
        assert page.evaluate("document.fonts.check('16px Inter')")
        assert not [u for u in asked if not u.startswith(("data:", "blob:")) and u != pages["html"].as_uri()], asked
        assert not wrong, wrong
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        links = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))")
        assert links and not [l for l in links if not re.match(r"https?:|#|mailto:", l)]
        chromium.close()


def test_wrong_pages(tmp_path):
    for name in ("x.docx", "nowhere/x.html"):
        with pytest.raises(ValueError, match="path"):
            export_page(WRITEUP, tmp_path / name)
    with pytest.raises(ValueError, match="no notebook"):
        export_page(tmp_path / "none.ipynb", tmp_path / "x.html")
    with pytest.raises(ValueError, match="paper must be a4 or letter"):
        export_page(WRITEUP, tmp_path / "x.html", paper="a5")
    (tmp_path / "bad.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="is not a notebook"):
        export_page(tmp_path / "bad.ipynb", tmp_path / "x.html")
    (tmp_path / "new.ipynb").write_text('{"cells": []}')
    with pytest.raises(ValueError, match="no outputs"):
        export_page(tmp_path / "new.ipynb", tmp_path / "x.html")


def test_command(tmp_path):
    def call(*args):
        return subprocess.run(
            [sys.executable, "-m", "namemovers", "export", *args], cwd=ROOT, capture_output=True, text=True
        )

    done = call("claim", "--to", str(tmp_path / "x.html"))
    assert done.returncode == 2 and "NOTEBOOK" in done.stderr and done.stderr.count("\n") == 1
    done = call("first_patch", "--to", str(tmp_path / "x.html"))
    assert done.returncode == 0, done.stderr
    assert "A first patch" in (tmp_path / "x.html").read_text(encoding="utf-8")
    assert read_provenance(tmp_path / "x.html")["notebook"] == "first_patch.ipynb"
