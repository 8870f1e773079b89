// Theme, navigation on narrow screens, table scrolling and search. No request leaves the site:
// the search library and its index come in as scripts, which also works from file://.
(() => {
  const html = document.documentElement, root = html.dataset.root || ""
  const $ = (query, from = document) => from.querySelector(query)

  const dark = () => html.dataset.theme ? html.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches
  const announce = () => document.dispatchEvent(new Event("themechange"))
  $(".theme").addEventListener("click", () => {
    html.dataset.theme = dark() ? "light" : "dark"
    try { localStorage.setItem("namemovers-theme", html.dataset.theme) } catch (e) { /* storage may be off */ }
    announce()
  })
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", announce)

  const menu = $(".menu"), sidebar = $("#page-list")
  const behind = document.querySelectorAll(".page > :not(#page-list)")
  const openMenu = open => {
    document.body.classList.toggle("menu-open", open)
    menu.setAttribute("aria-expanded", open)
    behind.forEach(part => { part.inert = open })  // what the open menu covers takes no focus
  }
  matchMedia("(max-width: 54rem)").addEventListener("change", () => openMenu(false))
  menu.addEventListener("click", () => openMenu(!document.body.classList.contains("menu-open")))
  document.addEventListener("keydown", e => { if (e.key === "Escape" && document.body.classList.contains("menu-open")) { openMenu(false); menu.focus() } })
  const here = $("[aria-current=page]", sidebar)
  if (here) sidebar.scrollTop = Math.max(0, here.offsetTop - sidebar.clientHeight / 2)

  const contents = $(".contents details"), wide = matchMedia("(min-width: 100rem)")
  if (contents) { const fit = () => { contents.open = wide.matches }; fit(); wide.addEventListener("change", fit) }

  // A box that scrolls sideways must be reachable by keyboard, one that does not must not be a stop.
  const scrollers = document.querySelectorAll(".table-scroll, article pre, article math[display=block]")
  const reach = () => scrollers.forEach(box => {
    const scrolls = box.scrollWidth > box.clientWidth + 1, name = box.matches("pre") ? "Text" : box.matches("math") ? "" : "Table"
    if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex")
    if (name && scrolls) { box.setAttribute("role", "group"); box.setAttribute("aria-label", name + ", scrolls sideways") }
    else if (name) { box.removeAttribute("role"); box.removeAttribute("aria-label") }
  })
  reach()
  const sizes = new ResizeObserver(reach)
  scrollers.forEach(box => sizes.observe(box))

  // xarray's own tables: a box to tick for each part, named by what it opens.
  for (const box of document.querySelectorAll(".xr-wrap input")) {
    const label = box.nextElementSibling, of = box.closest(".xr-var-item, .xr-section-item")?.querySelector(".xr-var-name, .xr-section-summary")
    box.setAttribute("aria-label", `${label?.title || "Show"} ${of?.textContent.trim() ?? ""}`.trim())
  }

  // The heading in view is marked in the table of contents.
  const marks = new Map([...document.querySelectorAll(".contents a")].map(a => [decodeURIComponent(a.hash.slice(1)), a]))
  const heads = [...marks.keys()].map(id => document.getElementById(id)).filter(Boolean)
  const mark = () => {
    let now = heads[0]
    for (const h of heads) if (h.getBoundingClientRect().top < 120) now = h; else break
    marks.forEach((a, id) => a.classList.toggle("now", now && id === now.id))
  }
  if (heads.length) { addEventListener("scroll", mark, { passive: true }); mark() }

  // Search
  const dialog = $("dialog.search"), input = $("input", dialog), list = $("#search-hits"), note = $(".search-note", dialog)
  const script = src => new Promise((done, failed) => document.head.append(Object.assign(document.createElement("script"), { src: root + src, onload: done, onerror: failed })))
  const words = text => (text.toLowerCase().match(/[\p{L}\p{N}_.]+/gu) || []).flatMap(w => {
    w = w.replace(/^\.+|\.+$/g, "")
    const parts = w.split(/[_.]+/).filter(Boolean)
    return parts.length > 1 ? [w, ...parts] : w ? [w] : []
  })
  let index, sections, loading, hits = [], at = -1
  const load = () => loading ||= Promise.all([script("assets/minisearch.min.js"), script("assets/search-index.js")]).then(() => {
    sections = window.searchIndex
    index = new MiniSearch({ fields: ["heading", "page", "text", "code"], idField: "id", tokenize: words,
      searchOptions: { boost: { heading: 4, page: 2, code: 0.2 }, prefix: t => !/^l\d+h\d+$/.test(t), fuzzy: t => /\d/.test(t) || t.length < 5 ? false : 0.2,
        boostDocument: id => sections[id].url.startsWith("api.html") ? 0.3 : sections[id].url.startsWith("core/") ? 0.6 : 1,
        tokenize: text => (text.toLowerCase().match(/[\p{L}\p{N}_.]+/gu) || []).map(w => w.replace(/^\.+|\.+$/g, "")).filter(Boolean) } })
    index.addAll(sections.map((s, id) => ({ id, ...s })))
  }).catch(() => { note.textContent = "The search index could not be loaded."; loading = undefined })

  const excerpt = (text, terms) => {
    const low = text.toLowerCase(), first = Math.min(...terms.map(t => low.indexOf(t)).filter(i => i >= 0))
    const start = Number.isFinite(first) ? Math.max(0, first - 50) : 0
    const out = document.createElement("span"); out.className = "excerpt"
    const piece = (start ? "…" : "") + text.slice(start, start + 150) + (start + 150 < text.length ? "…" : "")
    const pattern = terms.length ? new RegExp("(" + terms.map(t => t.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")", "gi") : null
    for (const bit of pattern ? piece.split(pattern) : [piece]) {
      if (terms.includes(bit.toLowerCase())) out.append(Object.assign(document.createElement("mark"), { textContent: bit })); else out.append(bit)
    }
    return out
  }
  const choose = k => {
    at = k
    ;[...list.children].forEach((li, i) => { li.setAttribute("aria-selected", i === k); if (i === k) li.scrollIntoView({ block: "nearest" }) })
    if (k >= 0) input.setAttribute("aria-activedescendant", "hit" + k); else input.removeAttribute("aria-activedescendant")
  }
  const show = () => {
    const query = input.value.trim()
    if (!index) return
    hits = query ? index.search(query, { combineWith: "AND" }) : []
    if (query && !hits.length) hits = index.search(query)
    hits = hits.slice(0, 12)
    list.replaceChildren(...hits.map((hit, i) => {
      const s = sections[hit.id], li = document.createElement("li"), a = document.createElement("a")
      li.id = "hit" + i; li.setAttribute("role", "option")
      a.href = root + s.url; a.tabIndex = -1
      const name = Object.assign(document.createElement("strong"), { textContent: s.heading || s.page })
      const page = Object.assign(document.createElement("span"), { className: "from", textContent: s.heading && s.heading !== s.page ? s.page : "" })
      a.append(name, page, excerpt(hit.terms.some(t => s.text.toLowerCase().includes(t)) ? s.text : s.code || s.text, hit.terms))
      a.addEventListener("click", () => dialog.close())
      li.append(a)
      return li
    }))
    input.setAttribute("aria-expanded", hits.length > 0)
    note.textContent = query ? (hits.length ? "" : "Nothing found.") : ""
    choose(hits.length ? 0 : -1)
  }
  const openSearch = () => { if (!dialog.open) dialog.showModal(); input.select(); load().then(show) }
  $(".search-open").addEventListener("click", openSearch)
  input.addEventListener("input", show)
  input.addEventListener("keydown", e => {
    if (e.key === "ArrowDown" && hits.length) { e.preventDefault(); choose((at + 1) % hits.length) }
    else if (e.key === "ArrowUp" && hits.length) { e.preventDefault(); choose((at - 1 + hits.length) % hits.length) }
    else if (e.key === "Escape") { e.preventDefault(); dialog.close() }
    else if (e.key === "Enter") { e.preventDefault(); $("a", list.children[at] || document.createElement("li"))?.click() }
  })
  dialog.addEventListener("click", e => { if (e.target === dialog) dialog.close() })
  document.addEventListener("keydown", e => {
    const typing = /^(input|textarea|select)$/i.test(e.target.tagName) || e.target.isContentEditable
    if ((e.key === "/" && !typing && !e.ctrlKey && !e.metaKey) || (e.key === "k" && (e.ctrlKey || e.metaKey))) { e.preventDefault(); openSearch() }
  })
})()
