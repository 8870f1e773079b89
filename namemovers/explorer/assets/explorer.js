// The explorer: one program for the notebook (where a kernel answers) and for a page (where the answers stand in the page).
// Both give it a model in anywidget's sense: get, set, save_changes, on, send. Text from a user or a tokenizer only ever
// becomes the text of an element, through h() below.

const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
    else if (name === "style") element.style.cssText = value
    else if (value === true) element.setAttribute(name, "")
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value)
  }
  element.append(...children.filter(child => child !== null && child !== undefined))
  return element
}
const token = text => h("span", { class: "nmx-token" }, text)
const equal = (a, b) => JSON.stringify(a) === JSON.stringify(b)
const fits = (of, state) => Object.entries(of || { never: 1 }).every(([name, value]) => equal(value, state[name]))
const headName = ([layer, head]) => `L${layer}H${head}`
const number = (value, digits = 2) => {
  if (value === null || value === undefined) return "–"
  const text = value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits ? value.toExponential(1) : value.toFixed(digits)
  return (/^-0\.?0*$/.test(text) ? text.slice(1) : text).replace("-", "−")
}

// --- colours

const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16))
const mix = (stops, t) => {
  t = Math.min(1, Math.max(0, t))
  const i = Math.max(1, stops.findIndex(([at]) => at >= t)), [[from, a], [to, b]] = [stops[i - 1], stops[i]]
  const share = to > from ? (t - from) / (to - from) : 0, end = rgb(b)
  return rgb(a).map((v, k) => Math.round(v + (end[k] - v) * share))
}
const css = colour => `rgb(${colour.join(",")})`
const ink = colour => (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 ? "#111" : "#fff")

// --- saved states

const pack = text => btoa(String.fromCharCode(...new TextEncoder().encode(text))).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")
const unpack = text => new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), c => c.charCodeAt(0)))
const parse = (text, format) => { // a link or a file
  text = text.trim()
  let state
  try {
    const link = text.match(/#explorer=([\w%=-]*)/)
    state = JSON.parse(link ? unpack(decodeURIComponent(link[1]).replace(/=+$/, "")) : text)
    if (!(format in state)) throw 0
  } catch (e) { throw new Error("This is not from the explorer: give what Copy link or Save file gave, whole.") }
  // 1e400 is read as Infinity, which JSON would then write as null
  const endless = Object.keys(state).find(name => [state[name]].flat().some(v => typeof v === "number" && !Number.isFinite(v)))
  if (endless) throw new Error(`${endless}: the number is too large; give what Copy link or Save file gave.`)
  return state
}

// --- figures

const titled = (panel, ...inner) => h("figure", { class: "nmx-panel", style: "margin-left:0;margin-right:0" }, panel.title ? h("h4", {}, panel.title) : null, ...inner)

// A table of coloured cells. Arrow keys move, Enter or a click picks.
const heatmap = (panel, app) => {
  const { rows, cols, values, texts } = panel, stops = app.meta.colours[panel.scale], signed = panel.scale === "diverging"
  const top = panel.limit || Math.max(...values.flat().map(v => Math.abs(v ?? 0))) || 1
  const place = v => signed ? 0.5 + 0.5 * v / top : v / top
  const heads = panel.pick === "head", tall = cols.some(c => c.length > 3), numbers = !texts && cols.length <= 16 && !tall
  const headOf = (i, j) => heads ? [i, j] : panel.pick === "row" ? [panel.layer, i] : null
  const nameOf = (i, j) => heads ? headName([i, j]) : panel.pick === "row" ? `${headName([panel.layer, i])}, position ${j}, ${cols[j]}` :
    `${panel.row_name} ${rows[i]}, ${panel.col_name} ${cols[j]}${tall ? ` (position ${j})` : ""}`
  const told = (i, j) => `${nameOf(i, j)}: ${texts ? texts[i][j] + ", " : ""}${panel.unit} ${number(values[i][j], 3)}`
  const readout = h("p", { class: "nmx-readout nmx-token", "aria-hidden": "true" })
  const cells = rows.map((_, i) => cols.map((_, j) => {
    const value = values[i][j]
    if (value === null || value === undefined) return h("td", { class: "nmx-none", role: "gridcell", tabindex: -1, "aria-label": `${nameOf(i, j)}: none`, "data-at": `${i},${j}` })
    const colour = mix(stops, place(value))
    return h("td", { role: "gridcell", tabindex: -1, "aria-label": told(i, j), "data-at": `${i},${j}`, "aria-selected": headOf(i, j) ? String(equal(headOf(i, j), app.state.head)) : null,
      style: `background:${css(colour)};color:${ink(colour)}` }, texts ? token(texts[i][j]) : numbers ? value.toFixed(top < 0.1 ? 3 : 2).replace(/^-(0\.0+)$/, "$1").replace("-", "−") : "")
  }))
  const first = cells.flat().find(cell => cell.getAttribute("aria-selected") === "true") || cells.flat().find(cell => !cell.classList.contains("nmx-none")) || cells[0][0]
  first.tabIndex = 0
  const at = cell => cell?.dataset.at?.split(",").map(Number)
  const show = cell => { const [i, j] = at(cell); readout.textContent = cell.getAttribute("aria-label") }
  const pick = cell => { const head = cell && !cell.classList.contains("nmx-none") && headOf(...at(cell)); if (head) app.set({ head }) }
  const table = h("table", { role: "grid", "aria-label": panel.title || app.meta.views[app.state.view], class: `nmx-map${numbers ? " nmx-wide" : ""}${texts ? " nmx-words" : ""}${panel.pick === "row" ? " nmx-rows" : ""}`,
    onclick: e => pick(e.target.closest("td[data-at]")),
    onmouseover: e => { const cell = e.target.closest("td[data-at]"); if (cell) show(cell) },
    onfocusin: e => { const cell = e.target.closest("td[data-at]"); if (cell) show(cell) },
    onkeydown: e => {
      const cell = e.target.closest("td[data-at]"), step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key]
      if (!cell) return
      if (step) {
        const [i, j] = at(cell), next = cells[i + step[0]]?.[j + step[1]]
        if (next) { cell.tabIndex = -1; next.tabIndex = 0; next.focus() }
      } else if (e.key === "Enter" || e.key === " ") pick(cell)
      else return
      e.preventDefault()
    } },
    h("thead", {}, h("tr", {}, h("th", { class: "nmx-axis" }, `${panel.row_name} ↓ ${panel.col_name} →`), ...cols.map(c => h("th", { scope: "col", class: tall ? "nmx-tall" : null }, token(c))))),
    h("tbody", {}, ...cells.map((row, i) => h("tr", { role: "row" }, h("th", { scope: "row" }, token(rows[i])), ...row))))
  const gradient = stops.map(([t, colour]) => `${colour} ${100 * t}%`).join(",")
  const legend = h("div", { class: "nmx-legend" }, number(signed ? -top : 0), h("i", { style: `background:linear-gradient(90deg,${gradient})` }), h("span", {}, number(top)), h("span", {}, panel.unit))
  return titled(panel, h("div", { class: "nmx-scroll" }, table), readout, legend)
}

const bars = (panel, app) => {
  const values = panel.values.map(v => v ?? 0), low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1
  const stops = app.meta.colours.diverging, place = v => 100 * (v - low) / span
  return titled(panel, h("table", { class: "nmx-bars", "aria-label": panel.title }, h("tbody", {}, ...panel.names.map((name, i) => h("tr", {}, h("th", { scope: "row" }, name),
    h("td", {}, h("span", { class: "nmx-bar", style: `--zero:${place(0)}%` },
      h("i", { style: `left:${place(Math.min(0, values[i]))}%;width:${100 * Math.abs(values[i]) / span}%;background:${css(mix(stops, values[i] < 0 ? 0.2 : 0.8))}` }))),
    h("td", {}, number(panel.values[i])))))), h("div", { class: "nmx-legend" }, panel.unit))
}

const list = (panel, app) => {
  const most = Math.max(...panel.rows.map(row => Math.abs(row[panel.bar]))) || 1, stops = app.meta.colours.diverging
  const value = (row, i, j) => {
    if (j === panel.bar) {
      const share = Math.round(100 * Math.abs(row[j]) / most), colour = css(mix(stops, row[j] < 0 ? 0.4 : 0.6))
      return h("td", {}, h("span", { class: "nmx-share", style: `background:linear-gradient(90deg,${colour} ${share}%,transparent ${share}%);color:var(--nmx-text)` }, number(row[j], 3)))
    }
    if (panel.heads && j < 2) return h("td", {}, h("button", { type: "button", onclick: () => app.set({ head: panel.heads[i][j] }) }, row[j]))
    const mark = j === 1 && panel.marks?.[i]
    return h("td", {}, typeof row[j] === "string" ? token(row[j]) : String(row[j]), mark ? h("span", { class: "nmx-mark" }, `${mark} answer`) : null)
  }
  return titled(panel, h("table", { class: "nmx-list", "aria-label": panel.title }, h("thead", {}, h("tr", {}, ...panel.columns.map(c => h("th", { scope: "col" }, c)))),
    h("tbody", {}, ...panel.rows.map((row, i) => h("tr", {}, ...row.map((_, j) => value(row, i, j)))))))
}

const DRAW = { heatmap, bars, table: list }

// --- the application

const WORDS = { site: "activation", by: "by", direction: "direction", metric: "measured on", paths: "", component: "into the", through_mlps: "through MLPs", run: "run" }
const SAID = {
  site: { z: "z (a head's output)", q: "q (queries)", k: "k (keys)", v: "v (values)", pattern: "pattern (attention)", resid_pre: "resid_pre (stream before a layer)", resid_mid: "resid_mid (stream between)",
    resid_post: "resid_post (stream after a layer)", attn_out: "attn_out (attention's output)", mlp_out: "mlp_out (MLP's output)" },
  by: { head: "head", head_position: "head and position, in the selected head's layer", position: "position" },
  direction: { denoise: "denoise (clean into corrupted)", noise: "noise (corrupted into clean)" },
  metric: { logit_diff: "logit difference", logit: "logit", prob: "probability", rank: "rank", kl: "divergence from clean" },
  component: { q: "query", k: "key", v: "value" }, run: { clean: "clean", corrupted: "corrupted" } }
const OPTIONS = { lens: ["run"], patching: ["site", "by", "direction", "metric"], paths: ["paths", "component", "direction", "through_mlps"], attention: ["run"] }
const PROMPT = ["clean", "corrupted", "correct", "wrong", "task"]
let serial = 0

function render({ model, el }) {
  const id = `nmx-${++serial}`, meta = model.get("meta"), live = meta.live
  const app = { meta, get state() { return model.get("state") },
    set(change) { model.set("state", { ...model.get("state"), ...change }); model.save_changes() } }
  const chosen = name => name === "by" ? meta.options.by[app.state.site] : meta.options[name]

  // prompts
  const source = h("select", { id: `${id}-source`, onchange: () => { if (source.value !== "") app.set(given(meta.prompts[source.value])) } })
  const given = ({ label, ...prompt }) => prompt
  const own = h("option", { value: "" }, "typed below")
  if (live) source.append(own)
  meta.prompts.forEach((p, i) => source.append(h("option", { value: i }, `${p.task}${p.task ? " " + p.prompt + ": " : ""}${p.label}`)))
  let typing
  const field = (name, label) => {
    const input = h("input", { type: "text", id: `${id}-${name}`, spellcheck: "false", autocomplete: "off", dir: "auto",
      oninput: () => { clearTimeout(typing); typing = setTimeout(typed, 180) }, onchange: () => typed() })
    return { name, input, nodes: [h("label", { for: input.id }, label), input] }
  }
  const inputs = [field("clean", "clean prompt"), field("correct", "right answer"), field("corrupted", "corrupted prompt"), field("wrong", "wrong answer")]
  const typed = () => {
    clearTimeout(typing)
    const texts = Object.fromEntries(inputs.map(({ name, input }) => [name, input.value]))
    if (Object.entries(texts).some(([name, text]) => text !== app.state[name])) app.set({ ...texts, task: "", prompt: 0 })
  }
  const lined = h("div", { class: "nmx-align", role: "list", "aria-label": "The prompts token by token, clean above corrupted" }), problem = h("p", { class: "nmx-problem", role: "status", hidden: true }), hint = h("p", { class: "nmx-label nmx-hint", role: "status", hidden: true })
  const short = text => text === model.get("aligned").problem ? "Nothing to show until the prompts line up." : text // it is said above
  const showPrompts = () => {
    const state = app.state, at = meta.prompts.findIndex(p => PROMPT.every(name => p[name] === state[name]))
    source.value = at >= 0 ? String(at) : ""
    for (const { name, input } of inputs) if (document.activeElement !== input && input.value !== state[name]) input.value = state[name]
    const { columns = [], problem: wrong = "", hint: unseen = "" } = model.get("aligned")
    const cell = (text, differs) => h("div", { class: text === null ? "nmx-absent" : differs ? "nmx-differs" : null }, text === null ? h("span", { class: "nmx-unseen" }, "no token") : token(text))
    lined.replaceChildren(h("div", { class: "nmx-names", "aria-hidden": "true" }, h("div", {}, "clean"), h("div", {}, "corrupted"), h("div", {}, "position")),
      ...columns.map(([a, b, differs], i) => h("div", { role: "listitem" }, cell(a, differs), cell(b, differs), h("div", { class: "nmx-place" }, String(i)))))
    problem.textContent = wrong
    problem.hidden = !wrong
    hint.textContent = unseen
    hint.hidden = !unseen
  }

  // tabs and options
  const views = Object.entries(meta.views)
  const tabs = views.map(([view, name]) => h("button", { type: "button", role: "tab", id: `${id}-tab-${view}`, "aria-controls": `${id}-view`, "data-view": view, onclick: () => app.set({ view }) }, name))
  const bar = h("div", { class: "nmx-tabs", role: "tablist", "aria-label": "Views", onkeydown: e => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key], i = tabs.indexOf(e.target)
    if (!step || i < 0) return
    const next = tabs[(i + step + tabs.length) % tabs.length]
    next.focus(); next.click(); e.preventDefault()
  } }, ...tabs)
  const options = h("div", { class: "nmx-options" })
  const showOptions = () => {
    const { state } = app, focus = options.contains(options.ownerDocument.activeElement) && options.ownerDocument.activeElement.dataset.option
    for (const tab of tabs) { const on = tab.dataset.view === state.view; tab.setAttribute("aria-selected", on); tab.tabIndex = on ? 0 : -1 }
    panel.setAttribute("aria-labelledby", `${id}-tab-${state.view}`)
    options.replaceChildren(...(OPTIONS[state.view] || []).filter(name => chosen(name).length > 1).map(name => {
      if (name === "through_mlps") return h("label", {}, h("input", { type: "checkbox", "data-option": name, ...(state[name] ? { checked: true } : {}), onchange: e => app.set({ [name]: e.target.checked }) }), WORDS[name])
      const select = h("select", { "data-option": name, "aria-label": WORDS[name] || "which paths", onchange: () => app.set(name === "site" ? { site: select.value, by: meta.options.by[select.value][0] } : { [name]: select.value }) },
        ...chosen(name).map(v => h("option", { value: v }, (name === "paths" ? meta.paths : SAID[name])[v] ?? v)))
      select.value = state[name]
      return h("label", {}, WORDS[name], select)
    }))
    if (focus) options.querySelector(`[data-option=${focus}]`)?.focus()
  }

  // figure
  const busy = h("div", { class: "nmx-busy", role: "status", hidden: true }), figure = h("div"), reading = h("p", { class: "nmx-reading" })
  const panel = h("section", { class: "nmx-view", role: "tabpanel", id: `${id}-view` }, options, busy, figure, reading)
  let late
  const showFigure = () => {
    const answer = model.get("figure"), ready = fits(answer.of, app.state), hadFocus = figure.contains(document.activeElement) && document.activeElement.dataset.at
    clearTimeout(late)
    if (!ready) { late = setTimeout(() => { figure.classList.add("nmx-stale"); showBusy(true) }, 150); markHead(); return }
    figure.classList.remove("nmx-stale")
    showBusy(false)
    el.firstChild.dataset.shown = app.state.view
    if (answer.problem) {
      figure.replaceChildren(h("p", { class: "nmx-problem" }, short(answer.problem)), ...(answer.cancelled ? [h("button", { type: "button", onclick: () => model.send({ type: "again" }) }, "Compute it")] : []))
      reading.textContent = ""
    } else {
      const panels = answer.panels.map(one => DRAW[one.kind](one, app))
      figure.replaceChildren(answer.panels.every(one => one.kind === "table") ? h("div", { class: "nmx-tables" }, ...panels) : h("div", {}, ...panels))
      reading.textContent = answer.reading
      if (hadFocus) { const again = figure.querySelector(`td[data-at="${hadFocus}"]`); if (again) { figure.querySelectorAll("td[tabindex='0']").forEach(c => { c.tabIndex = -1 }); again.tabIndex = 0; again.focus() } }
    }
    showCode()
  }
  const markHead = () => figure.querySelectorAll("[aria-selected]").forEach(cell => {
    const [one] = (model.get("figure").panels || []).filter(p => p.pick), at = cell.dataset.at.split(",").map(Number)
    if (one) cell.setAttribute("aria-selected", String(equal(one.pick === "head" ? at : [one.layer, at[0]], app.state.head)))
  })
  const cancel = h("button", { type: "button", onclick: () => model.send({ type: "cancel" }) }, "Cancel"), meter = h("progress"), told = h("span")
  busy.append(told, meter, cancel)
  const showBusy = on => {
    const { kind, done, total } = model.get("progress") || {}
    busy.hidden = !(on || kind === "roles")
    told.textContent = kind === "roles" ? "Measuring roles …" : "Computing …"
    if (total) { meter.max = total; meter.value = done; told.textContent += ` ${done} of ${total}` } else meter.removeAttribute("value")
    el.firstChild.dataset.busy = busy.hidden ? "" : "busy"
  }

  // the head
  const which = h("select", { "aria-label": "Choose a head", onchange: () => app.set({ head: which.value.split(",").map(Number) }) })
  for (let l = 0; l < meta.layers; l++) for (let k = 0; k < meta.heads; k++) which.append(h("option", { value: `${l},${k}` }, headName([l, k])))
  const name = h("h3"), known = h("div"), about = h("aside", { class: "nmx-head", "aria-label": "The selected head", "aria-live": "polite" }, h("div", { class: "nmx-headline" }, name, which), known)
  const showHead = () => {
    const answer = model.get("head"), { state } = app, ready = fits(answer.of, state)
    name.textContent = headName(state.head)
    which.value = state.head.join()
    known.classList.toggle("nmx-stale", !ready)
    about.dataset.head = ready ? answer.name : ""
    if (!ready) return
    const parts = []
    if (answer.problem) parts.push(h("p", { class: "nmx-problem" }, short(answer.problem)))
    else {
      const { tokens, values } = answer.attention
      const chips = run => h("p", { class: "nmx-look" }, h("span", { class: "nmx-label" }, `attention from the last token, ${run}: `), ...tokens[run].map((text, i) => {
        const colour = mix(meta.colours.sequential, values[run][i])
        const chip = token(text)
        chip.style.cssText = `background:${css(colour)};color:${ink(colour)}`
        chip.title = `position ${i}: ${number(values[run][i], 3)}`
        return chip
      }))
      parts.push(h("div", { class: "nmx-facts", role: "list" }, ...answer.facts.map(({ name, value, note }) => h("div", { role: "listitem" }, h("span", {}, name), h("b", {}, value), h("small", {}, note)))))
      if (answer.can_measure_roles && live) parts.push(h("div", { class: "nmx-actions" }, h("button", { type: "button", onclick: () => model.send({ type: "roles" }) }, "Measure the roles")))
      parts.push(chips("clean"), chips("corrupted"))
      const go = (text, change) => h("button", { type: "button", onclick: () => app.set(change) }, text)
      parts.push(h("div", { class: "nmx-actions" }, go("Who feeds it", { view: "paths", paths: "senders" }), go("Whom it feeds", { view: "paths", paths: "receivers" }), go("Its pattern", { view: "attention" })))
    }
    known.replaceChildren(...parts)
  }

  // links, files, code
  const note = h("p", { role: "status" }), box = h("div", { class: "nmx-box", hidden: true })
  const say = text => { note.textContent = text }
  const saved = indent => JSON.stringify({ [meta.format]: 1, ...app.state }, null, indent)
  const open = text => {
    try { const state = parse(text, meta.format); live ? model.send({ type: "open", text: JSON.stringify(state) }) : model.open(state); box.hidden = true } catch (e) { say(e.message) }
  }
  const boxes = {
    link: () => {
      const link = h("textarea", { readonly: true, rows: 3, "aria-label": "Link" }), address = (live ? "explorer.html" : location.href.split("#")[0]) + "#explorer=" + pack(saved())
      link.value = address
      box.replaceChildren(link)
      const copied = navigator.clipboard?.writeText(address)
      Promise.resolve(copied ?? Promise.reject()).then(() => say("The link is copied."), () => { say("Copy the link from here."); link.focus(); link.select() })
    },
    open: () => {
      const text = h("textarea", { rows: 3, placeholder: "A link, or the text of a saved file", "aria-label": "A link, or the text of a saved file" })
      const file = h("input", { type: "file", accept: ".json,application/json", "aria-label": "A saved file", onchange: () => file.files[0]?.text().then(open) })
      box.replaceChildren(text, h("div", { class: "nmx-actions" }, h("button", { type: "button", onclick: () => open(text.value) }, "Open this"), file))
      text.focus()
    },
    code: () => { box.replaceChildren(h("pre", { tabindex: 0, "aria-label": "Code" })); showCode() }
  }
  const toggles = Object.fromEntries(Object.entries({ link: "Copy link", open: "Open …", code: "Show the code" }).map(([kind, text]) => [kind, h("button", { type: "button", "data-action": kind, "aria-expanded": "false", onclick: () => toggle(kind) }, text)]))
  const toggle = kind => {
    const close = !box.hidden && box.dataset.kind === kind && kind !== "link"
    box.hidden = close
    box.dataset.kind = close ? "" : kind
    say("")
    for (const [name, button] of Object.entries(toggles)) button.setAttribute("aria-expanded", String(!close && name === kind))
    if (!close) boxes[kind]()
  }
  const showCode = () => { const pre = box.querySelector("pre"); if (pre && fits(model.get("figure").of, app.state)) pre.textContent = /^from namemovers import/.test(model.get("figure").code) ? model.get("figure").code : model.get("aligned").code + model.get("figure").code }
  const save = h("button", { type: "button", "data-action": "save", onclick: () => {
    const url = URL.createObjectURL(new Blob([saved(1)], { type: "application/json" }))
    h("a", { href: url, download: "explorer.json" }).click()
    setTimeout(() => URL.revokeObjectURL(url), 10_000)
    say("Saved as explorer.json.")
  } }, "Save file")
  const foot = h("div", { class: "nmx-foot" }, h("div", { class: "nmx-actions" }, toggles.link, save, toggles.open, toggles.code), note, box)

  // Notebook shortcuts would take the arrow keys and Enter: JupyterLab listens to what bubbles, Notebook 7 asks the focused element itself
  const root = h("div", { class: "nmx", "data-shown": "", onkeydown: e => e.stopPropagation(), onfocusin: e => e.target.setAttribute("data-lm-suppress-shortcuts", "true") },
    h("div", { class: "nmx-source" }, h("label", { for: source.id }, `${meta.model}, prompt`), source),
    h("div", { class: `nmx-fields${live ? "" : " nmx-fixed"}` }, ...(live ? inputs.flatMap(({ nodes }) => nodes) : [])), lined, problem, hint, bar, h("div", { class: "nmx-body" }, panel, about), foot)
  el.replaceChildren(root)

  const parts = { state: [showPrompts, showOptions, showFigure, showHead], aligned: [showPrompts, showCode], figure: [showFigure], head: [showHead], progress: [() => showBusy(!fits(model.get("figure").of, app.state))], note: [() => say(model.get("note"))] }
  const handlers = Object.entries(parts).map(([name, shows]) => [`change:${name}`, () => shows.forEach(show => show())])
  for (const [event, handler] of handlers) model.on(event, handler)
  for (const show of [showPrompts, showOptions, showFigure, showHead]) show()
  if (model.get("note")) say(model.get("note"))
  if (live && model.get("head").pending) model.send({ type: "again" }) // the rest of it
  return () => { clearTimeout(typing); clearTimeout(late); for (const [event, handler] of handlers) model.off(event, handler) }
}

// --- a page without a kernel

class Kept {
  constructor({ meta, state, kept }) {
    this.kept = kept
    this.listeners = {}
    this.values = { meta, state, progress: {}, note: "" }
    this.answer()
  }
  get(name) { return this.values[name] }
  set(name, value) { this.values[name] = value; this.changed = true }
  on(event, f) { (this.listeners[event] ||= []).push(f) }
  off(event, f) { this.listeners[event] = (this.listeners[event] || []).filter(g => g !== f) }
  send() {}
  answer() {
    const { state } = this.values, of = PROMPT.reduce((o, name) => ({ ...o, [name]: state[name] }), {})
    const group = this.kept.find(one => fits(one.aligned.of, state))
    this.values.aligned = group.aligned
    const found = answers => { const one = answers.find(answer => fits(answer.of, state)); return one && { ...one, of: { ...one.of, ...of } } }
    this.values.figure = found(group.figures) || { of: { ...of, view: state.view }, problem: "This page holds no answer for that; the notebook computes it.", code: "" }
    this.values.head = found(group.heads)
  }
  save_changes() {
    this.answer()
    for (const name of ["state", "aligned", "figure", "head"]) (this.listeners[`change:${name}`] || []).forEach(f => f())
  }
  tell(text) { this.values.note = text; (this.listeners["change:note"] || []).forEach(f => f()) }
  open(given) {
    const { meta, state } = this.values, prompt = meta.prompts.find(p => PROMPT.slice(0, 4).every(name => p[name] === given[name]))
    if (given.model !== meta.model) return this.tell(`This was saved with another model than ${meta.model}: open it in the notebook.`)
    if (!prompt) return this.tell("This page has no answers for the prompts of that link or file: open it in the notebook.")
    const { label, ...texts } = prompt, change = {}
    for (const name of ["site", "direction", "metric", "paths", "component", "run", "through_mlps"]) if (meta.options[name].includes(given[name])) change[name] = given[name]
    if (given.view in meta.views) change.view = given.view
    if (Array.isArray(given.head) && given.head.length === 2 && given.head[0] in [...Array(meta.layers)] && given.head[1] in [...Array(meta.heads)]) change.head = given.head
    const next = { ...state, ...texts, ...change }
    next.by = meta.options.by[next.site][0]
    this.set("state", next)
    this.save_changes()
    this.tell("")
  }
}

// What occurs often stands once, in `parts`; a part only refers to earlier ones.
function unfold([value, parts]) {
  const put = v => Array.isArray(v) ? v.map(put) : v && typeof v === "object" ? ("$" in v ? parts[v.$] : Object.fromEntries(Object.entries(v).map(([k, i]) => [k, put(i)]))) : v
  parts.forEach((part, i) => { parts[i] = put(part) })
  return put(value)
}

function startPages() {
  for (const page of document.querySelectorAll(".nmx-page:not([data-started])")) {
    page.dataset.started = "true"
    const model = new Kept(unfold(JSON.parse(page.querySelector("script[type='application/json']").textContent))), box = page.appendChild(document.createElement("div"))
    render({ model, el: box })
    const linked = () => { if (/#explorer=/.test(location.hash)) try { model.open(parse(location.hash, model.get("meta").format)) } catch (e) { model.tell(e.message) } }
    linked()
    addEventListener("hashchange", linked)
  }
}

export default { render }
