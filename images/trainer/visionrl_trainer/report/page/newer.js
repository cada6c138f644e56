// Where the trainer serves the page, tell of a newer one. A reload would interrupt a film, so the reader decides.
if (location.protocol.startsWith("http")) {
  const tag = async () => (await fetch(location.pathname, { method: "HEAD", cache: "no-store" })).headers.get("etag")
  tag().then(shown => {
    const newer = document.getElementById("newer")
    newer.onclick = () => location.reload()
    setInterval(async () => {
      try {
        const now = await tag()
        newer.hidden = !now || now === shown
      } catch {
        // the trainer has ended
      }
    }, 10000)
  })
}
