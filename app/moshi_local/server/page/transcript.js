// Who said what, when: lines of words in order of their time.

const PAUSE = 1.2 // seconds of silence after which a new line begins
const NAMES = { you: 'You', moshi: 'Moshi' }

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds))
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`
}

export class Transcript {
  #list
  #view // what scrolls
  #lines = { you: null, moshi: null }

  constructor(list) {
    this.#list = list
    this.#view = list.parentElement
  }

  /** Words of a side, with their times on the conversation's clock; those of one may come late. */
  add(side, text, start, end) {
    const atEnd = this.#view.scrollHeight - this.#view.scrollTop - this.#view.clientHeight < 40
    let line = this.#lines[side]
    if (line === null || start - line.end > PAUSE) line = this.#lines[side] = this.#begin(side, start)
    line.words.textContent = (line.words.textContent + text).trimStart()
    line.end = end
    if (atEnd) this.#view.scrollTop = this.#view.scrollHeight
  }

  /** A remark between two conversations. */
  remark(text) {
    if (!this.#list.childElementCount) return
    const item = document.createElement('li')
    item.className = 'remark'
    item.textContent = text
    this.#list.append(item)
    this.#view.scrollTop = this.#view.scrollHeight
    this.#lines = { you: null, moshi: null }
  }

  #begin(side, start) {
    const item = document.createElement('li')
    item.className = side
    item.dataset.start = start
    const [time, name, words] = ['time', 'b', 'span'].map(tag => document.createElement(tag))
    time.textContent = clock(start)
    name.textContent = NAMES[side]
    item.append(time, name, words)
    let before = null
    for (let last = this.#list.lastElementChild; last?.dataset.start > start; last = last.previousElementSibling) {
      before = last
    }
    this.#list.insertBefore(item, before)
    return { words, end: start }
  }
}
