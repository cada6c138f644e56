// Bokeh draws on canvases, which know no style sheet: give axes, grids and legends the page's colours, light or dark.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)")
  const colour = () => {
    const [text, quiet, line] = ["--text", "--quiet", "--line"].map(name =>
      getComputedStyle(document.documentElement).getPropertyValue(name).trim())
    for (const root of Bokeh.documents.flatMap(each => each.roots())) {
      for (const model of root.references()) {
        const has = name => name in model.properties
        if (has("axis_label_text_color"))
          model.setv({ axis_label_text_color: quiet, major_label_text_color: quiet, axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: null })
        if (has("grid_line_color")) model.setv({ grid_line_color: line })
        if (has("label_text_color")) model.setv({ label_text_color: text })
      }
    }
  }
  dark.addEventListener("change", colour)
  document.addEventListener("DOMContentLoaded", () => {
    const ready = setInterval(() => {
      if (!Bokeh.documents.length) return
      clearInterval(ready)
      colour()
      document.documentElement.dataset.charts = "drawn"
    }, 20)
  })
})()
