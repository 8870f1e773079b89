// Draws the page's plotly figures. plotly.js (one copy for the whole site) is loaded when the first
// figure comes into view; each figure's data stands in the page as JSON, so nothing is fetched.
(() => {
  const root = document.currentScript?.dataset.root ?? document.documentElement.dataset.root ?? ""
  const figures = [...document.querySelectorAll(".nm-figure")]
  if (!figures.length) return
  const config = { responsive: false, displaylogo: false, showSendToCloud: false, showEditInChartStudio: false,
    modeBarButtonsToRemove: ["sendDataToCloud", "editInChartStudio", "select2d", "lasso2d", "autoScale2d"] }
  let plotly
  const load = () => plotly ||= new Promise((done, failed) => document.head.append(Object.assign(document.createElement("script"),
    { src: root + "assets/plotly.min.js", onload: () => done(window.Plotly), onerror: failed })))

  // Plotly knows no CSS variables, so the page's colours are read from the figure's own box.
  const colours = box => {
    const css = getComputedStyle(box)
    return { text: css.color, grid: css.borderTopColor, card: css.outlineColor, soft: css.columnRuleColor, family: css.fontFamily }
  }
  const themed = (layout, box) => {
    const { text, grid, card, soft, family } = colours(box)
    const look = { "font.color": text, "font.family": family, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": card, "hoverlabel.bordercolor": grid, "hoverlabel.font.color": text,
      "modebar.color": soft, "modebar.activecolor": text, "modebar.bgcolor": "rgba(0,0,0,0)" }
    // Figures made for a clear background have lines that suit both themes; plotly's own look has not.
    if (layout.template?.layout?.plot_bgcolor !== "rgba(0,0,0,0)") {
      const axes = new Set(["xaxis", "yaxis", ...Object.keys(layout).filter(key => /^[xy]axis\d*$/.test(key))])
      for (const axis of axes) for (const line of ["gridcolor", "zerolinecolor", "linecolor", "tickcolor"]) look[`${axis}.${line}`] = grid
    }
    return look
  }
  // The library's colour scales are white where nothing happens; on a dark page that is dark.
  const scales = [
    [["#8e1b1f", "#cc5b4a", "#f0b9a4", "#f4f2f0", "#a9cbe4", "#3f86c2", "#123f7c"], ["#ffb3a3", "#e0604a", "#7d3a33", "#2a2f38", "#2b4f74", "#4a95d6", "#b4d9ff"]],
    [["#f4f2f0", "#bcd7e8", "#6aaed6", "#2a75b3", "#0b3566"], ["#2a2f38", "#27496b", "#2f73ad", "#6aaed6", "#d6ecfa"]]]
  const night = scale => {
    if (!Array.isArray(scale)) return scale
    const dark = scales.find(([day]) => day.length === scale.length && day.every((colour, i) => colour === scale[i][1]))?.[1]
    return dark ? scale.map(([at], i) => [at, dark[i]]) : scale
  }
  const darken = (data, layout) => {
    for (const part of [...data, ...data.map(trace => trace.marker), ...Object.keys(layout).filter(key => /^coloraxis/.test(key)).map(key => layout[key])])
      if (part?.colorscale) part.colorscale = night(part.colorscale)
  }
  const assign = (into, path, value) => {
    const keys = path.split("."), last = keys.pop()
    keys.reduce((o, key) => o[key] ??= {}, into)[last] = value
  }
  // Plotly does not break a title that is wider than the figure, or than its axis is long.
  const broken = (text, most) => {
    const lines = [""]
    for (const word of text.split(/<br>| /)) {
      if (lines.at(-1) && (lines.at(-1) + " " + word).length > most) lines.push(word)
      else lines.push((lines.pop() + " " + word).trim())
    }
    return lines
  }
  const fitTitle = (layout, width) => {
    const title = layout.title, size = title?.font?.size ?? layout.template?.layout?.title?.font?.size ?? 17
    const most = Math.max(20, Math.floor((width - 12) / size / 0.58))
    if (typeof title?.text !== "string" || /<[^<>]*\s[^<>]*>/.test(title.text)) return
    const before = title.text.split("<br>"), lines = broken(title.text, most)
    if (before.every(line => line.length <= most)) return
    const more = 1.3 * size * (lines.length - before.length)
    title.text = lines.join("<br>")
    layout.margin = { ...layout.margin, t: (layout.margin?.t ?? 100) + more }
    layout.height += more
    const pad = { ...layout.template?.layout?.title?.pad, ...title.pad }
    if (pad.t !== undefined) title.pad = { ...pad, t: pad.t + more / 2 }
  }
  const fitAxes = (layout, width) => {
    for (const [axis, length] of [["xaxis", width - 150], ["yaxis", layout.height - 130]]) {
      const title = layout[axis]?.title, most = Math.max(12, Math.floor(length / 7.6))
      if (typeof title?.text !== "string" || /</.test(title.text) || title.text.length <= most) continue
      const lines = broken(title.text, most)
      title.text = lines.join("<br>")
      layout[axis].automargin = true
      if (axis === "xaxis") layout.height += 17 * (lines.length - 1)
    }
  }
  // Labels set level for a wide page would run into each other on a narrow one; where they have no room even when they
  // are slanted, and where letters stand in cells or on nodes, the figure is wider than the page and scrolls in its box.
  const fitLabels = (layout, data, width) => {
    const room = width - 140 - (layout.margin?.r ?? 20)
    let least = width
    const across = new Set(Object.keys(layout).filter(key => /^xaxis/.test(key)).map(key => (layout[key].domain ?? [0, 1])[0])).size
    if (across > 1) least = Math.max(least, 240 * across)
    if ((layout.annotations ?? []).some(note => note.bgcolor)) least = Math.max(least, layout.width ?? 0)
    for (const { text, texttemplate, type } of data) if (type === "heatmap" && texttemplate && Array.isArray(text?.[0])) {
      const longest = Math.max(...text.flat().map(word => String(word).replace(/<[^>]*>/g, "").length))
      if (longest > 1) least = Math.max(least, layout.width ?? Math.ceil(across * ((9 * longest + 8) * text[0].length + 170)))
    }
    const { ticktext: names, tickangle } = layout.xaxis ?? {}
    if (across > 1 || !Array.isArray(names) || !names.length) return least
    const longest = Math.max(...names.map(name => String(name).replace(/<[^>]*>|&\w+;/g, "x").length))
    let slanted = !!tickangle
    if (tickangle === 0 && longest * 7.5 + 6 > (room + least - width) / names.length) {
      if (longest < 3) return Math.max(least, Math.ceil(width - room + 22 * names.length))
      layout.xaxis.tickangle = -60
      layout.height += Math.min(110, Math.round(longest * 6.5))
      slanted = true
    }
    return slanted ? Math.max(least, Math.ceil(width - room + 15 * names.length)) : least
  }
  const prepare = box => {
    const target = box.querySelector(".nm-plot"), { data, layout, frames } = JSON.parse(box.querySelector("script").textContent)
    layout.height ??= 450
    layout.autosize = false
    layout.uirevision ??= "kept"
    const width = target.clientWidth
    if (width < 500) for (const [of, key] of [[layout.yaxis, "ticktext"], ...data.filter(trace => trace.orientation === "h").map(trace => [trace, "y"])]) // names beside bars
      if (Array.isArray(of?.[key])) of[key] = of[key].map(name => typeof name === "string" && !/</.test(name) ? broken(name, 18).join("<br>") : name)
    layout.width = fitLabels(layout, data, width)
    fitTitle(layout, width)
    fitAxes(layout, layout.width)
    for (const [path, value] of Object.entries(themed(layout, box))) assign(layout, path, value)
    if (luminance(rgb(colours(box).text)) > 0.2) darken(data, layout)
    return { target, data, layout, frames, width }
  }

  // What is only known once it is drawn: letters that lie on each other, and letters that their ground swallows.
  const overlap = (p, q) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1
  const meet = boxes => boxes.some((p, i) => boxes.slice(i + 1).some(q => overlap(p, q)))
  const settle = async (Plotly, target) => {
    for (let round = 0; round < 3; round++) {
      const full = target._fullLayout, change = {}
      for (const key of Object.keys(full).filter(key => /^[xy]axis\d*$/.test(key))) {
        const axis = full[key], ticks = [...target.querySelectorAll(`.${axis._id}tick text`)].filter(t => t.textContent.trim())
        const level = ticks.filter(t => { const m = t.getScreenCTM(); return Math.abs(m.a) < 0.01 || Math.abs(m.b) < 0.01 }).map(t => t.getBoundingClientRect())
        if (!meet(level)) continue
        const upright = axis._id[0] === "y", size = Math.max(...level.map(box => upright ? box.height : box.width)) + 8
        const most = Math.max(2, Math.floor(axis._length / size))
        if (axis.type === "log") change[`${key}.dtick`] = 1
        else if (axis.tickmode === "array" && Array.isArray(axis.tickvals)) {
          const step = Math.ceil(axis.tickvals.length / most), some = (_, i) => i % step === 0
          change[`${key}.tickvals`] = axis.tickvals.filter(some)
          if (Array.isArray(axis.ticktext)) change[`${key}.ticktext`] = axis.ticktext.filter(some)
        } else change[`${key}.nticks`] = most
      }
      const title = target.querySelector(".gtitle")?.getBoundingClientRect(), legend = target.querySelector(".legend .bg")?.getBoundingClientRect()
      if (title && legend && overlap(title, legend)) {
        const more = Math.ceil(title.bottom + 6 - legend.top)
        change["margin.t"] = full.margin.t + more
        change.height = full.height + more
      }
      const ticks = [...target.querySelectorAll(".xaxislayer-above text")].map(text => text.getBoundingClientRect())
      if (legend && full.legend.y < 0 && ticks.some(box => overlap(box, legend))) {
        const more = Math.ceil(Math.max(...ticks.map(box => box.bottom)) + 8 - legend.top)
        change["legend.y"] = full.legend.y - more / full._size.h
        change.height = (change.height ?? full.height) + more
      }
      if (meet([...target.querySelectorAll(".cbaxis text")].map(text => text.getBoundingClientRect()))) {
        for (const key of Object.keys(full).filter(key => /^coloraxis\d*$/.test(key))) change[`${key}.colorbar.nticks`] = 4
        const own = target.data.flatMap((trace, i) => trace.colorbar ? [i] : [])
        if (own.length) await Plotly.restyle(target, { "colorbar.nticks": 4 }, own)
      }
      if (!Object.keys(change).length) return
      await Plotly.relayout(target, change)
    }
  }
  const rgb = text => (text.match(/[\d.]+/g) ?? []).map(Number)
  const luminance = colour => colour.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const ground = async text => { // the colour of the cell or bar that a text stands in
    const image = text.closest(".hm")?.querySelector("image"), bar = text.closest(".point")?.querySelector("path")
    if (bar) { const style = getComputedStyle(bar); return +style.fillOpacity * +style.opacity > 0.9 && (rgb(style.fill)[3] ?? 1) > 0.9 ? rgb(style.fill) : null }
    if (!image) return null
    if (!image.pen || image.source !== image.href.baseVal) {
      const picture = new Image()
      picture.src = image.source = image.href.baseVal
      await picture.decode()
      image.pen = Object.assign(document.createElement("canvas"), { width: picture.naturalWidth, height: picture.naturalHeight }).getContext("2d", { willReadFrequently: true })
      image.pen.drawImage(picture, 0, 0)
    }
    const on = image.getBoundingClientRect(), at = text.getBoundingClientRect(), { width, height } = image.pen.canvas
    const x = Math.floor((at.left + at.width / 2 - on.left) / on.width * width), y = Math.floor((at.top + at.height / 2 - on.top) / on.height * height)
    const [r, g, b, a] = image.pen.getImageData(x, y, 1, 1).data
    return a > 250 ? [r, g, b] : null
  }
  const legible = async target => {
    const named = []
    for (const text of target.querySelectorAll(".textpoint text")) { // a name that would lie on another: hover has it
      const box = text.getBoundingClientRect()
      if (named.some(other => overlap(box, other))) text.style.display = "none"
      else named.push(box)
    }
    for (const text of target.querySelectorAll(".heatmap-label text, .bartext-inside")) {
      const back = await ground(text)
      if (!back) continue
      const under = luminance(back), front = luminance(rgb(getComputedStyle(text).fill))
      if ((Math.max(under, front) + 0.05) / (Math.min(under, front) + 0.05) < 4.5) text.style.fill = under > 0.179 ? "#000" : "#fff"
    }
  }
  // One image with a name instead of loose letters; one stop of Tab for all buttons of a figure, arrows between them.
  const describe = (box, target) => {
    target.querySelectorAll(".main-svg").forEach((svg, i) => {
      if (i) svg.setAttribute("aria-hidden", "true")
      else { svg.setAttribute("role", "img"); svg.setAttribute("aria-label", box.dataset.title || box.getAttribute("aria-label")) }
    })
    const bar = target.querySelector(".modebar"), buttons = bar ? [...bar.querySelectorAll(".modebar-btn")] : []
    if (target.scrollWidth > target.clientWidth + 1) { target.tabIndex = 0; target.setAttribute("role", "group"); target.setAttribute("aria-label", "Figure, scrolls sideways") }
    else for (const name of ["tabindex", "role", "aria-label"]) target.removeAttribute(name)
    if (!buttons.length) return
    bar.setAttribute("aria-label", "Figure tools")
    if (!buttons.some(button => button === document.activeElement)) buttons.forEach((button, i) => { button.tabIndex = i ? -1 : 0 })
  }
  document.addEventListener("keydown", e => {
    const button = e.target.closest?.(".nm-figure .modebar-btn"), step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key]
    if (!button || !(step || e.key === "Home" || e.key === "End")) return
    const all = [...button.closest(".modebar").querySelectorAll(".modebar-btn")], last = all.length - 1
    const next = all[e.key === "Home" ? 0 : e.key === "End" ? last : (all.indexOf(button) + step + all.length) % all.length]
    e.preventDefault()
    all.forEach(b => { b.tabIndex = b === next ? 0 : -1 })
    next.focus()
  })

  const draw = async box => {
    box.drawing = true
    try {
      const Plotly = await load(), { target, data, layout, frames, width } = prepare(box), first = !target._fullLayout
      Object.assign(box.dataset, { width, theme: luminance(rgb(colours(box).text)) > 0.2 ? "dark" : "light" })
      await Plotly[first ? "newPlot" : "react"](target, data, layout, config)
      if (first && frames?.length) await Plotly.addFrames(target, frames)
      await settle(Plotly, target)
      await legible(target)
      if (first) target.on("plotly_afterplot", () => { describe(box, target); legible(target) })
      describe(box, target)
      box.dataset.state = "drawn"
    } catch (e) {
      box.dataset.state = "failed"
      box.querySelector(".nm-plot").textContent = "This figure could not be drawn."
      console.error(e)
    }
    box.drawing = false
    if (box.stale) { box.stale = false; again(box) } // colours or width changed while it was being drawn
  }
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target) }
  }, { rootMargin: "400px 0px" })
  figures.forEach(box => seen.observe(box))
  // A drawn figure is drawn anew, when it is next in view, for other colours and another width.
  const again = box => {
    if (box.drawing) box.stale = true
    else if (box.dataset.state === "drawn") { box.dataset.state = "old"; seen.observe(box) }
  }
  document.addEventListener("themechange", () => figures.forEach(again))
  const sized = new ResizeObserver(entries => {
    for (const { target } of entries) { const box = target.closest(".nm-figure"); if (box.dataset.width && Math.abs(target.clientWidth - box.dataset.width) > 1) again(box) }
  })
  figures.forEach(box => sized.observe(box.querySelector(".nm-plot")))
  addEventListener("beforeprint", () => figures.forEach(box => { if (box.dataset.state !== "drawn") { seen.unobserve(box); draw(box) } }))
  // Quarto's own switch between light and dark changes a class of the body.
  new MutationObserver(() => /quarto/.test(document.body.className) && document.dispatchEvent(new Event("themechange"))).observe(document.body, { attributeFilter: ["class"] })
})()
