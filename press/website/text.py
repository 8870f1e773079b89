"""Text from notebooks and terminals, made fit for a page."""

import html
import re

_ANSI = re.compile(r"\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)|\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


def plain(
    text: str,  # what a program wrote to a terminal
) -> str:
    """Text without terminal colours and with unseen signs written out.

    Of a line that was rewritten in place (a progress bar), what stood there last.
    """
    text = _ANSI.sub("", text)
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return seen(re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", "\n".join(lines)))


# What turns the order of a line's letters or shows nothing: in a token, say, that a notebook prints.
UNSEEN = re.compile("[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def seen(text: str) -> str:
    """Text with the signs that are not seen written out."""
    return UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def strip_markup(text: str) -> str:
    """Words of a piece of HTML or Markdown, for a reader who sees no layout."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.S)
    text = html.unescape(re.sub(r"<[^>]+>", " ", text))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\s+", " ", re.sub(r"[*`$#>|]", "", text)).strip()


def text_of(value: list[str] | str) -> str:
    """A text of a notebook, which may be a list of lines."""
    return "".join(value) if isinstance(value, list) else str(value)
