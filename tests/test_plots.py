"""Figures: what is drawn is what the result says, and a browser draws it."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import plotly
import pytest
import xarray as xr

from namemovers import plots
from namemovers.figures.theme import dark
from namemovers.plots import attention, bars, graph, heatmap, lines, points, scatter, table, token_label
from namemovers.literature import IOI_HEADS
from namemovers.stats import summarise


def heads(layers=3, n_heads=4, prompts=20, seed=0, **effect):
    x = np.random.default_rng(seed).normal(0, 0.2, (layers, n_heads, prompts))
    x[-1, 0] += 2
    x[0, 1] -= 1
    return xr.DataArray(
        x, dims=("layer", "head", "prompt"), coords={"layer": range(layers), "head": range(n_heads)}, name="effect"
    )


TOKENS = ["<|endoftext|>", " <b>", " a", " a", "\n", " David", " & co"]


def by_position():
    x = np.random.default_rng(0).normal(size=(3, len(TOKENS), 10))
    x[:, -1] = np.nan
    return xr.DataArray(x, dims=("layer", "position", "prompt"), name="logit_diff")


def test_heatmap_shows_the_summary():
    s = summarise(heads())
    fig = heatmap(s, title="t")
    h = fig.data[0]
    np.testing.assert_allclose(h.z, s["mean"].values)
    assert h.zmin == -h.zmax == -float(abs(s["mean"]).max())
    np.testing.assert_array_equal(np.array(h.text) != "", s.significant.values)
    hover = h.customdata[2][0]
    assert "L2H0" in hover and "n = 20" in hover and "95 % interval" in hover
    assert f"{float(s['mean'][2, 0]):.3g}" in hover and f"{float(s.low[2, 0]):.3g}" in hover
    assert fig.layout.xaxis.title.text == "head"
    assert fig.layout.yaxis.title.text == "layer"
    assert fig.layout.yaxis.autorange == "reversed"


def test_few_prompts_are_said_to_test_nothing():
    few = heatmap(heads(prompts=8))
    assert not any(few.data[0].text.ravel())
    assert few.layout.xaxis.title.text == "head · no dots, for with so few prompts nothing is tested"
    hover = few.data[0].customdata[2][0]
    assert "untested: the test needs n = 9" in hover and "q =" not in hover and "interval" in hover
    enough = heatmap(heads(prompts=9))
    assert any(enough.data[0].text.ravel())
    assert "tested" not in enough.layout.xaxis.title.text + enough.data[0].customdata[2][0]
    assert "interval" not in heatmap(heads(prompts=2)).data[0].customdata[2][0]


def test_heatmap_takes_per_prompt_values_and_variables():
    a = heatmap(summarise(heads())).to_json()
    assert heatmap(heads()).to_json() == a
    assert heatmap(xr.Dataset({"other": heads() * 2, "effect": heads()})).to_json() == a
    assert (
        heatmap(xr.Dataset({"other": heads() * 2, "effect": heads()}), "other").data[0].z[0][0]
        != heatmap(heads()).data[0].z[0][0]
    )
    with pytest.raises(ValueError, match="no variable 'nope'"):
        heatmap(xr.Dataset({"effect": heads()}), "nope")
    with pytest.raises(ValueError, match="two dimensions"):
        heatmap(heads().isel(head=0))


def test_layers_are_rows_whatever_the_order():
    assert np.array_equal(heatmap(heads().transpose("prompt", "head", "layer")).data[0].z, heatmap(heads()).data[0].z)


def test_tokens_on_an_axis():
    fig = heatmap(by_position(), labels=TOKENS)
    names = fig.layout.xaxis.ticktext
    assert names[0] == "&lt;|endoftext|&gt;"
    assert names[1] == "·&lt;b&gt;"
    assert names[4] == "⏎"
    assert names[6] == "·&amp; co"
    assert names[2] == names[3] == "·a" and len(set(fig.layout.xaxis.tickvals)) == len(TOKENS), (
        "equal tokens keep their own columns"
    )
    assert np.isnan(np.array(fig.data[0].z, dtype=float)[:, -1]).all() and fig.data[0].customdata[0][-1] == ""
    with pytest.raises(ValueError, match="labels"):
        heatmap(by_position(), labels=TOKENS[:3])
    carried = by_position().assign_coords(token=("position", TOKENS))
    assert heatmap(carried).layout.xaxis.ticktext == names


def test_named_positions_label_themselves():
    x = by_position().isel(position=slice(0, 2)).assign_coords(position=["S1", "END"])
    assert heatmap(x).layout.xaxis.ticktext == ("S1", "END")


def test_degenerate_values_are_drawn():
    for x in (xr.zeros_like(heads()), heads() * np.nan, heads(prompts=1), heads().isel(layer=[0], head=[0])):
        for draw in (heatmap, bars, lambda v: scatter(v, v)):
            draw(x).to_json()
    h = heatmap(xr.zeros_like(heads())).data[0]
    assert h.zmin < 0 < h.zmax
    assert "interval" not in heatmap(heads(prompts=1)).data[0].customdata[0][0]


def test_direction_names_the_scale():
    unit = lambda d: heatmap(heads().assign_attrs(direction=d)).data[0].colorbar.title.text.replace("<br>", " ")
    assert "0 corrupted" in unit("denoise") and "0 clean" in unit("noise")


def test_bars_take_both_ends():
    fig = bars(heads(), k=2)
    assert len(fig.layout.xaxis.ticktext) == 4
    assert fig.layout.xaxis.ticktext[0] == "L2H0"
    assert fig.layout.xaxis.ticktext[-1] == "L0H1"
    s = summarise(heads())
    assert fig.data[0].y[0] == pytest.approx(float(s["mean"][2, 0]))
    assert fig.data[0].error_y.array[0] == pytest.approx(float(s.high[2, 0] - s["mean"][2, 0]))
    assert len(bars(heads(), k=50).layout.xaxis.ticktext) == 12
    flat = heads().isel(head=0).rename(layer="component").assign_coords(component=["embed", "attn 0", "bias"])
    assert bars(flat).layout.xaxis.ticktext == ("embed", "attn 0", "bias")
    both = bars({"attention": heads().isel(head=0), "MLP": heads().isel(head=1)})
    assert [t.name for t in both.data] == ["attention", "MLP"] and both.layout.showlegend
    with pytest.raises(ValueError, match="bars need"):
        bars(by_position())


def test_lines_have_bands():
    x = heads().isel(head=0)
    s = summarise(x)
    fig = lines(x)
    band, line = fig.data
    np.testing.assert_allclose(line.y, s["mean"])
    np.testing.assert_allclose(band.y, np.concatenate([s.high, s.low[::-1]]))
    assert band.hoverinfo == "skip" and len(lines(heads(prompts=1).isel(head=0)).data) == 1
    assert [t.name for t in lines({"MRS": x, "IOI": -x}).data if t.mode == "lines+markers"] == ["MRS", "IOI"]
    assert len([t for t in lines(heads()).data if t.mode == "lines+markers"]) == 4
    assert "layer 0" in line.customdata[0]


def test_bars_and_scatter_take_the_heads_that_share_keys_and_values():
    "A result of `kv_head` is drawn as one of heads is, cell by cell, under the names of what was patched."
    x = heads(4, 3).assign_coords(head=[0, 1, 2])
    shared = x.rename(head="kv_head")
    other = heads(4, 3, seed=1)
    name = lambda text: text.replace("H", "KV")
    a, b = bars(x, k=2), bars(shared, k=2)
    assert b.layout.xaxis.ticktext == tuple(map(name, a.layout.xaxis.ticktext)) and "L3KV0" in b.layout.xaxis.ticktext
    assert b.layout.xaxis.title.text == "key-value head" and a.layout.xaxis.title.text == "head"
    np.testing.assert_array_equal(b.data[0].y, a.data[0].y)
    assert [name(h) for h in a.data[0].customdata] == list(b.data[0].customdata)
    a, b = scatter(x, other, k=3).data[-1], scatter(shared, other.rename(head="kv_head"), k=3).data[-1]
    assert [name(t) for t in a.text] == list(b.text) and {"L3KV0", "L0KV1"} <= set(b.text)
    np.testing.assert_array_equal(b.y, a.y)
    for draw in (lambda: scatter(x, other.rename(head="kv_head")), lambda: scatter(by_position(), by_position())):
        with pytest.raises(ValueError, match="of the same heads"):
            draw()
    with pytest.raises(ValueError, match="bars need"):
        bars({"one": shared, "two": shared})


def test_scatter_names_the_notable():
    fig = scatter(heads(12, 12), heads(12, 12, seed=1), k=2, x_label="x <1>", diagonal=True)
    trace = fig.data[-1]
    assert {t for t in trace.text if t} == {"L11H0", "L0H1"} and len(trace.x) == 144
    assert fig.layout.xaxis.title.text == "x &lt;1&gt;" and fig.data[0].mode == "lines"
    holes = heads().where(heads().layer > 0)
    assert len(scatter(holes, heads()).data[-1].x) == 8


def test_points():
    x = xr.DataArray(
        np.random.default_rng(0).random((5, 3)),
        dims=("prompt", "name"),
        coords={"name": ["IO", "S1", "<S2>"]},
        name="attention",
    )
    fig = points(x, x * 2, by="name", y_label="output")
    assert [t.name for t in fig.data] == ["IO", "S1", "&lt;S2&gt;"] and all(len(t.x) == 5 for t in fig.data)
    assert len(points(x, x).data) == 1 and len(points(x, x).data[0].x) == 15


def test_attention():
    n = len(TOKENS)
    a = np.tril(np.full((n, n), 0.25))
    fig = attention(a, TOKENS, title="a head")
    z = np.array(fig.data[0].z, dtype=float)
    assert np.isnan(z[0, 1]) and z[1, 0] == 0.25 and (fig.data[0].zmin, fig.data[0].zmax) == (0, 1)
    assert fig.layout.xaxis.ticktext == fig.layout.yaxis.ticktext and "looks at" in fig.data[0].customdata[3][1]
    with pytest.raises(ValueError, match="pattern"):
        attention(a[:2], TOKENS)


EDGES = {
    ("L9H6", "logits", ""): 1.0,
    ("L10H7", "logits", ""): -2.0,
    ("L8H6", "L9H6", "q"): 0.5,
    ("L8H6", "L9H6", "k"): 0.0,
    ("MLP 5", "L8H6", "v"): 0.7,
    ("embed", "MLP 5", ""): 0.2,
}


def paths(n=30):
    x = np.array(list(EDGES.values()))[:, None] + np.random.default_rng(0).normal(0, 0.2, (len(EDGES), n))
    coords = {c: ("edge", [e[i] for e in EDGES]) for i, c in enumerate(("sender", "receiver", "component"))}
    return xr.DataArray(x, dims=("edge", "prompt"), coords=coords, name="effect")


def published_table():
    heads = sorted(h for members in IOI_HEADS.values() for h in members)
    return pd.DataFrame(
        [
            dict(sender=a, receiver=b, component="qkv"[(i + j) % 3], mean=(-1) ** i * (j + 1))
            for i, a in enumerate(heads)
            for j, b in enumerate(heads)
            if a[0] < b[0] and (i * j) % 9 == 0
        ]
        + [dict(sender=h, receiver="logits", component="", mean=1.0) for h in heads[-9:]]
    )


def drawn(fig):
    return {t.customdata[0].split("</b>")[0].removeprefix("<b>"): t for t in fig.data if "→" in t.name}


def test_graph_draws_every_edge_by_sign_size_and_type():
    s = summarise(paths())
    fig = graph(s, roles={"name mover": [(9, 6)], "unused": [(1, 1)]}, heads=heads(12, 12), title="t")
    lines = drawn(fig)
    assert set(lines) == {
        "L9H6 → logits",
        "L10H7 → logits",
        "L8H6 → L9H6, query",
        "L8H6 → L9H6, key",
        "MLP 5 → L8H6, value",
        "embed → MLP 5",
    }
    blue, red = plots.DIVERGING[5][1], plots.DIVERGING[1][1]
    assert lines["L9H6 → logits"].line.color == blue and lines["L10H7 → logits"].line.color == red
    widths = {n: t.line.width for n, t in lines.items()}
    assert max(widths, key=widths.get) == "L10H7 → logits"
    assert (widths["L9H6 → logits"] - 1) / (widths["L10H7 → logits"] - 1) == pytest.approx(
        abs(float(s["mean"][0] / s["mean"][1]))
    )
    assert [lines[f"L8H6 → L9H6, {w}"].line.dash for w in ("query", "key")] == ["solid", "dash"]
    assert lines["MLP 5 → L8H6, value"].line.dash == "dot"
    assert lines["L8H6 → L9H6, key"].opacity < lines["L8H6 → L9H6, query"].opacity, "what is not significant is faint"
    hover = lines["L9H6 → logits"].customdata[0]
    assert "95 % interval" in hover and "n = 30" in hover and f"{float(s['mean'][0]):.3g}" in hover
    nodes = next(t for t in fig.data if t.name == "nodes")
    assert len(nodes.x) == 6 and any("L9H6</b><br>name mover<br>mean" in h for h in nodes.customdata)
    height = {h.split("</b>")[0].removeprefix("<b>"): (x, y) for h, x, y in zip(nodes.customdata, nodes.x, nodes.y)}
    assert [n for n, _ in sorted(height.items(), key=lambda i: i[1][1])] == [
        "embed",
        "MLP 5",
        "L8H6",
        "L9H6",
        "L10H7",
        "logits",
    ]
    assert height["L9H6"][0] == 6
    keys = [t.name for t in fig.data if t.showlegend is not False]
    assert keys == ["name mover", "other head", "for the answer", "against it", "query", "key", "value"]
    boxes = {a.text: a.bgcolor for a in fig.layout.annotations}
    assert boxes["<b>L9H6</b>"] != boxes["<b>L8H6</b>"] == boxes["<b>logits</b>"]
    assert all(contrast(c, "#ffffff") >= 4.5 for c in boxes.values() if c)
    for t in lines.values():
        assert np.all(np.diff(t.y) > 0), "edges go up"
    again = graph(s, roles={"cue": [(10, 7)], "found at level 1": [(8, 6)], "name mover": [(9, 6)]})
    key = lambda f: {t.name: t.marker.color for t in f.data if t.mode == "markers"}
    assert key(again)["name mover"] == key(fig)["name mover"] and "other head" not in key(again), (
        "a role has one colour in every figure"
    )
    assert len({key(again)[r] for r in ("cue", "found at level 1", "name mover")}) == 3


def test_graph_takes_results_masks_and_tables():
    same = lambda a, b: assert_same(drawn(graph(a)), drawn(graph(b)))

    def assert_same(a, b):
        assert list(a) == list(b) and [t.line.width for t in a.values()] == [t.line.width for t in b.values()]

    s = summarise(paths())
    same(paths(), s)
    same(xr.Dataset({"effect": paths()}), s)
    table_of = s.to_dataframe().reset_index(drop=True)
    same(table_of, s)
    tuples = table_of.assign(sender=[(9, 6), (10, 7), *table_of.sender[2:]])
    same(tuples, s)
    same(table_of.set_index(["sender", "receiver", "component"]), s)
    kept = s.assign(kept=("edge", np.arange(6) < 2))
    assert list(drawn(graph(kept))) == ["L9H6 → logits", "L10H7 → logits"]
    mask = graph(xr.zeros_like(s["mean"], dtype=bool).copy(data=np.arange(6) < 2))
    assert list(drawn(mask)) == ["L9H6 → logits", "L10H7 → logits"]
    assert {t.line.color for t in drawn(mask).values()} == {plots.GREY}
    assert drawn(graph(table_of[["sender", "receiver"]]))["L9H6 → logits"].customdata[0] == "<b>L9H6 → logits</b>"
    nothing = graph(kept.assign(kept=("edge", np.zeros(6, bool))))
    assert not drawn(nothing) and any(a.text == "no edge" for a in nothing.layout.annotations)
    assert len(next(t for t in graph(s, roles=IOI_HEADS, alone=True).data if t.name == "nodes").x) == 26 + 3
    many = {f"role {i}": [(9, 6)] if i == 8 else [(0, i)] for i in range(12)}
    assert {a.bgcolor for a in graph(s, roles=many).layout.annotations if a.text == "<b>L9H6</b>"} == {
        dark(plots.COLOURS[0])
    }, "too many roles: colours go to those that are drawn"


def test_edges_pass_beside_other_nodes():
    column = pd.DataFrame(
        [("L0H1", "L3H1", "q"), ("L1H1", "logits", ""), ("L2H1", "logits", ""), ("L0H3", "logits", "")],
        columns=["sender", "receiver", "component"],
    )
    line = drawn(graph(column))["L0H1 → L3H1, query"]
    assert not np.any([(abs(np.array(line.x) - 1) < 0.1) & (abs(np.array(line.y) - y) < 0.15) for y in (1, 2)])


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(sender=["L9H6"], receiver=["L9H7"]), "not below"),
        (dict(sender=["L9H6"], receiver=["head 3"]), "'head 3'"),
        (dict(sender=["logits"], receiver=["L9H7"]), "not below"),
        (dict(sender=["L9H6"]), "'receiver'"),
    ],
)
def test_edges_that_make_no_graph(bad, message):
    with pytest.raises(ValueError, match=message) as e:
        graph(pd.DataFrame(bad))
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="one dimension"):
        graph(heads())


def test_titles_are_text_and_wrap():
    fig = heatmap(heads(12, 12), title="a <b> & " + "word " * 40)
    assert fig.layout.title.text.startswith("a &lt;b&gt; &amp; ") and fig.layout.title.text.count("<br>") >= 2
    assert fig.layout.margin.t > heatmap(heads(12, 12), title="short").layout.margin.t
    assert heatmap(heads()).layout.title.text is None


def test_token_label_keeps_what_cannot_be_seen():
    assert token_label(" a") == "·a"
    assert token_label("  a b") == "··a b"
    assert token_label("") == "∅"
    assert token_label("<") == "&lt;"


def test_nothing_unseen_is_left_in_a_label():
    """Characters that reverse the direction, take no room, or look like a space are written out, in labels, titles
    and tables."""
    strange = "a\u202eb\u2066\u200b\u200d\ufeff\u00ad\u3164\ufe0f\x1b\xa0\u2028c"
    table_text = table(pd.DataFrame({strange: [strange]}), caption=strange).data.replace("\xa0", "")
    for shown in (token_label(strange), heatmap(heads(), title=strange).layout.title.text, table_text):
        assert shown.isascii() and "\\u202e" in shown
    assert token_label("\ud800") == "\\ud800"
    assert token_label(" né 🦜 مرحبا") == "·né 🦜 مرحبا"
    assert token_label("\u0301") == "◌\u0301"


def test_table_is_plain_and_safe():
    html = table(
        pd.DataFrame({"a": ["<script>"], "b": [-1.234], "c": [3], "d": [True], "e": [np.nan]}), caption="x & y"
    ).data
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "−1.23" in html
    assert ">3<" in html
    assert ">yes<" in html
    assert ">–<" in html
    assert "x &amp; y" in html
    assert table(pd.DataFrame({"a": [1]}, index=pd.Index(["L0H1"], name="head")), index=True).data.count("L0H1") == 1


def contrast(a, b):
    def light(c):
        v = [int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        v = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in v]
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_look_reads_on_white_and_on_black():
    layout = heatmap(heads()).layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    for background in ("#ffffff", "#111111"):
        assert contrast(layout.font.color, background) >= 4.1
        for colour in plots.COLOURS:
            assert contrast(colour, background) >= 2.7


def test_the_scale_is_symmetric_and_told_apart_without_red_and_green():
    scale = plots.DIVERGING
    assert scale[len(scale) // 2][0] == 0.5 and all(a[0] + b[0] == pytest.approx(1) for a, b in zip(scale, scale[::-1]))
    deuteranopia = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    rgb = lambda c: np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    seen = [deuteranopia @ rgb(c) for _, c in scale]
    for i in range(len(scale) // 2):
        assert np.linalg.norm(seen[i] - seen[-1 - i]) > 0.2


def all_figures():
    return {
        "heads": heatmap(heads(), title="Three layers of four heads"),
        "heads12": heatmap(heads(12, 12), title="A long title " * 12),
        "positions": heatmap(by_position(), labels=TOKENS, title="Tokens"),
        "bars": bars(heads(12, 12), title="Bars"),
        "lines": lines({"MRS": heads().isel(head=0), "IOI": heads().isel(head=1)}, title="Lines"),
        "scatter": scatter(heads(12, 12), heads(12, 12, seed=1), title="Scatter"),
        "attention": attention(np.tril(np.ones((7, 7))) / 7, TOKENS, title="Attention"),
        "graph": graph(paths(), roles={"name mover": [(9, 6)]}, title="Graph"),
        "large": graph(published_table(), roles=IOI_HEADS, alone=True, title="A large graph"),
    }


def test_a_browser_draws_them_without_clipping(tmp_path):
    """Every figure in a column of 760 and of 360 pixels: no error, and every text inside the figure's own box."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(
        (p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome") if Path(p).exists()),
        None,
    )
    if chromium is None and os.environ.get("CI"):
        pytest.fail("no Chromium to draw with: apt-get install chromium")
    if chromium is None:
        pytest.skip("no Chromium to draw with")
    figures = all_figures()
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    draw = "".join(
        f"{{const f = {fig.to_json()}; "
        f"Plotly.newPlot('{n}', f.data, f.layout, {{responsive: true, displayModeBar: false}})}};"
        for n, fig in figures.items()
    )
    divs = "".join(f'<div id="{n}"></div>' for n in figures)
    page_file = tmp_path / "p.html"
    page_file.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0">{divs}'
        f'<script src="file://{script}"></script><script>{draw}</script>'
    )
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        for width in (760, 360):
            page = browser.new_page(viewport={"width": width, "height": 900})
            errors = []
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            page.goto(page_file.as_uri())
            page.wait_for_function(f"document.querySelectorAll('.main-svg').length >= {len(figures)}")
            page.wait_for_timeout(500)
            assert not errors
            outside = page.evaluate("""() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(d => {
                const box = d.getBoundingClientRect();
                const drawn = d.querySelector('.main-svg').getBoundingClientRect();
                const right = box.left + Math.max(box.width, drawn.width);
                const texts = '.gtitle, .annotation-text, .legendtext, .xtitle, .ytitle, .xtick text, .ytick text, '
                    + '.cbtitle text';
                return [...d.querySelectorAll(texts)].filter(t => {
                    const b = t.getBoundingClientRect();
                    const above = b.top < box.top - 1, below = b.bottom > box.bottom + 1;
                    return b.width && (above || below || b.left < box.left - 1 || b.right > right + 1);
                }).map(t => d.id + ': ' + t.textContent);
            })""")
            if width == 760:
                assert outside == []
            labels = page.evaluate(
                "() => [...document.querySelectorAll('#positions .xtick text')].map(t => t.textContent)"
            )
            assert labels[0] == "<|endoftext|>" and labels[1] == "·<b>" and len(labels) == len(TOKENS)
            page.close()
        browser.close()
