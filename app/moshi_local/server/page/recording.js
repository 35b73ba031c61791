// A conversation as a WAV file, made in this page: the user left, Moshi right, and marked as
// synthetic speech, as moshi-local marks its own recordings.

import { FRAME, RATE } from './live.js'

const BLOCK = 125 * FRAME // ten seconds, then handed to the browser, which may put them on disk
export const MOST_SECONDS = 3600

export class Recording {
  #sides = { you: [], moshi: [] }
  #samples = { you: 0, moshi: 0 }
  #done = []
  #doneSamples = 0

  get seconds() {
    return (this.#doneSamples + Math.max(this.#samples.you, this.#samples.moshi)) / RATE
  }

  add(side, samples) {
    if (this.seconds >= MOST_SECONDS) return
    this.#sides[side].push(samples.slice())
    this.#samples[side] += samples.length
    if (Math.min(this.#samples.you, this.#samples.moshi) >= BLOCK) this.#finish(BLOCK)
  }

  /** Fills up the shorter side with silence: where a connection ended. */
  align() {
    this.#finish(Math.max(this.#samples.you, this.#samples.moshi))
  }

  file(model, version) {
    this.align()
    const comment =
      `right channel: synthetic speech by Moshi (${model}), left channel: the user; ` +
      `made with moshi-local ${version}`
    const head = header(this.#doneSamples, { ICMT: comment, ISFT: `moshi-local ${version}` })
    return new Blob([head, ...this.#done], { type: 'audio/wav' })
  }

  #finish(count) {
    if (!count) return
    const both = new Int16Array(2 * count)
    for (const [channel, side] of ['you', 'moshi'].entries()) {
      let at = 0
      while (at < count && this.#sides[side].length) {
        const piece = this.#sides[side].shift()
        const used = piece.subarray(0, count - at)
        if (used.length < piece.length) this.#sides[side].unshift(piece.subarray(used.length))
        for (let i = 0; i < used.length; i++) both[2 * (at + i) + channel] = used[i]
        at += used.length
      }
      this.#samples[side] -= at
    }
    this.#done.push(new Blob([both]))
    this.#doneSamples += count
  }
}

function header(samples, tags) {
  const text = new TextEncoder()
  const chunk = (name, body) => {
    const whole = new Uint8Array(8 + body.length + (body.length % 2))
    whole.set(text.encode(name))
    new DataView(whole.buffer).setUint32(4, body.length, true)
    whole.set(body, 8)
    return whole
  }
  const form = new DataView(new ArrayBuffer(16))
  const fields = [[0, 1, 2], [2, 2, 2], [4, RATE, 4], [8, 4 * RATE, 4], [12, 4, 2], [14, 16, 2]]
  for (const [at, value, bytes] of fields) form[bytes === 2 ? 'setUint16' : 'setUint32'](at, value, true)
  const entries = Object.entries(tags).map(([name, value]) => chunk(name, text.encode(`${value}\0`)))
  const size = entries.reduce((sum, entry) => sum + entry.length, 4)
  const list = new Uint8Array(size)
  list.set(text.encode('INFO'))
  entries.reduce((at, entry) => (list.set(entry, at), at + entry.length), 4)
  const before = [chunk('fmt ', new Uint8Array(form.buffer)), chunk('LIST', list)]
  const ends = new DataView(new ArrayBuffer(8))
  for (const [i, letter] of [...'data'].entries()) ends.setUint8(i, letter.charCodeAt(0))
  ends.setUint32(4, 4 * samples, true)
  const start = new Uint8Array(12)
  start.set(text.encode('RIFF'))
  start.set(text.encode('WAVE'), 8)
  const inside = before.reduce((sum, part) => sum + part.length, 4 + 8 + 4 * samples)
  new DataView(start.buffer).setUint32(4, inside, true)
  return new Blob([start, ...before, ends])
}
