"""One notebook, tidied: front matter in the first cell, every output in one representation, cell options carried out.

The options are Quarto's: `echo`, `output`, `include`, `code-fold`, `code-summary`.
"""

import html
import re
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

from .links import relink
from .outputs import PLOTLY, WIDGET, output_data
from .pages import Page
from .staging import options, source_of
from .text import plain, strip_markup, text_of

_STATE = "application/vnd.jupyter.widget-state+json"
_OPTIONS = re.compile(r"\A(?:\s*#\s*\|[^\n]*(?:\n|\Z))+")
# Without a repository's address nbdev's link to the source leads nowhere.
_NO_SOURCE = re.compile(r"^\[source\]\(/[^)]*\)\{[^}]*\}\s*", re.M)


class _Around(NamedTuple):
    """What a cell stands in."""

    following: Sequence[dict]  # the cells after it
    before: Sequence[dict]  # the cells before it
    state: dict  # of the notebook's widgets
    relinked: Callable[[str], str]  # rewrites the links of a text


# --- the words that go with a figure --------------------------------------------------------------------------------


def _paragraphs(outputs: Sequence[dict], cells: Sequence[dict] = ()) -> list[str]:
    """What is said in words, in order; a heading is a paragraph of its own."""
    texts = [
        text_of(output["data"]["text/markdown"]) for output in outputs if "text/markdown" in output.get("data", {})
    ]
    for cell in cells:
        texts += [source_of(cell)] if cell["cell_type"] == "markdown" else _paragraphs(cell.get("outputs", []))
    text = re.sub(r"^```.*?^```", "", "\n\n".join(texts), flags=re.M | re.S)
    text = re.sub(r"^(#+ .*)$", r"\n\n\1\n\n", text, flags=re.M)
    return [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _reading(outputs: Sequence[dict], around: _Around) -> str:
    """The words for who cannot see a figure: the first paragraph below it, else the last above it, of its section."""
    for paragraphs in (_paragraphs(outputs, around.following), _paragraphs([], around.before)[::-1]):
        for paragraph in paragraphs:
            if paragraph.startswith("#"):
                break  # another section
            if not paragraph.startswith(("|", ":::", "<", "---", "![")):
                without_bullets = re.sub(r"^\s*(?:[-*+]|\d+\.) ", "", paragraph, flags=re.M)
                return _cut(strip_markup(without_bullets), 600)
    return ""


def _cut(text: str, most: int) -> str:
    """Whole sentences of a text, at most `most` letters."""
    if len(text) <= most:
        return text
    end = text.rfind(". ", 0, most)
    return text[: end + 1] if end > most / 2 else text[: text.rfind(" ", 0, most)] + " …"


# --- outputs --------------------------------------------------------------------------------------------------------


def _is_seen(data: dict) -> bool:
    """Whether an output is something to look at."""
    return any(kind in (PLOTLY, WIDGET) or kind.startswith("image/") for kind in data)


def _tidy_output(output: dict, rest: Sequence[dict], around: _Around) -> dict | None:
    """One output as it is shown, with the outputs `rest` after it; None if nothing is left of it."""
    if output["output_type"] == "stream":
        text = plain(text_of(output["text"])).strip("\n")
        return {"output_type": "stream", "name": output["name"], "text": text} if text else None
    if output["output_type"] == "error":
        return {"output_type": "stream", "name": "stderr", "text": plain("\n".join(output["traceback"]))}
    given = output["data"]
    shown = output_data(output, around.state, _reading(rest, around) if _is_seen(given) else "")

    def finished(kind: str, text: str) -> str:
        as_it_is = kind == "text/plain" or PLOTLY in given
        return text if as_it_is else around.relinked(_NO_SOURCE.sub("", text))

    data = {kind: finished(kind, text) for kind, text in shown.items()}
    return {"output_type": "display_data", "metadata": {}, "data": data} if data else None


def _tidy_outputs(cell: dict, around: _Around) -> list[dict]:
    given = cell.get("outputs", [])
    tidied = (_tidy_output(output, given[i + 1 :], around) for i, output in enumerate(given))
    return [output for output in tidied if output is not None]


def _fence(text: str) -> str:
    """Backticks that nothing in `text` can close."""
    return "`" * (1 + max([7, *map(len, re.findall(r"`+", text))]))


def _fenced(outputs: list[dict]) -> str:
    """Outputs as Markdown: pandoc reads Markdown in a text cell, but not in an output."""
    blocks = []
    for output in outputs:
        fence = _fence("".join([output.get("text", ""), *output.get("data", {}).values()]))
        if output["output_type"] == "stream":
            blocks.append(f":::: {{.output .{output['name']}}}\n{fence}\n{output['text']}\n{fence}\n::::")
        for kind, text in output.get("data", {}).items():
            if kind == "text/markdown":  # not in a box: its headings belong to the page
                blocks.append(text)
            else:
                form = "{=html}" if kind == "text/html" else ""
                blocks.append(f":::: {{.output}}\n{fence}{form}\n{text}\n{fence}\n::::")
    return "\n\n".join(blocks)


# --- cells ----------------------------------------------------------------------------------------------------------


def _markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _tidy_text(cell: dict, relinked: Callable[[str], str]) -> list[dict]:
    source = source_of(cell)
    if source.startswith("<!-- WARNING: THIS FILE WAS AUTOGENERATED"):  # from nbdev, for whoever opens its cache
        return []
    for name, data in (cell.get("attachments") or {}).items():
        kind, content = next(iter(data.items()))
        source = source.replace(f"attachment:{name}", f"data:{kind};base64,{text_of(content)}")
    return [_markdown(relinked(source))]


def _folded(code: str, given: dict[str, str]) -> dict:
    """Code behind a line that opens it."""
    summary = html.escape(given.get("code-summary", "Code").strip("\"'"))
    opened = " open" if given["code-fold"] == "show" else ""
    fold = f'<details class="fold"{opened}><summary>{summary}</summary>'
    fence = _fence(code)
    start, end = f"{fence}{{=html}}\n{fold}\n{fence}", f"{fence}{{=html}}\n</details>\n{fence}"
    return _markdown(f"{start}\n\n{fence}python\n{code}\n{fence}\n\n{end}")


def _tidy_cell(cell: dict, around: _Around) -> list[dict]:
    """The cells that take the place of `cell`: none, or its code and what it showed."""
    if cell["cell_type"] == "markdown":
        return _tidy_text(cell, around.relinked)
    source = source_of(cell)
    given = options(source)
    if cell["cell_type"] != "code" or given.get("include") == "false":
        return []
    code = _OPTIONS.sub("", source).strip("\n")
    shown = "" if given.get("output") == "false" else _fenced(_tidy_outputs(cell, around))
    if code.startswith("show_doc("):
        return [_markdown(_signature(shown))] if shown else []
    cells = [_markdown(shown)] if shown else []
    if not code or given.get("echo") == "false":
        return cells
    if "code-fold" in given:
        return [_folded(code, given), *cells]
    return [{"cell_type": "code", "metadata": {}, "execution_count": None, "source": code, "outputs": []}, *cells]


def _signature(shown: str) -> str:
    """nbdev's heading, signature and docstring of a name, with types by the names that people use."""

    def line(text: str) -> str:
        code, sign, comment = text.partition("#")
        code = code.replace("__main__.", "").replace(":NoneType=None", "=None").replace(")->", ") -> ")
        code = re.sub(r"\b([a-z]\w*)(?:\.\w+)+\.([A-Z]\w*)", r"\1.\2", code)
        return re.sub(r"(?<=\w):(?=\w)", ": ", code) + sign + comment

    def clean(match: re.Match) -> str:
        lines = "\n".join(map(line, match[2].split("\n")))
        if re.match(r"def [A-Z]", lines):  # a class: what makes one
            lines = "class" + lines.removeprefix("def").replace(") -> None:", "):")
        return match[1] + lines + match[3]

    shown = re.sub(r"^(```python\n)(.*?)(^```)", clean, shown, count=1, flags=re.M | re.S)
    return re.sub(r"^---\s+(#+) (\S+)\s+", r"---\n\n\1 \2 {.api}\n\n", shown)


def _front_matter(cells: list[dict]) -> dict:
    """What nbdev made of a notebook's first cell."""
    import yaml

    if not cells or cells[0]["cell_type"] != "raw":
        return {}
    match = re.match(r"---\n(.*?)\n---", source_of(cells[0]), re.S)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def tidy(
    nb: dict,  # a notebook as `process_notebooks` gives it
    page: Page,  # its page; title and description are filled in from the notebook
    urls: dict[str, str],  # page address of each notebook
    documented: Set[str] = frozenset(),  # as for `relink`
) -> dict:
    """The notebook with nothing in it that a static page cannot show. Changes `page`, not `nb`."""
    cells = nb["cells"]
    if front := _front_matter(cells):
        page.title, page.description = str(front.get("title") or ""), str(front.get("description") or "")
        cells = cells[1:]
    if not page.title:
        raise ValueError(f"{page.source}: the first cell must be Markdown that opens with `# Title`.")
    state: dict[str, Any] = (nb.get("metadata", {}).get("widgets") or {}).get(_STATE, {}).get("state", {})

    def relinked(text: str) -> str:
        return relink(text, page, urls, documented)

    page.description = relinked(page.description)
    around = (_Around(cells[i + 1 :], cells[:i], state, relinked) for i in range(len(cells)))
    tidied = [new for cell, place in zip(cells, around) for new in _tidy_cell(cell, place)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    numbered = [{**cell, "id": f"cell-{i}"} for i, cell in enumerate(tidied)]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": numbered}
