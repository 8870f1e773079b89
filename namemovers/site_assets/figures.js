// Draws the page's plotly figures. plotly.js (one copy for the whole site) is loaded when the first
// figure comes into view; each figure's data stands in the page as JSON, so nothing is fetched.
(() => {
  const root = document.currentScript?.dataset.root ?? document.documentElement.dataset.root ?? ""
  const figures = [...document.querySelectorAll(".nm-figure")]
  if (!figures.length) return
  const config = { responsive: true, displaylogo: false, showSendToCloud: false, showEditInChartStudio: false,
    modeBarButtonsToRemove: ["sendDataToCloud", "editInChartStudio", "select2d", "lasso2d", "autoScale2d"] }
  let plotly
  const load = () => plotly ||= new Promise((done, failed) => document.head.append(Object.assign(document.createElement("script"),
    { src: root + "assets/plotly.min.js", onload: () => done(window.Plotly), onerror: failed })))

  // Plotly knows no CSS variables, so the page's colours are read from the figure's own box.
  const colours = box => {
    const css = getComputedStyle(box)
    return { text: css.color, grid: css.borderTopColor, card: css.outlineColor, family: css.fontFamily }
  }
  const themed = (layout, box) => {
    const { text, grid, card, family } = colours(box)
    const look = { "font.color": text, "font.family": family, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": card, "hoverlabel.bordercolor": grid, "hoverlabel.font.color": text,
      "modebar.color": grid, "modebar.activecolor": text, "modebar.bgcolor": "rgba(0,0,0,0)" }
    // Figures made for a clear background have lines that suit both themes; plotly's own look has not.
    if (layout.template?.layout?.plot_bgcolor !== "rgba(0,0,0,0)") {
      const axes = new Set(["xaxis", "yaxis", ...Object.keys(layout).filter(key => /^[xy]axis\d*$/.test(key))])
      for (const axis of axes) for (const line of ["gridcolor", "zerolinecolor", "linecolor", "tickcolor"]) look[`${axis}.${line}`] = grid
    }
    return look
  }
  const assign = (into, path, value) => {
    const keys = path.split("."), last = keys.pop()
    keys.reduce((o, key) => o[key] ??= {}, into)[last] = value
  }
  // Plotly does not break a title that is wider than the figure.
  const fitTitle = (layout, width) => {
    const title = layout.title, most = Math.max(24, Math.floor(width / 8.2))
    if (typeof title?.text !== "string" || /<(?!br>)/.test(title.text)) return
    const before = title.text.split("<br>"), lines = [""]
    if (before.every(line => line.length <= most)) return
    for (const word of before.join(" ").split(" ")) {
      if (lines.at(-1) && (lines.at(-1) + " " + word).length > most) lines.push(word)
      else lines.push((lines.pop() + " " + word).trim())
    }
    const more = 20 * (lines.length - before.length)
    title.text = lines.join("<br>")
    layout.margin = { ...layout.margin, t: (layout.margin?.t ?? 100) + more }
    layout.height += more
    if (title.pad?.t !== undefined) title.pad.t += more / 2
  }
  const draw = async box => {
    const target = box.querySelector(".nm-plot")
    try {
      const Plotly = await load(), { data, layout, frames } = JSON.parse(box.querySelector("script").textContent)
      layout.autosize = true
      layout.height ??= target.clientHeight || 450
      delete layout.width
      fitTitle(layout, target.clientWidth)
      // Labels set level for a wide page would run into each other on a narrow one.
      if (layout.xaxis?.tickangle === 0 && layout.xaxis.ticktext?.join("  ").length * 7.5 > target.clientWidth - 130) {
        layout.xaxis.tickangle = -60
        layout.height += 45
      }
      for (const [path, value] of Object.entries(themed(layout, box))) assign(layout, path, value)
      await Plotly.newPlot(target, data, layout, config)
      if (frames?.length) await Plotly.addFrames(target, frames)
      box.dataset.state = "drawn"
    } catch (e) {
      box.dataset.state = "failed"
      target.textContent = "This figure could not be drawn."
      console.error(e)
    }
  }
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target) }
  }, { rootMargin: "400px 0px" })
  figures.forEach(box => seen.observe(box))
  addEventListener("beforeprint", () => figures.forEach(box => { if (!box.dataset.state) { seen.unobserve(box); draw(box) } }))
  document.addEventListener("themechange", () => figures.forEach(box => {
    const target = box.querySelector(".nm-plot")
    if (box.dataset.state === "drawn") window.Plotly.relayout(target, themed(target.layout, box))
  }))
  // Quarto's own switch between light and dark changes a class of the body.
  new MutationObserver(() => /quarto/.test(document.body.className) && document.dispatchEvent(new Event("themechange"))).observe(document.body, { attributeFilter: ["class"] })
})()
