"""What cells showed, as HTML.

A Jupyter output offers several representations. A page shows one: the plotly figure, else the saved widget, else
Markdown, HTML, an image, or plain text. Widgets need a running Python: what they showed last is saved in the notebook,
and that is what the page shows, outputs and figures as such, controls as their name and value, buttons not at all.
"""

import html
import json
import re

from .text import UNSEEN, plain, seen, strip_markup, text_of

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\u([0-9a-f]{4})")


def _attribute(text: str) -> str:
    """Text as the value of an HTML attribute."""
    return html.escape(text, quote=True)


# --- figures --------------------------------------------------------------------------------------------------------


def _label(layout: dict) -> str:
    """A figure's title, or what its axes show."""

    def text(title) -> str:
        words = title.get("text") if isinstance(title, dict) else title
        return strip_markup(words or "")

    axes = [text((layout.get(axis) or {}).get("title")) for axis in ("yaxis", "xaxis")]
    return text(layout.get("title")) or " against ".join(axis for axis in axes if axis) or "Figure"


def figure_html(
    figure: dict,  # plotly figure: `data`, `layout`
    reading: str = "",  # the words below it
) -> str:
    """A plotly figure as HTML that `figures.js` draws when it comes into view.

    The JSON stands in the page with `<`, `>` and `&` escaped, so that no text in it can end the script element.
    Who does not see the figure hears its title and the words below it.
    """
    layout = figure.get("layout") or {}
    title = seen(_label(layout))
    label = title + (". " + seen(reading) if reading else "")
    data = json.dumps(
        {key: figure[key] for key in ("data", "layout", "frames") if key in figure}, separators=(",", ":")
    )
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    data = _ESCAPED.sub(_written_out, data)
    height = int(layout.get("height") or 450)
    width = f"max-width:{int(layout['width'])}px;" if layout.get("width") else ""
    said = "; what it shows is said below" if reading else ""
    return (
        f'<figure class="nm-figure" aria-label="{_attribute(label)}" data-title="{_attribute(title)}">'
        f'<div class="nm-plot" style="{width}min-height:{height}px"></div>'
        f'<script type="application/json">{data}</script>'
        f"<noscript>Figure: {html.escape(title)}. It is drawn with JavaScript{said}.</noscript></figure>"
    )


def _written_out(match: re.Match) -> str:
    """An escaped sign of JSON; one that is not seen is escaped twice, so that its number is shown."""
    return f"{match[1]}\\\\u{match[2]}" if UNSEEN.match(chr(int(match[2], 16))) else match[0]


# --- widgets --------------------------------------------------------------------------------------------------------


def _widget(model_id: str, state: dict, reading: str = "") -> str:
    """What the widget `model_id` showed when the notebook was saved, as HTML."""
    values = state.get(model_id, {}).get("state", {})
    kind = state.get(model_id, {}).get("model_name", "")
    if "_data" in values and "_layout" in values:
        return figure_html({"data": values["_data"], "layout": values["_layout"]}, reading)
    if kind == "OutputModel":
        return "".join(_output_html(output, state, reading) for output in values.get("outputs", []))
    if "children" in values:
        return _children(values, state, reading)
    if kind in ("HTMLModel", "HTMLMathModel"):
        return f"<div>{values.get('value', '')}</div>"
    if kind == "LabelModel":
        return f"<p>{html.escape(str(values.get('value', '')))}</p>"
    return "" if kind == "ButtonModel" else _control(values)


def _children(values: dict, state: dict, reading: str) -> str:
    """What the widgets in a box or in tabs showed."""
    inner = [_widget(child.removeprefix("IPY_MODEL_"), state, reading) for child in values["children"]]
    titles = values.get("titles") or []
    titles = [*titles, *[""] * (len(inner) - len(titles))]
    headed = (
        f"<p><strong>{html.escape(title)}</strong></p>{shown}" if title and shown else shown
        for title, shown in zip(titles, inner)
    )
    return "".join(headed)


def _control(values: dict) -> str:
    """A control as its name and value."""
    choices, index = values.get("_options_labels"), values.get("index")
    value = choices[index] if choices and isinstance(index, int) else values.get("value")
    if value is None or isinstance(value, dict):
        return ""
    value = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    name = html.escape(values.get("description") or "value")
    return f"<dl><div><dt>{name}</dt><dd>{html.escape(str(value))}</dd></div></dl>"


def _widget_html(model_id: str, state: dict, reading: str = "") -> str:
    shown = _widget(model_id, state, reading).replace("</dl><dl>", "")
    if not shown:
        return ""
    note = '<p class="nm-widget-note">Interactive in the notebook; here as it was last shown.</p>'
    return f'<div class="nm-widget">{note if "<dl>" in shown else ""}{shown}</div>'


# --- tables and pictures --------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+\u2212]?[\d.,]+(?:e[-+]?\d+)?\s?%?|nan|NaN|[-+\u2212]?inf|[-\u2013\u2014]?")
_INDEX_NAME = re.compile(
    r"(<thead>\s*<tr>\s*<th>)(</th>.*?</tr>)\s*<tr>\s*<th>([^<]+)</th>(?:\s*<th></th>)+\s*</tr>\s*(?=</thead>)", re.S
)


def _dataframe(table: str) -> str:
    """pandas' HTML of a DataFrame: numbers flush right, words flush left, the index's name beside the headings."""
    table = re.sub(r' (?:border="\d+"|style="text-align: \w+;")', "", table)
    names = _INDEX_NAME.search(table)
    if names:
        table = table.replace(names[0], names[1] + names[3] + names[2])
    head, _, body = table.partition("</thead>")
    rows = [re.findall(r"<td>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1 or "span" in head:
        return table
    numeric = [all(_NUMBER.fullmatch(strip_markup(cell)) for cell in column) for column in zip(*rows)]
    cells = iter(numeric * len(rows))
    body = re.sub(r"<td>", lambda match: '<td class="num">' if next(cells) else "<td>", body)
    titles = head.count("<th>")
    flags = iter([False] * (titles - len(numeric)) + numeric)
    head = re.sub(r"<th>", lambda match: '<th class="num">' if next(flags, False) else "<th>", head)
    return f"{head}</thead>{body}"


def _image(data: dict, reading: str = "") -> str:
    for kind in ("image/png", "image/jpeg", "image/gif"):
        if kind in data:
            source = re.sub(r"\s", "", text_of(data[kind]))
            words = seen(reading or strip_markup(text_of(data.get("text/plain", ""))))
            picture = f'<img src="data:{kind};base64,{source}" alt="{_attribute(words)}">'
            return f'<figure class="nm-image">{picture}</figure>'
    return ""


def _html(text: str) -> str:
    """HTML that a cell showed, for either background."""
    shown = seen(re.sub(r"<style scoped>.*?</style>", "", text, flags=re.S))
    if re.match(r"\s*<pre\b", shown):  # from a terminal, in colours for one background
        shown = re.sub(r"(?<=[\"; ])(?:text-decoration-)?color: ?#\w{6};? ?", "", shown)
    frames = re.compile(r"<table[^>]*class=\"dataframe\".*?</table>", re.S)
    return frames.sub(lambda match: _dataframe(match[0]), shown)


# --- one output -----------------------------------------------------------------------------------------------------


def output_data(output: dict, state: dict, reading: str = "") -> dict:
    """The one representation of an output that the page shows, as a bundle of one entry (empty: nothing to show)."""
    data = output.get("data", {})
    if PLOTLY in data:
        return {"text/html": figure_html(data[PLOTLY], reading)}
    if WIDGET in data:
        shown = _widget_html(data[WIDGET].get("model_id", ""), state, reading)
        if shown:
            return {"text/html": shown}
        data = {key: value for key, value in data.items() if key == "text/html"}
    if "text/markdown" in data:
        return {"text/markdown": text_of(data["text/markdown"])}
    if "text/html" in data:
        return {"text/html": _html(text_of(data["text/html"]))}
    if "image/svg+xml" in data:
        label = f' role="img" aria-label="{_attribute(seen(reading))}"' if reading else ""
        return {"text/html": f'<figure class="nm-image"{label}>{text_of(data["image/svg+xml"])}</figure>'}
    if shown := _image(data, reading):
        return {"text/html": shown}
    if "text/latex" in data:
        return {"text/markdown": text_of(data["text/latex"])}
    if text := plain(text_of(data.get("text/plain", ""))):
        return {"text/plain": text}
    return {}


def _output_html(output: dict, state: dict, reading: str = "") -> str:
    """An output inside a saved widget, as HTML."""
    if output["output_type"] in ("stream", "error"):
        return f"<pre>{html.escape(plain(text_of(output.get('text') or output.get('traceback', ''))))}</pre>"
    data = output_data(output, state, reading)
    if "text/html" in data:
        return data["text/html"]
    return "".join(f"<pre>{html.escape(text)}</pre>" for text in data.values())
