"""Links between notebooks become links between pages.

In a notebook a link names a notebook (`01_logit_lens.ipynb`), so that it works in Jupyter; nbdev turns the name of a
function in backticks into a link to its documentation. On the site both must name a page, relative to the page that
holds them.
"""

import re
from collections.abc import Set
from pathlib import PurePosixPath
from posixpath import normpath, relpath
from urllib.parse import unquote, urlsplit

from .pages import Page


def _relink_target(target: str, page: Page, urls: dict[str, str], documented: Set[str]) -> str | None:
    """Where `target` (as written in `page`) leads on the site; None if it names a page that the site does not have."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path:
        return target
    if parts.path.startswith("/"):  # nbdev: the documentation of a function, from the site's root
        url = parts.path.lstrip("/")
        if url not in urls.values() or (parts.fragment and f"{url}#{parts.fragment}" not in documented):
            return None
    elif parts.path.endswith(".ipynb"):
        source = normpath(f"{PurePosixPath(page.source).parent}/{unquote(parts.path)}")
        if source not in urls:
            raise ValueError(
                f"{page.source}: the link to {parts.path} names no notebook of the site (see _quarto.yml)."
            )
        url = urls[source]
    else:
        return target
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    return relpath(url, PurePosixPath(page.url).parent.as_posix()) + fragment


_MD_LINK = re.compile(r"\[((?:[^\[\]\n]|\[[^\]\n]*\])*)\]\(([^()\s]+)((?:\s+\"[^\"\n]*\")?)\)")
_MD_REFERENCE = re.compile(r"^(\s{0,3}\[[^\]\n]+\]:\s+)(\S+)", re.M)
_HREF = re.compile(r"(<a\b[^>]*?\bhref=[\"'])([^\"']*)([\"'])")


def relink(
    text: str,  # Markdown or HTML of a page
    page: Page,
    urls: dict[str, str],  # page address of each notebook, by `Page.source`
    documented: Set[str] = frozenset(),  # addresses of the names that pages document, as `core/model.html#load_model`
) -> str:
    """Rewrite links to notebooks and to documented names into links between pages.

    Raises ValueError for a link to a notebook that is no page.
    """

    def inline(match):
        target = _relink_target(match[2], page, urls, documented)
        return match[1] if target is None else f"[{match[1]}]({target}{match[3]})"

    def other(match):
        return match[1] + (_relink_target(match[2], page, urls, documented) or "#") + "".join(match.groups()[2:])

    def outside_code(lines):
        return _HREF.sub(other, _MD_REFERENCE.sub(other, _MD_LINK.sub(inline, lines)))

    blocks = re.split(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", text, flags=re.M | re.S)
    return "".join(block if i % 2 else outside_code(block) for i, block in enumerate(blocks))
