// Plays the films. Two films of one section show the same turn, side by side.
(() => {
  const SECONDS_PER_TURN = 0.7
  const sections = JSON.parse(document.getElementById("films").textContent)
  const large = document.getElementById("large")
  const add = (parent, tag, text, name) => {
    const element = parent.appendChild(document.createElement(tag))
    element.textContent = text
    if (name) element.className = name
    return element
  }
  const signed = value => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2)

  function show(article, turns, index) {
    const turn = turns[Math.min(index, turns.length - 1)]
    const image = article.querySelector("img")
    image.hidden = !turn.image
    if (turn.image) image.src = turn.image
    const words = article.querySelector(".turn")
    words.replaceChildren()
    const over = index >= turns.length ? " · the episode is over" : ""
    const advantage = turn.advantage === null ? "" : ` · advantage ${signed(turn.advantage)}`
    add(words, "div", `turn ${Math.min(index + 1, turns.length)} of ${turns.length} · reward ${signed(turn.reward)}${advantage}${over}`, "numbers")
    add(words, "div", turn.actions.length ? `actions: ${turn.actions.join(", ")}` : "no action", "actions")
    for (const event of turn.events) add(words, "div", `★ ${event}`, "event")
    if (!turn.valid) add(words, "div", turn.error || "no usable answer", "error")
    if (turn.text) add(words, "pre", turn.text)
    return turn
  }

  for (const section of document.querySelectorAll("[data-films]")) {
    const films = sections[section.dataset.films]
    const articles = [...section.querySelectorAll(".film")]
    const [slider, output, play] = ["input", "output", ".play"].map(name => section.querySelector(name))
    const last = Math.max(...films.map(turns => turns.length)) - 1
    let timer = null
    slider.max = last
    const to = index => {
      slider.value = Math.max(0, Math.min(last, index))
      articles.forEach((article, n) => show(article, films[n], Number(slider.value)))
      output.textContent = `${Number(slider.value) + 1} / ${last + 1}`
    }
    const pause = () => {
      clearInterval(timer)
      timer = null
      play.textContent = "▶"
      play.ariaLabel = "play"
    }
    const start = () => {
      if (Number(slider.value) >= last) to(0)
      play.textContent = "❚❚"
      play.ariaLabel = "pause"
      timer = setInterval(() => {
        to(Number(slider.value) + 1)
        if (Number(slider.value) >= last) pause()
      }, 1000 * SECONDS_PER_TURN)
    }
    const step = by => {
      pause()
      to(Number(slider.value) + by)
    }
    play.onclick = () => (timer === null ? start() : pause())
    section.querySelector(".back").onclick = () => step(-1)
    section.querySelector(".forward").onclick = () => step(+1)
    slider.oninput = () => step(0)
    section.onkeydown = event => {
      if (event.target !== slider && event.key === "ArrowLeft") step(-1)
      if (event.target !== slider && event.key === "ArrowRight") step(+1)
    }
    articles.forEach((article, n) => {
      article.querySelector(".screen").onclick = () => {
        pause()
        large.querySelector("img").src = article.querySelector("img").src
        large.querySelector("p").textContent = article.querySelector(".numbers").textContent
        large.showModal()
      }
    })
    to(0)
  }
  large.onclick = event => {
    if (event.target === large) large.close()
  }
})()
