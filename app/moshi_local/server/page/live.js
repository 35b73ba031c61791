// GPT-Live's protocol: one conversation over one websocket. Knows nothing of devices.

import { connect } from './server.js'

export const RATE = 24_000
export const FRAME = 1920

const MOST_UNSENT = 2 * RATE * 2 * 1.4 // bytes of two seconds, as base64
const CLOSING = 1500
const SILENCE = 10_000 // the server sends every frame: so long without one, the connection is dead
const SIDES = {
  'session.output_transcript.delta': 'moshi',
  'session.input_transcript.delta': 'you',
}

/**
 * Talks until it ends. `on` is told of: started(session), sound(Int16Array, travelled seconds or
 * null), word(side, text, start, end in seconds), unheard(seconds).
 */
export class Conversation {
  #socket
  #on
  #started = false
  #error = null
  #reason = null
  #closing = false
  #sent = 0
  #received = 0
  #ahead = 0 // frames that came without one of ours, in which the server filled in silence
  #times = new Map()
  #heardFrom = 0

  /** Settles when it is over: {kind: closed, busy, expired, refused or lost, message, talked}. */
  ended

  constructor({ persona, voice }, on) {
    this.#on = on
    this.#socket = connect('v1/live/sessions')
    const session = { model: 'moshi', audio: { format: { type: 'audio/pcm', rate: RATE } } }
    if (persona) session.instructions = persona
    if (voice) session.audio.output = { voice }
    this.#socket.onopen = () => this.#send({ type: 'session.start', session })
    this.#socket.onmessage = ({ data }) => this.#take(JSON.parse(data))
    this.ended = new Promise(settle => {
      const over = () => {
        clearInterval(watch)
        settle(this.#end())
      }
      const watch = setInterval(() => {
        if (!this.#started || performance.now() - this.#heardFrom < SILENCE) return
        this.#socket.close()
        over()
      }, 1000)
      this.#socket.onclose = over
    })
  }

  /** Sends a frame of the user's sound; false: it was thrown away, since the network is slow. */
  hear(samples) {
    if (!this.#started || this.#closing || this.#socket.readyState !== WebSocket.OPEN) return true
    if (this.#socket.bufferedAmount > MOST_UNSENT) return false
    this.#times.set(this.#sent++, performance.now())
    this.#send({ type: 'session.input_audio.append', audio: toBase64(samples) })
    return true
  }

  mute(muted) {
    if (this.#started) this.#send({ type: `session.input_audio.${muted ? 'mute' : 'unmute'}` })
  }

  close() {
    if (this.#closing) return
    this.#closing = true
    if (this.#started) this.#send({ type: 'session.close' })
    else this.#socket.close()
    setTimeout(() => this.#socket.close(), CLOSING)
  }

  #take(event) {
    this.#heardFrom = performance.now()
    if (this.#closing && event.type !== 'session.closed') return
    if (event.type === 'session.output_audio.delta') {
      this.#on.sound(fromBase64(event.delta), this.#travelled())
    } else if (event.type in SIDES) {
      this.#on.word(SIDES[event.type], event.delta, event.start_ms / 1000, event.end_ms / 1000)
    } else if (event.type === 'session.started') {
      this.#started = true
      this.#on.started(event.session)
    } else if (event.type === 'session.closed') {
      this.#reason = event.reason
    } else if (event.type === 'info' && event.code === 'input_dropped') {
      const seconds = parseFloat(event.message)
      this.#ahead += Math.round((seconds * RATE) / FRAME)
      this.#on.unheard(seconds)
    } else if (event.type === 'error') {
      this.#error = event.error
    }
  }

  /** Seconds from a frame's leaving to the arrival of the one that answers it. */
  #travelled() {
    const received = this.#received++
    this.#ahead = Math.max(this.#ahead, received + 1 - this.#sent)
    let left
    for (const [frame, time] of this.#times) {
      if (frame > received - this.#ahead) break
      this.#times.delete(frame)
      if (frame === received - this.#ahead) left = time
    }
    return left === undefined ? null : (performance.now() - left) / 1000
  }

  #end() {
    const { code, message = '' } = this.#error ?? {}
    let kind = 'lost'
    if (this.#closing) kind = 'closed'
    else if (code === 'session_limit_reached') kind = 'busy'
    else if (this.#reason === 'expired') kind = 'expired'
    else if (!this.#started && ['invalid_request_error', 'invalid_value'].includes(code)) kind = 'refused'
    return { kind, message, talked: this.#started }
  }

  #send(event) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(event))
  }
}

/** Samples as the protocol has them: little-endian, like every machine with a browser. */
function toBase64(samples) {
  return btoa(String.fromCharCode(...new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength)))
}

function fromBase64(text) {
  return new Int16Array(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer)
}
