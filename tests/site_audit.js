// Looks at a page as it is drawn, and says what somebody would stumble over who sees little or nothing, uses no mouse or
// has a narrow screen. Colours are those on the screen: text against what lies below it, half-transparent layers blended,
// pictures (heat maps) read at the text's place. Evaluated in the page: `page.evaluate(source)` gives sentences.
async () => {
  const wrong = [], say = (el, what) => wrong.push(`${what} <${named(el)}>`)
  const named = el => `${el.localName}${el.id ? "#" + el.id : ""}${typeof el.className === "string" && el.className ? "." + el.className.trim().split(/\s+/).join(".") : ""} “${(el.textContent || "").trim().replace(/\s+/g, " ").slice(0, 40)}”`
  const shown = el => el.checkVisibility({ visibilityProperty: true, opacityProperty: false }) && el.getClientRects().length > 0

  // --- colours
  const colour = text => {
    const n = text.match(/-?[\d.]+(?:e-?\d+)?/g)?.map(Number)
    if (!n || text === "none" || text.startsWith("url(") || text === "transparent") return [0, 0, 0, 0]
    const k = text.startsWith("color(") ? 255 : 1
    return [n[0] * k, n[1] * k, n[2] * k, n[3] ?? 1]
  }
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1)
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05) }
  const canvas = colour(getComputedStyle(document.body).backgroundColor), dark = light(canvas) < 0.2
  const seen = new Map()
  const background = el => { // of an element of HTML: its own and what shines through
    if (!el) return canvas
    if (!seen.has(el)) {
      const own = colour(getComputedStyle(el).backgroundColor), top = getComputedStyle(el).position === "fixed" || el.localName === "dialog"
      seen.set(el, own[3] === 1 ? own : over(own, top ? background(document.body) : background(el.parentElement)))
    }
    return seen.get(el)
  }
  const opacity = el => { let o = 1; for (; el && el !== document.documentElement; el = el.parentElement) o *= +getComputedStyle(el).opacity; return o }
  const pictures = new Map()
  const pixel = async (image, x, y) => {
    const box = image.getBoundingClientRect(), source = image.href.baseVal
    if (!pictures.has(source)) {
      const img = new Image(); img.src = source; await img.decode()
      const c = Object.assign(document.createElement("canvas"), { width: img.naturalWidth, height: img.naturalHeight })
      const pen = c.getContext("2d", { willReadFrequently: true }); pen.drawImage(img, 0, 0); pictures.set(source, pen)
    }
    const pen = pictures.get(source), at = (v, low, size, n) => Math.min(n - 1, Math.max(0, Math.floor((v - low) / size * n)))
    const d = pen.getImageData(at(x, box.left, box.width, pen.canvas.width), at(y, box.top, box.height, pen.canvas.height), 1, 1).data
    return [d[0], d[1], d[2], d[3] / 255]
  }
  const below = async (text, figure) => { // of a text of a figure: everything filled at its middle
    const box = text.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2
    let result = background(figure)
    for (const el of document.elementsFromPoint(x, y).reverse()) {
      if (!figure.contains(el) || el.localName === "text" || el.closest("text") || el.closest(".draglayer, .modebar")) continue
      if (!(text.compareDocumentPosition(el) & Node.DOCUMENT_POSITION_PRECEDING)) continue
      const style = getComputedStyle(el)
      if (el.localName === "image") result = over(await pixel(el, x, y), result)
      else if (el instanceof SVGGeometryElement) {
        const fill = colour(style.fill)
        fill[3] *= +style.fillOpacity * opacity(el)
        const point = new DOMPoint(x, y).matrixTransform(el.getScreenCTM().inverse())
        if (fill[3] > 0 && el.isPointInFill(point)) result = over(fill, result)
      } else if (!(el instanceof SVGElement) && el !== figure) result = over(colour(style.backgroundColor), result)
    }
    return result
  }
  const enough = (el, style, front, back) => {
    const size = parseFloat(style.fontSize), mark = /^[•✕×]$/.test(el.textContent.trim()) // a sign is a picture, not a text
    const large = mark || size >= 24 || (size >= 18.66 && +style.fontWeight >= 700)
    const ratio = contrast(over(front, back), back)
    if (ratio < (large ? 3 : 4.5) - 0.005) say(el, `contrast ${ratio.toFixed(2)} of ${style.fill !== "rgb(0, 0, 0)" && el instanceof SVGElement ? style.fill : style.color} on rgb(${back.slice(0, 3).map(Math.round)})`)
  }
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  const done = new Set()
  while (words.nextNode()) {
    const el = words.currentNode.parentElement
    if (!words.currentNode.data.trim() || done.has(el) || !shown(el) || el.closest("svg, script, style, noscript")) continue
    done.add(el)
    const style = getComputedStyle(el), front = colour(style.color)
    front[3] *= opacity(el)
    enough(el, style, front, background(el))
  }
  for (const el of document.querySelectorAll("body *:not(svg, svg *)")) for (const part of ["::before", "::after"]) {
    const style = getComputedStyle(el, part)
    if (/^"\s*\S/.test(style.content) && style.visibility === "visible" && +style.opacity && shown(el)) enough(el, style, colour(style.color), background(el))
  }

  // --- figures
  const hit = document.head.appendChild(Object.assign(document.createElement("style"), { textContent: ".nm-figure * { pointer-events: visiblePainted !important } .nm-figure div { pointer-events: auto !important }" }))
  for (const figure of document.querySelectorAll(".nm-figure")) {
    if (figure.dataset.state !== "drawn") { say(figure, "not drawn"); continue }
    figure.scrollIntoView({ block: "center", behavior: "instant" })
    const frame = figure.querySelector(".main-svg").getBoundingClientRect(), texts = [], contrasts = []
    for (const text of figure.querySelectorAll("text")) {
      const box = text.getBoundingClientRect()
      if (!text.textContent.trim() || !shown(text) || box.width < 1 || opacity(text) === 0) continue
      const parts = [...text.querySelectorAll("tspan")].filter(t => [...t.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
      for (const part of parts.length ? parts : [text]) {
        const style = getComputedStyle(part), front = colour(style.fill)
        front[3] *= +style.fillOpacity * opacity(part)
        contrasts.push([part, style, front])
        if (parseFloat(style.fontSize) < 9) say(part, `text of ${style.fontSize}`)
      }
      if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 3 || box.bottom > frame.bottom + 3) say(text, `${figure.getAttribute("aria-label").slice(0, 50)}: text is cut at the figure's edge`)
      const turn = text.getScreenCTM(), slanted = Math.abs(turn.b) > 0.01 && Math.abs(turn.a) > 0.01
      if (!slanted) for (const part of parts.length ? parts : [text]) texts.push([part, part.getBoundingClientRect(), text])
    }
    for (const [part, style, front] of contrasts) { // a wide figure scrolls in its frame, and only what is in sight has something below it
      const box = part.getBoundingClientRect()
      if (box.left < 0 || box.right > innerWidth || box.top < 0 || box.bottom > innerHeight) part.scrollIntoView({ block: "nearest", inline: "center", behavior: "instant" })
      enough(part, style, front, await below(part, figure))
    }
    texts.forEach(([a, p, of], i) => texts.slice(i + 1).forEach(([b, q, other]) => {
      if (of === other) return
      const area = Math.max(0, Math.min(p.right, q.right) - Math.max(p.left, q.left)) * Math.max(0, Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top))
      if (area > 0.25 * Math.min(p.width * p.height, q.width * q.height)) say(a, `${figure.getAttribute("aria-label").slice(0, 50)}: text lies on “${b.textContent.slice(0, 40)}”`)
    }))
    const label = figure.getAttribute("aria-label") || "", beyond = label.slice((figure.dataset.title || "").length).trim()
    if (!figure.dataset.title || beyond.split(/\s+/).length < 5) say(figure, `figure without words: “${label}”`)
    const ticks = [...figure.querySelectorAll(".xtick text")].map(t => [t.getScreenCTM(), t]).filter(([m]) => Math.abs(m.b) > 0.01 && Math.abs(m.a) > 0.01)
    const feet = ticks.map(([m, t]) => m.a * t.x.baseVal[0].value + m.c * t.y.baseVal[0].value + m.e).sort((a, b) => a - b)
    if (feet.some((x, i) => i && x - feet[i - 1] < 10)) say(figure, `${label.slice(0, 50)}: slanted labels lie on each other`)
    if (!figure.querySelector("svg.main-svg[role=img][aria-label]")) say(figure, "the drawing has no role and name")
    for (const svg of figure.querySelectorAll("svg.main-svg")) if (!svg.matches("[role=img][aria-label], [aria-hidden=true]")) say(svg, "the drawing's letters are read one by one")
  }
  hit.remove()
  for (const img of document.images) if (!img.hasAttribute("alt") || (img.closest("article") && !img.alt.trim())) say(img, "picture without words")
  if (dark) for (const el of document.querySelectorAll("body *")) {
    const box = el.getBoundingClientRect(), svg = el instanceof SVGElement
    const paint = colour(svg ? getComputedStyle(el).fill : getComputedStyle(el).backgroundColor)
    if ((svg && !/^(rect|path)$/.test(el.localName)) || getComputedStyle(el).filter.startsWith("invert")) continue
    if (svg) paint[3] *= +getComputedStyle(el).fillOpacity * opacity(el)
    if (paint[3] > 0.5 && light(paint) > 0.6 && box.width * box.height > 3000 && shown(el)) say(el, "a white box in the dark")
  }

  // --- keyboard
  const stops = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")].filter(el => shown(el) && !el.disabled)
  for (const el of document.querySelectorAll("[onclick], [role=button], [data-title].modebar-btn")) if (shown(el) && el.tabIndex < 0 && !el.closest("[role=toolbar]")) say(el, "not reached by keyboard")
  const kinds = new Set()
  for (const el of stops) {
    if (el.tabIndex > 0) say(el, "a place of its own in the order of Tab")
    const name = el.getAttribute("aria-label") || el.textContent.trim() || el.title || el.querySelector("img[alt]:not([alt=''])")?.alt || [...(el.labels || [])].map(l => l.textContent).join("")
    if (!name && el.tabIndex >= 0) say(el, "no name")
    const kind = [el.localName, el.className, el.parentElement.localName, el.parentElement.className, getComputedStyle(el).color, el.closest("nav, header, footer, table, pre, .nm-figure")?.className].join()
    if (el.tabIndex < 0 || kinds.has(kind)) continue // the same style sheet gives the same ring to what is alike
    kinds.add(kind)
    const look = () => { const s = getComputedStyle(el); return { ring: s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 1.5, colour: colour(s.outlineColor), all: [s.backgroundColor, s.borderColor, s.boxShadow].join() } }
    const before = look()
    el.focus({ preventScroll: true })
    if (document.activeElement !== el) { say(el, "takes no focus"); continue }
    const after = look()
    const label = el.matches(".xr-wrap input") && getComputedStyle(el.nextElementSibling).outlineStyle !== "none" // drawn in place of the box
    if (!label && !after.ring && before.all === after.all) say(el, "focus is not seen")
    if (after.ring && contrast(over(after.colour, background(el.parentElement)), background(el.parentElement)) < 3) say(el, "the ring of the focus is faint")
    el.blur()
  }
  for (const el of document.querySelectorAll("article *")) {
    const style = getComputedStyle(el)
    if (/auto|scroll/.test(style.overflowX) && el.scrollWidth > el.clientWidth + 1 && el.tabIndex < 0 && shown(el)) say(el, "scrolls sideways by mouse alone")
    if (/hidden|clip/.test(style.overflowX) && el.scrollWidth > el.clientWidth + 1 && shown(el) && style.textOverflow !== "ellipsis" && !el.closest("svg, .nm-plot") && style.position !== "absolute") say(el, "is cut")
  }

  // --- order
  const levels = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(shown)
  if (document.querySelectorAll("h1").length !== 1 || levels[0]?.localName !== "h1") wrong.push("no single h1 first")
  levels.forEach((h, i) => { if (i && +h.localName[1] > +levels[i - 1].localName[1] + 1) say(h, `${h.localName} after ${levels[i - 1].localName}`) })
  if (document.documentElement.lang !== "en" || !document.title.trim()) wrong.push("no language or title")
  const ids = [...document.querySelectorAll("[id]")].filter(el => !el.closest(".nm-plot")).map(el => el.id)
  ids.forEach((id, i) => { if (ids.indexOf(id) !== i) wrong.push(`two places are called ${id}`) })
  for (const a of document.querySelectorAll("a[href^='#']")) if (!document.getElementById(decodeURIComponent(a.hash.slice(1)))) say(a, "leads nowhere")
  for (const attribute of ["aria-controls", "aria-labelledby", "aria-describedby"]) for (const el of document.querySelectorAll(`[${attribute}]`)) for (const id of el.getAttribute(attribute).split(/\s+/)) if (!document.getElementById(id)) say(el, `${attribute} names nothing`)
  for (const table of document.querySelectorAll("article table")) if (!table.querySelector("th")) say(table, "a table without headings")

  // --- width
  const out = document.documentElement.scrollWidth - document.documentElement.clientWidth
  if (out > 0) wrong.push(`the page is ${out} pixels too wide`)
  for (const el of document.querySelectorAll("article *")) {
    const box = el.getBoundingClientRect()
    if (box.width && (box.right > innerWidth + 1 || box.left < -1) && !el.closest("svg, .table-scroll, pre, math, .nm-plot, .xr-wrap") && shown(el)) say(el, "reaches over the edge of the screen")
  }
  return wrong
}
