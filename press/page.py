"""A page as one file: HTML with its interactive figures, or PDF with the figures drawn as `save_figure` draws them.

Nothing is computed. Links to other notebooks and to places that do not travel with the page become plain words.
"""

import base64
import html
import json
import mimetypes
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import NamedTuple

import plotly.graph_objects as go

from namemovers.publish import drawing, look, notes

from .website import ASSETS, Page, notebook_html, process_notebooks, tidy
from .website.render import inline_markup, lead_html
from .website.staging import read_notebook
from .website.text import strip_markup

PAPERS = {"a4": (8.27, 11.69), "letter": (8.5, 11)}  # inches
_MARGIN = (0.8, 0.75)  # inches, at the sides and above and below
_FIGURE = re.compile(
    r'<figure class="nm-figure"([^>]*)>.*?<script type="application/json">(.*?)</script>.*?</figure>', re.S
)
_SOURCE = re.compile(r"""(<(?:img|source)\b[^>]*?\bsrc=["'])([^"']*)(["'])""")
_LINK = re.compile(r"<a\b([^>]*\bhref=[^>]*)>(.*?)</a>", re.S)


class _Shown(NamedTuple):
    """A notebook as the site shows it."""

    page: Page  # title and description
    contents: str
    body: str
    lead: str


def _unlinked(body: str) -> str:
    """A page without links that lead out of it to places that do not travel with it."""
    ids = set(re.findall(r'\bid="([^"]+)"', body))

    def one(match: re.Match) -> str:
        target = html.unescape(re.findall(r"""\bhref=["']([^"']*)""", match[1])[0])
        stays = re.match(r"(?:https?:|mailto:)", target) or (target.startswith("#") and target[1:] in ids)
        return match[0] if stays else match[2]

    return _LINK.sub(one, body)


def _images_inside(body: str, folder: Path) -> str:
    """A page whose pictures are part of it."""

    def one(match: re.Match) -> str:
        source = html.unescape(match[2])
        if source.startswith("data:"):
            return match[0]
        file = folder / source
        if re.match(r"(?:\w+:)?//", source) or not file.is_file():
            raise ValueError(
                f"The notebook shows {source}, which is no file beside it; a page by itself cannot load it."
            )
        kind = mimetypes.guess_type(source)[0] or "image/png"
        return f"{match[1]}data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}{match[3]}"

    return _SOURCE.sub(one, body)


class _Anywhere(dict):
    """Where a notebook's page is, for `relink`, which asks: links are judged afterwards."""

    def __contains__(self, key):
        return True

    def __missing__(self, key):
        return "elsewhere"


def _shown(notebook: Path) -> _Shown:
    with tempfile.TemporaryDirectory(prefix="namemovers-page-") as folder:
        source, stage = Path(folder) / "source" / "nbs", Path(folder) / "stage"
        for made in (source, stage):
            made.mkdir(parents=True)
        shutil.copyfile(notebook, source / notebook.name)
        page = Page(f"nbs/{notebook.name}")
        processed = process_notebooks(source.parent, [page], stage)[page.source]
        nb = tidy(processed, page, _Anywhere())
    contents, body = notebook_html(nb)
    return _Shown(page, contents, _images_inside(_unlinked(body), notebook.parent), _unlinked(lead_html(page)))


def _colophon(about: dict) -> str:
    """Where the page came from, in a line."""
    words = {key: about[key] for key in ("model", "task", "n", "seed") if key in about}
    several = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in words.items()}
    weights = [f"weights {str(about['weights_hash'])[:12]}"] if "weights_hash" in about else []
    return " · ".join([about["made_by"], *(f"{key} {value}" for key, value in several.items()), *weights])


def _framed(shown: _Shown, about: dict, style: str, scripts: str = "") -> str:
    page = shown.page
    aside = f"<details open><summary>On this page</summary>{shown.contents}</details>"
    return Template((ASSETS / "paper.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(strip_markup(page.title), quote=False),
        description=html.escape(strip_markup(page.description), quote=True),
        generator=about["made_by"],
        meta=notes.html_note(about),
        style=style,
        heading=inline_markup(page.title),
        lead=f'<p class="lead">{shown.lead}</p>' if shown.lead else "",
        body=shown.body,
        colophon=html.escape(_colophon(about), quote=False),
        scripts=scripts,
        contents=f'<aside class="contents">{aside}</aside>' if shown.contents else "",
    )


def _scripts() -> str:
    """What draws the figures of a page, inside the page."""
    import plotly

    library = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    library = library.replace("</script", "<\\/script")
    figures, place = (ASSETS / "figures.js").read_text(encoding="utf-8"), 'root + "assets/plotly.min.js"'
    if place not in figures:
        raise RuntimeError(f"figures.js does not load plotly as {place} any more.")
    here = 'new Blob([document.getElementById("plotly").textContent], { type: "text/javascript" })'
    figures = figures.replace(place, f"URL.createObjectURL({here})")
    return f'<script type="text/plain" id="plotly">{library}</script>\n<script>{figures}</script>'


def _check(notebook: Path, paper: str, pdf: bool) -> None:
    """Raise what `export_page` says it raises, before anything is made."""
    if paper not in PAPERS:
        raise ValueError(f"paper must be a4 or letter, but it is {paper!r}.")
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise ValueError(f"notebook: there is no notebook {str(notebook)!r}.")
    if not any(cell.get("outputs") for cell in read_notebook(notebook)["cells"]):
        raise ValueError(f"notebook: {str(notebook)!r} has no outputs; execute it first, e.g. by make notebooks.")
    needed = (("nbdev", "nbdev"), ("pypandoc_binary", "pypandoc"))
    if missing := [name for name, module in needed if find_spec(module) is None]:
        raise ImportError(f"Exporting a page needs {' and '.join(missing)}: pip install 'namemovers[notebooks,site]'.")
    if pdf and (wrong := drawing.lacking()):
        raise RuntimeError(f"To write PDF, SVG or PNG, install {wrong}.")


def export_page(
    notebook: str | Path,  # an executed notebook, e.g. "nbs/writeup.ipynb"
    path: str | Path,  # ends in .html or .pdf
    paper: str = "a4",  # of a PDF: a4 or letter
    result=None,  # what the page reports, for its provenance, as for `namemovers.publish.save_figure`
) -> Path:
    """Save an executed notebook as one HTML file or as PDF, and return its path.

    HTML: figures stay interactive; plotly, fonts, styles and pictures are inside, and no request leaves the file.
    PDF: figures are drawn as `save_figure` draws them, as wide as the text; headings stay with what they head, and
    figures, rows and boxes are not broken across pages. The file appears whole or not at all.
    Raises ValueError for a wrong argument, a notebook that was not executed, and a picture that is not there;
    RuntimeError or ImportError where something has to be installed.
    """
    path, notebook = notes.target(path, (".html", ".pdf")), Path(notebook)
    pdf = path.suffix.lower() == ".pdf"
    _check(notebook, paper, pdf)
    shown = _shown(notebook)
    about = notes.about(result, title=strip_markup(shown.page.title), notebook=notebook.name)
    sheets = [(ASSETS / name).read_text(encoding="utf-8") for name in ("site.css", "paper.css")]
    style = "".join([look.font_css(), *sheets])
    if pdf:
        printed = drawing.with_browser(lambda k: _printed(k, shown, about, style, paper))
        return notes.put(path, notes.pdf_noted(printed, about, about["title"]))
    return notes.put(path, _framed(shown, about, style, _scripts()).encode())


async def _printed(k, shown: _Shown, about: dict, style: str, paper: str) -> bytes:
    """The page as PDF, its figures drawn."""
    wide, tall = PAPERS[paper]
    room, drawn = wide - 2 * _MARGIN[0], []
    for i, (attrs, data) in enumerate(_FIGURE.findall(shown.body)):
        fig = go.Figure(json.loads(data), skip_invalid=True)
        inches = min(room, fig.layout.width * look.SCALE / 96) if fig.layout.width else room
        laid, scale = look.laid_out(fig, inches)
        svg = drawing.finished(await drawing.svg_of(k, laid), scale, f"nm{i}")[0]
        drawn.append(f'<figure class="nm-print"{attrs}>{svg}</figure>')
    turn = iter(drawn)
    body = _FIGURE.sub(lambda match: next(turn), shown.body)
    style += f"@page{{size:{wide}in {tall}in;margin:{_MARGIN[1]}in {_MARGIN[0]}in}}"
    small = f"font:7pt sans-serif;color:#5b6570;width:100%;padding:0 {_MARGIN[0]}in"
    title = f"<span>{html.escape(about['title'], quote=False)}</span>"
    number = '<span><span class="pageNumber"></span> / <span class="totalPages"></span></span>'
    return await drawing.print_page(
        k,
        _framed(shown._replace(body=body, contents=""), about, style),
        displayHeaderFooter=True,
        headerTemplate="<span></span>",
        footerTemplate=f'<div style="{small};display:flex;justify-content:space-between">{title}{number}</div>',
        generateTaggedPDF=True,
        generateDocumentOutline=True,
    )
