// How loud both sides were in the last seconds: the user above a line, Moshi below.

const BAR = 3 // pixels
const GAP = 2
const SOFTEST = -54 // dB

/** 0 … 1 of a peak between 0 and 1. */
function height(peak) {
  return Math.max(0, 1 - (20 * Math.log10(peak + 1e-9)) / SOFTEST)
}

export class Timeline {
  #canvas
  #bars = []

  constructor(canvas) {
    this.#canvas = canvas
    const draw = () => this.draw()
    new ResizeObserver(draw).observe(canvas)
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
  }

  add(you, moshi) {
    this.#bars.push([height(you), height(moshi)])
    if (this.#bars.length > 1000) this.#bars.splice(0, 500)
    this.draw()
  }

  draw() {
    const scale = devicePixelRatio
    const { clientWidth: width, clientHeight: high } = this.#canvas
    this.#canvas.width = width * scale
    this.#canvas.height = high * scale
    const brush = this.#canvas.getContext('2d')
    brush.scale(scale, scale)
    const style = getComputedStyle(this.#canvas)
    const colours = ['--you', '--moshi', '--line'].map(name => style.getPropertyValue(name))
    const middle = high / 2
    const count = Math.floor(width / (BAR + GAP))
    const bars = this.#bars.slice(-count)
    for (let i = 0; i < count; i++) {
      const x = width - (count - i) * (BAR + GAP)
      const [you, moshi] = bars[i - count + bars.length] ?? [0, 0]
      brush.fillStyle = colours[2]
      brush.fillRect(x, middle - 0.5, BAR, 1)
      for (const [level, colour, up] of [[you, colours[0], true], [moshi, colours[1], false]]) {
        const tall = level * (middle - 4)
        if (tall < 1) continue
        brush.fillStyle = colour
        brush.beginPath()
        brush.roundRect(x, up ? middle - 2 - tall : middle + 2, BAR, tall, BAR / 2)
        brush.fill()
      }
    }
  }
}
