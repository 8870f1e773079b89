"""The search index: a list of sections.

It is given to MiniSearch in the browser as a script, so that search works from a folder on disk too. Names of heads are
taken from the figures as well: `L9H6` is often only there.
"""

import re
from html.parser import HTMLParser
from typing import Any

from .pages import Page
from .text import strip_markup


class _Sections(HTMLParser):
    """Splits a page at its headings."""

    def __init__(self):
        super().__init__()
        self.found: list[dict[str, Any]] = [{"id": "", "heading": "", "text": [], "code": []}]
        self.inside = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("h2", "h3", "h4") and attrs.get("id"):
            self.found.append({"id": attrs["id"], "heading": "", "text": [], "code": []})
        if tag in ("h2", "h3", "h4", "pre", "script", "style", "noscript", "annotation"):
            self.inside.append(tag)
        if tag == "figure" and attrs.get("aria-label"):
            self.found[-1]["text"].append(attrs["aria-label"])

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()
        if tag not in ("a", "b", "code", "em", "i", "mi", "mn", "mo", "span", "strong"):
            self.found[-1]["text"].append(" ")

    def handle_data(self, data):
        where = self.inside[-1] if self.inside else ""
        if where == "script":
            heads = sorted(set(re.findall(r"\bL\d+H\d+\b", data)))
            self.found[-1]["text"].append(" " + " ".join(heads[:200]) + " ")
        elif where.startswith("h"):
            self.found[-1]["heading"] += data
        elif where == "pre":
            self.found[-1]["code"].append(data)
        elif not where:
            self.found[-1]["text"].append(data)


def search_sections(
    body: str,  # HTML of the page
    page: Page,
    lead: str = "",  # HTML of the description below the title
) -> list[dict]:
    """What search knows of a page: heading, address, words and code of each section."""
    parser = _Sections()
    parser.feed(f"<p>{lead}</p>" + body)
    sections = []
    for section in parser.found:
        text, code = (re.sub(r"\s+", " ", "".join(section[kind])).strip() for kind in ("text", "code"))
        if text or code or section["heading"]:
            url = page.url + (f"#{section['id']}" if section["id"] else "")
            entry = {"page": strip_markup(page.title), "heading": section["heading"].strip(), "url": url}
            sections.append({**entry, "text": text, "code": code})
    return sections
