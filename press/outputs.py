"""What a notebook shows, compared with what it showed when it was committed.

Text must be the same but for what legitimately varies: times, addresses and random ids, and numbers within a tolerance.
Whole numbers must be the same. Figures are compared by their data, widgets by their state.
A cell whose output varies by its nature (a benchmark, say) is marked `#| varies`, and is only asked to run.
"""

import base64
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from .notebooks import directives

VARIES = "varies"  # the mark, as `#| varies`
RELATIVE = 1e-3  # tolerance of a number
NOISE = 1e-6  # of effects: what float32 leaves of a zero, on one machine and on another
ROUNDING = 1e-4  # where all numbers are smaller, q says no more than which way they were rounded
LEVEL = 0.05  # of q, which resampling gives: below it q is compared within 0.01, above it within 0.1

_PLOTLY = "application/vnd.plotly.v1+json"
_VIEW, _STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
_SHOWN = ("text/plain", "text/markdown", "text/html", "text/latex", "image/svg+xml")
_RANDOM = [
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b0x[0-9a-f]{5,}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\bT_[0-9a-f]{5}\b"), "ID"),  # of a styled table
    (re.compile(r"""\bid=(["']).*?\1"""), "ID"),
    (re.compile(r"\d[\d.,]*\s?(?:s|ms|µs|min)\b"), "TIME"),
    (re.compile(r"-{3,}"), "---"),  # a rule is as wide as what it is under
    (re.compile(r"\s+"), " "),
]
_NUMBER = re.compile(r"(?<![\w.])(?P<q>q = )?(?P<number>[-−+]?\d+(?:\.\d+)?(?:e[-−+]?\d+)?)(?![\w])")


def _plain(text: Any) -> str:
    text = "".join(text) if isinstance(text, list) else str(text)
    for pattern, instead in _RANDOM:
        text = pattern.sub(instead, text)
    return text.strip()


def _unit(number: str) -> float:
    """The value of one in the last place of a number as it is written; 0 for a whole number."""
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if not decimals and not exponent:
        return 0.0
    return 10.0 ** (int(exponent or 0) - decimals)


class _Numbers:
    """The numbers in a text, as they are written, and the text without them."""

    def __init__(self, text: str):
        found = [(bool(match["q"]), match["number"].replace("−", "-")) for match in _NUMBER.finditer(text)]
        self.words = _NUMBER.sub("NUMBER", text)
        self.written = [number for _, number in found]
        self.is_q = [is_q for is_q, _ in found]
        self.of_rounding = all(abs(float(number)) < ROUNDING for is_q, number in found if not is_q and _unit(number))


def _same_number(was: str, now: str, tolerance: float) -> bool:
    """Whether two numbers are the same but for rounding; whole numbers must be the same, and stay whole."""
    units, a, b = (_unit(was), _unit(now)), float(was), float(now)
    if a == b:
        return all(units) or not any(units)
    return any(units) and abs(a - b) <= max(1.01 * max(units), RELATIVE * abs(a), tolerance)


def same_text(committed: Any, now: Any) -> bool:
    """Whether two texts are the same but for what legitimately varies."""
    texts = [_plain(committed), _plain(now)]
    if texts[0] == texts[1]:
        return True
    old, new = map(_Numbers, texts)
    if old.words != new.words:
        return False
    for was, is_now, is_q in zip(old.written, new.written, old.is_q):
        if is_q and old.of_rounding:
            continue  # whether rounding errors are above zero
        insignificant = is_q and min(float(was), float(is_now)) > LEVEL
        tolerance = (0.1 if insignificant else 0.01) if is_q else NOISE
        if not _same_number(was, is_now, tolerance):
            return False
    return True


def _array(value: dict) -> np.ndarray:
    """An array as plotly keeps it."""
    return np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))


def _same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    finite = np.abs(a[np.isfinite(a)])
    size = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(a, b, rtol=RELATIVE, atol=max(RELATIVE * size, NOISE), equal_nan=True))


def _numeric(values: list) -> bool:
    return bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def different(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """The places at which two pieces of JSON differ by more than varies."""
    if isinstance(a, dict) and isinstance(b, dict):
        if "bdata" in a and "bdata" in b:
            if not _same_numbers(_array(a).astype(float), _array(b).astype(float)):
                yield where
            return
        for key in sorted(set(a) | set(b)):
            if key == "uid":
                continue
            if key in a and key in b:
                yield from different(a[key], b[key], f"{where}.{key}" if where else key)
            else:
                yield f"{where}.{key}" if where else key
    elif isinstance(a, list) and isinstance(b, list):
        if _numeric(a) and _numeric(b):
            if not _same_numbers(np.asarray(a, float), np.asarray(b, float)):
                yield where
        elif len(a) != len(b):
            yield where
        else:
            for i, (one, other) in enumerate(zip(a, b)):
                yield from different(one, other, f"{where}[{i}]")
    elif isinstance(a, str) and isinstance(b, str):
        if not same_text(a, b):
            yield where
    elif _numeric([a]) and _numeric([b]):
        if not math.isclose(a, b, rel_tol=RELATIVE, abs_tol=NOISE):
            yield where
    elif a != b:
        yield where


def _widget(model_id: str, state: dict, above: tuple[str, ...] = ()) -> Any:
    """The state of a widget, with the states of the widgets in it."""

    def inside(value):
        if isinstance(value, str) and value.startswith("IPY_MODEL_"):
            name = value.removeprefix("IPY_MODEL_")
            return name if name in above else _widget(name, state, (*above, model_id))
        if isinstance(value, list):
            return [inside(v) for v in value]
        if isinstance(value, dict):
            return {key: inside(v) for key, v in value.items()}
        return value

    return inside(state.get(model_id, {}).get("state", {}))


def _shown(output: dict, state: dict) -> tuple[str, Any]:
    """What is compared of one output: its kind and its content."""
    if output["output_type"] == "stream":
        return output["name"], "".join(output["text"])
    if output["output_type"] == "error":
        return "error", output["evalue"]
    data = output.get("data", {})
    if _PLOTLY in data:
        return "figure", {key: data[_PLOTLY].get(key) for key in ("data", "layout")}
    if _VIEW in data:
        return "widget", _widget(data[_VIEW].get("model_id", ""), state)
    for kind in _SHOWN:
        if kind in data:
            return kind, "".join(data[kind])
    return ", ".join(sorted(data)), ""


def _states(nb: dict) -> dict:
    return nb.get("metadata", {}).get("widgets", {}).get(_STATE, {}).get("state", {})


def _cut(value: Any, most: int = 1500) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[:most]} ... ({len(text)} letters)"


def _at(value: Any, where: str) -> Any:
    """The part of a piece of JSON that `different` named."""
    for key in re.findall(r"[^.\[\]]+", where):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            return "nothing"
    return value


def _told(was: tuple[str, Any], now: tuple[str, Any]) -> str:
    """Both sides of a difference; empty where there is none."""
    if was[0] != now[0]:
        return f"committed ({was[0]}):\n{_cut(was[1])}\nnow ({now[0]}):\n{_cut(now[1])}"
    places = list(different(was[1], now[1]))
    if not places:
        return ""
    where = f" at {places[0]}" if places[0] else ""
    more = f" and {len(places) - 1} other places" if len(places) > 1 else ""
    old, new = (_cut(_at(value, places[0])) for value in (was[1], now[1]))
    return f"committed ({was[0]}{where}{more}):\n{old}\nnow:\n{new}"


def differences(committed: dict, now: dict) -> list[str]:
    """How the outputs of an executed notebook differ from the committed ones, cell by cell."""
    found = []
    states = _states(committed), _states(now)
    for at, (was, new) in enumerate(zip(committed["cells"], now["cells"]), 1):
        if was["cell_type"] != "code" or VARIES in directives("".join(was["source"])):
            continue
        pair = [[_shown(output, state) for output in cell["outputs"]] for cell, state in zip((was, new), states)]
        kinds = [[kind for kind, _ in side] for side in pair]
        if len(kinds[0]) != len(kinds[1]):
            texts = ("\n".join(_cut(value) for _, value in side) or "nothing" for side in pair)
            told = "committed ({}):\n{}\nnow ({}):\n{}".format(
                *(x for k, t in zip(kinds, texts) for x in (", ".join(k), t))
            )
        else:
            told = "\n".join(filter(None, (_told(*both) for both in zip(*pair))))
        if told:
            found.append(f"cell {at}, {told}")
    return found
