// The browser's microphone and speaker. Knows nothing of the network.

import { RATE } from './live.js'

const ON_A_MAC = /Mac/.test(navigator.userAgent)
const WHY = {
  NotAllowedError:
    'The browser may not use the microphone. Allow it for this page, by the sign beside the address, and press Talk again.' +
    (ON_A_MAC ? ' On a Mac, also look at System Settings → Privacy & Security → Microphone.' : ''),
  NotFoundError: 'There is no microphone. Connect one and press Talk again.',
  NotReadableError: 'The microphone cannot be opened: another program may be using it.',
}

/** What a person must know and do. */
export class SoundError extends Error {}

/** Why this page can have no sound here, in a sentence; null: it can. */
export function soundProblem() {
  if (!window.isSecureContext) {
    return (
      `Browsers give the microphone only to pages that come over https or from their own machine, and this one came from ${location.origin}. ` +
      'Start the server with --ssl, or open its page on the machine that it runs on.'
    )
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
    return 'This browser is too old: it has no AudioWorklet. Use a newer one.'
  }
  return null
}

/** From Talk to End. Must be made while a click is handled, or browsers keep it silent. */
export class Sound {
  #context
  #on
  #ears = null
  #voice = null
  #source = null
  #stream = null
  #speaker = ''

  /** on: heard(Int16Array), played({peak, ahead, margin, missed}), unplugged(). */
  constructor(on) {
    this.#on = on
    this.#context = new AudioContext({ sampleRate: RATE, latencyHint: 'interactive' })
    this.wake = () => {
      if (!document.hidden && this.#context.state !== 'running') this.#context.resume().catch(() => {})
    }
    document.addEventListener('visibilitychange', this.wake)
    document.addEventListener('pointerdown', this.wake)
  }

  /** Seconds from the page to the ear. */
  get outputLatency() {
    return this.#context.outputLatency || this.#context.baseLatency || 0
  }

  /** Opens the microphone; a device that is gone is replaced by the system's choice. */
  async listen(device) {
    const constraints = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 }
    const ask = more => navigator.mediaDevices.getUserMedia({ audio: { ...constraints, ...more } })
    let stream
    try {
      stream = await ask(device ? { deviceId: { exact: device } } : {}).catch(error => {
        if (device && ['OverconstrainedError', 'NotFoundError'].includes(error.name)) return ask({})
        throw error
      })
    } catch (error) {
      throw new SoundError(WHY[error.name] ?? `The microphone cannot be opened: ${error.message}`)
    }
    this.deaf()
    this.#stream = stream
    stream.getTracks()[0].onended = () => this.#on.unplugged()
    if (this.#context.state === 'closed') return this.deaf()
    if (this.#ears === null) await this.#build()
    try {
      this.#source = this.#context.createMediaStreamSource(stream)
    } catch (error) {
      if (error.name !== 'NotSupportedError' || this.#context.sampleRate !== RATE) throw error
      // Firefox joins no devices of two rates: then the worklets resample.
      await this.#context.close()
      this.#context = new AudioContext({ latencyHint: 'interactive' })
      await this.#build()
      this.#source = this.#context.createMediaStreamSource(stream)
    }
    this.#source.connect(this.#ears)
    await this.#context.resume()
  }

  /** Closes the microphone. */
  deaf() {
    this.#source?.disconnect()
    for (const track of this.#stream?.getTracks() ?? []) {
      track.onended = null
      track.stop()
    }
    this.#source = this.#stream = null
  }

  play(samples) {
    this.#voice?.port.postMessage(samples, [samples.buffer])
  }

  /** Forgets what is still to be played. */
  reset() {
    this.#voice?.port.postMessage('reset')
  }

  async speakTo(device) {
    this.#speaker = device
    await this.#context.setSinkId?.(device).catch(() => {})
  }

  close() {
    this.deaf()
    document.removeEventListener('visibilitychange', this.wake)
    document.removeEventListener('pointerdown', this.wake)
    if (this.#context.state !== 'closed') this.#context.close()
  }

  async #build() {
    const context = this.#context
    await context.audioWorklet.addModule(new URL('worklets.js', import.meta.url))
    const one = { outputChannelCount: [1], channelCount: 1, channelCountMode: 'explicit' }
    this.#voice = new AudioWorkletNode(context, 'playback', { ...one, numberOfInputs: 0 })
    this.#voice.port.onmessage = ({ data }) => this.#on.played(data)
    this.#ears = new AudioWorkletNode(context, 'capture', one)
    this.#ears.port.onmessage = ({ data }) => this.#on.heard(data)
    // Silent, but only what leads to the speaker is sure to run.
    for (const node of [this.#voice, this.#ears]) node.connect(context.destination)
    if (this.#speaker) await this.speakTo(this.#speaker)
  }
}

/** Fills the lists of devices; labels are empty until the microphone was allowed once. */
export async function listDevices(lists) {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? []
  for (const [kind, list] of Object.entries(lists)) {
    const chosen = list.value
    const known = devices.filter(d => d.kind === kind && d.label && d.deviceId && d.deviceId !== 'default')
    list.replaceChildren(list.options[0], ...known.map(d => new Option(d.label, d.deviceId)))
    list.value = known.some(d => d.deviceId === chosen) ? chosen : ''
  }
}
