/* Search in pages that are opened from the file system, where browsers start no workers: the worker's script runs in a
   hidden frame of the page instead. The name is the one by which mkdocs-material's offline plugin knows such a script. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.ready = new Promise(resolve => {
        frame.onload = () => {
          const inside = frame.contentWindow
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          const element = inside.document.createElement("script")
          element.src = script
          element.onload = () => resolve(inside)
          inside.document.body.append(element)
        }
      })
      document.body.append(frame)
    }
    async postMessage(data) {
      const inside = await this.ready
      inside.dispatchEvent(new inside.MessageEvent("message", { data }))
    }
  }
}
