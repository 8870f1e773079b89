"""Tidied notebooks become pages.

Pandoc reads the notebook, speaks Quarto's Markdown, highlights the code, sets formulas in MathML and writes the table
of contents; the frame around it is `assets/page.html`.
"""

import html
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from string import Template

from .pages import ASSETS, GENERATED, Page
from .search import search_sections
from .text import strip_markup

# What Quarto's Markdown has beyond a notebook's.
_ON = """
    tex_math_dollars fenced_divs bracketed_spans fenced_code_attributes inline_code_attributes header_attributes
    link_attributes raw_attribute footnotes definition_lists pipe_tables table_captions table_attributes
    implicit_figures superscript subscript grid_tables multiline_tables fancy_lists startnum example_lists line_blocks
    auto_identifiers
""".split()
_OFF = ("gfm_auto_identifiers", "autolink_bare_uris")
_READER = "".join(["ipynb", *(f"+{name}" for name in _ON), *(f"-{name}" for name in _OFF), "+smart"])
_CUT = "<!-- contents end here -->"
_INTERVAL = re.compile(r"[-+\u2212\d.%]+ ?\[[^\]]{1,24}\]\*?")
_GITHUB = re.compile(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?$")


def _pandoc(text: str, reader: str, *args: str) -> str:
    from pypandoc import get_pandoc_path

    command = [get_pandoc_path(), "--from", reader, "--to", "html5", "--mathml", "--wrap=none", *args]
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"pandoc failed: {done.stderr.strip()}")
    return done.stdout


def _kind_of_cell(text: str) -> str:
    """How the text of a table's cell is set: words are not squeezed into a narrow column, intervals not broken."""
    if len(text) > 45:
        return "words"
    if _INTERVAL.fullmatch(text):
        return "interval"
    return "phrase" if len(text) > 16 else ""


def _table(table: str) -> str:
    """A table in a box that scrolls."""

    def cell(match: re.Match) -> str:
        kind = _kind_of_cell(strip_markup(match[2]))
        return f'<td{match[1]}><div class="{kind}">{match[2]}</div></td>' if kind else match[0]

    inner = re.sub(r"<td([^>]*)>(.*?)</td>", cell, table, flags=re.S)
    return f'<div class="table-scroll">{inner}</div>'


def notebook_html(
    nb: dict,  # of `tidy`
) -> tuple[str, str]:  # table of contents, body
    """A tidied notebook as HTML."""
    template, unbox = f"--template={ASSETS / 'body.html'}", f"--lua-filter={ASSETS / 'unbox.lua'}"
    shown = _pandoc(json.dumps(nb), _READER, "--toc", "--toc-depth=3", template, unbox)
    contents, body = shown.split(_CUT, 1)
    return contents.strip(), re.sub(r"<table\b.*?</table>", lambda match: _table(match[0]), body, flags=re.S)


def lead_html(page: Page) -> str:
    """A page's description as HTML."""
    if not page.description:
        return ""
    shown = _pandoc(page.description, _READER.replace("ipynb", "markdown", 1))
    return shown.strip().removeprefix("<p>").removesuffix("</p>")


def inline_markup(text: str) -> str:
    """A title's Markdown as HTML: code and emphasis, nothing else."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)


def _name(page: Page) -> str:
    return inline_markup(page.text or page.title)


def _navigation(pages: list[Page], current: Page) -> str:
    lines, section = ["<ul>"], ""
    for page in pages:
        if page.section != section:
            section = page.section
            lines.append(f"</ul><p>{html.escape(section)}</p><ul>")
        here = ' aria-current="page"' if page is current else ""
        lines.append(f'<li><a href="{current.root}{page.url}"{here}>{_name(page)}</a></li>')
    return "\n".join([*lines, "</ul>"]).replace("<ul>\n</ul>", "")


def _turn(pages: list[Page], current: Page) -> str:
    """Links to the pages before and after."""

    def link(page: Page, side: str, rel: str, word: str) -> str:
        return f'<a class="{side}" rel="{rel}" href="{current.root}{page.url}"><span>{word}</span>{_name(page)}</a>'

    at = pages.index(current)
    before = [link(pages[at - 1], "previous", "prev", "Previous")] if at else []
    after = [link(pages[at + 1], "next", "next", "Next")] if at + 1 < len(pages) else []
    return "".join(before + after)


def page_actions(page: Page, config: dict) -> str:
    """Links below the title: the notebook itself and, where the repository has an address, the notebook in Colab."""
    if page.staged == GENERATED:
        return ""
    links = [f'<a href="{page.root}notebooks/{page.source}" download>Download notebook</a>']
    site = config["website"]
    if match := _GITHUB.match(site.get("repo-url") or ""):
        place = f"{match[1]}/blob/{site.get('repo-branch', 'main')}/{page.source}"
        links.append(f'<a href="https://colab.research.google.com/github/{place}">Open in Colab</a>')
    return f'<p class="actions">{"".join(links)}</p>'


def _framed(frame: Template, page: Page, pages: list[Page], config: dict, contents: str, body: str, lead: str) -> str:
    """A whole page."""
    site = config["website"]
    title, name = site.get("title", ""), strip_markup(page.title)
    return frame.substitute(
        root=page.root,
        version=version("namemovers"),
        site_title=html.escape(title),
        head_title=html.escape(name if page.title == title else f"{name} – {title}"),
        description_attr=html.escape(strip_markup(page.description or site.get("description", "")), quote=True),
        navigation=_navigation(pages, page),
        contents=f"<details open><summary>On this page</summary>{contents}</details>" if contents else "",
        eyebrow=f'<p class="eyebrow">{html.escape(page.section)}</p>' if page.section else "",
        title=inline_markup(page.title),
        description=f'<p class="lead">{lead}</p>' if lead else "",
        actions=page_actions(page, config),
        body=body,
        turn=_turn(pages, page),
        footer=site.get("page-footer", ""),
    )


def render_pages(
    notebooks: dict[str, dict],  # tidied, by `Page.source`
    pages: list[Page],  # of the site
    config: dict,  # of `read_config`
    out: Path,  # the folder of the site
) -> None:
    """Write every page with pandoc into `out`, and the search index."""
    frame = Template((ASSETS / "page.html").read_text(encoding="utf-8"))
    with ThreadPoolExecutor(2) as pool:
        bodies = list(pool.map(lambda page: notebook_html(notebooks[page.source]), pages))
    index = []
    for page, (contents, body) in zip(pages, bodies):
        lead = lead_html(page)
        path = out / page.url
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_framed(frame, page, pages, config, contents, body, lead), encoding="utf-8")
        index += search_sections(body, page, lead)
    data = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
    (out / "assets" / "search-index.js").write_text(f"window.searchIndex={data}\n", encoding="utf-8")
