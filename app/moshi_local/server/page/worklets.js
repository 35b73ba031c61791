// On the audio thread: `capture` cuts the microphone's sound into frames, `playback` plays what
// came over the network through a jitter buffer.

const RATE = 24_000
const FRAME = 1920
const seconds = count => Math.round(count * sampleRate)

/** Sound at another rate, piece by piece: a windowed sinc. */
class Resampler {
  static CROSSINGS = 16
  static STEPS = 512

  constructor(from, to) {
    this.same = from === to
    this.step = from / to
    const cutoff = Math.min(1, to / from) * 0.95
    this.reach = Math.ceil(Resampler.CROSSINGS / cutoff)
    this.kernel = Float32Array.from({ length: (this.reach + 1) * Resampler.STEPS }, (_, i) => {
      const t = i / Resampler.STEPS
      const x = Math.PI * cutoff * t
      const hann = t < this.reach ? Math.cos((Math.PI * t) / (2 * this.reach)) ** 2 : 0
      return cutoff * (i ? Math.sin(x) / x : 1) * hann
    })
    this.held = new Float32Array(2 * this.reach)
    this.at = this.reach // where in `held` the next sample lies
  }

  process(pcm) {
    if (this.same) return pcm
    const all = new Float32Array(this.held.length + pcm.length)
    all.set(this.held)
    all.set(pcm, this.held.length)
    const out = []
    for (; this.at + this.reach < all.length; this.at += this.step) {
      let sum = 0
      for (let i = Math.ceil(this.at - this.reach); i <= this.at + this.reach; i++) {
        sum += all[i] * this.kernel[Math.round(Math.abs(i - this.at) * Resampler.STEPS)]
      }
      out.push(sum)
    }
    const start = Math.max(0, Math.floor(this.at) - this.reach)
    this.held = all.slice(start)
    this.at -= start
    return Float32Array.from(out)
  }
}

/** Posts frames of 16-bit samples at the model's rate; silence where there is no microphone. */
class Capture extends AudioWorkletProcessor {
  constructor() {
    super()
    this.resampler = new Resampler(sampleRate, RATE)
    this.frame = new Int16Array(FRAME)
    this.filled = 0
  }

  process([input], [output]) {
    const pcm = this.resampler.process(input[0] ?? new Float32Array(output[0].length))
    for (const sample of pcm) {
      this.frame[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(32768 * sample)))
      if (this.filled === FRAME) {
        this.port.postMessage(this.frame, [this.frame.buffer])
        this.frame = new Int16Array(FRAME)
        this.filled = 0
      }
    }
    return true
  }
}

const FRAME_TIME = FRAME / RATE
const FADE = 0.005
const FIRST_MARGIN = 0.01
const MOST_MARGIN = 0.08
const FIRST_CEILING = 0.08
const MOST_CEILING = 1
const GROWTH = 0.005
const SLACK = 0.005

/**
 * Plays frames of 16-bit samples. The first one waits for a margin, which grows whenever the next
 * came too late. What comes too early is left out: at once where it is silence, which nobody hears,
 * else beyond a ceiling, which then grows. Every cut is faded.
 */
class Playback extends AudioWorkletProcessor {
  constructor() {
    super()
    this.port.onmessage = ({ data }) => (data === 'reset' ? this.reset() : this.push(data))
    this.fadeLength = seconds(FADE)
    this.reset()
  }

  reset() {
    this.resampler = new Resampler(RATE, sampleRate)
    this.pieces = []
    this.buffered = 0 // samples
    this.playing = false
    this.wait = 0 // samples of silence before the next piece
    this.margin = FIRST_MARGIN
    this.ceiling = FIRST_CEILING
    this.ahead = 0 // seconds that the last piece had to wait
    this.missed = 0 // samples
    this.sounding = false // the last sample belongs to speech
    this.last = 0
    this.peak = 0
    this.told = 0
    this.tail = new Float32Array(this.fadeLength)
    this.faded = this.fadeLength
  }

  /** From here on, what is played takes the place of these samples gradually. */
  fadeFrom(tail) {
    this.tail = tail
    this.faded = 0
  }

  /** The next samples, had nothing happened. */
  coming() {
    const tail = new Float32Array(this.fadeLength)
    let [index, start] = [0, this.pieces[0]?.start ?? 0]
    for (let i = 0; i < tail.length; i++) {
      let sample = 0
      if (i >= this.wait && index < this.pieces.length) {
        sample = this.pieces[index].pcm[start++]
        if (start === this.pieces[index].pcm.length) [index, start] = [index + 1, 0]
      }
      tail[i] = this.mixed(sample, this.faded + i)
    }
    return tail
  }

  mixed(sample, at) {
    if (at >= this.fadeLength) return sample
    const part = at / this.fadeLength
    return (1 - part) * this.tail[at] + part * sample
  }

  push(samples) {
    this.ahead = (this.buffered + this.wait) / sampleRate
    const pcm = this.resampler.process(Float32Array.from(samples, sample => sample / 32768))
    this.pieces.push({ pcm, start: 0, silent: samples.every(sample => sample === 0) })
    this.buffered += pcm.length
    if (!this.playing) {
      this.playing = true
      this.wait = seconds(this.margin)
      this.ahead += this.margin
    }
    const over = this.buffered + this.wait - seconds(FRAME_TIME + this.margin)
    if (over > seconds(SLACK)) this.leaveOut(over)
  }

  leaveOut(over) {
    while (over > 0 && this.pieces.length > 1 && this.pieces[0].silent) over -= this.take(over)
    if (over <= seconds(this.ceiling)) return
    this.fadeFrom(this.coming())
    while (over > 0 && this.pieces.length > 1) {
      const taken = this.take(over)
      over -= taken
      this.missed += taken
    }
    this.ceiling = Math.min(this.ceiling + GROWTH, MOST_CEILING)
  }

  /** Drops samples of the first piece; gives how many. */
  take(most) {
    const piece = this.pieces[0]
    const count = Math.min(most, piece.pcm.length - piece.start)
    piece.start += count
    this.buffered -= count
    if (piece.start === piece.pcm.length) this.pieces.shift()
    return count
  }

  next() {
    const piece = this.pieces[0]
    const sample = piece.pcm[piece.start++]
    this.buffered--
    this.sounding = !piece.silent
    if (piece.start === piece.pcm.length) this.pieces.shift()
    return sample
  }

  process(_, [[output]]) {
    for (let i = 0; i < output.length; i++) {
      let sample = 0
      if (this.playing && this.wait > 0) {
        if (--this.wait === 0) this.fadeFrom(new Float32Array(this.fadeLength))
        if (this.sounding) this.missed++
      } else if (this.playing && this.pieces.length) {
        sample = this.next()
      } else if (this.playing) {
        this.playing = false
        this.margin = Math.min(this.margin + GROWTH, MOST_MARGIN)
        this.fadeFrom(new Float32Array(this.fadeLength).fill(this.last))
      } else if (this.sounding) {
        this.missed++
      }
      sample = this.mixed(sample, this.faded++)
      this.last = output[i] = sample
      this.peak = Math.max(this.peak, Math.abs(sample))
    }
    this.told += output.length
    if (this.told >= seconds(FRAME_TIME)) {
      this.told -= seconds(FRAME_TIME)
      const { peak, ahead, margin } = this
      this.port.postMessage({ peak, ahead, margin, missed: this.missed / sampleRate })
      this.peak = 0
    }
    return true
  }
}

registerProcessor('capture', Capture)
registerProcessor('playback', Playback)
