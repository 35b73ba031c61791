// The page: what is pressed, what is shown, and the way through a conversation.

import { Conversation } from './live.js'
import { MOST_SECONDS, Recording } from './recording.js'
import { ServerError, hasKey, isFree, keepKey, settings, takeKey } from './server.js'
import { Sound, SoundError, listDevices, soundProblem } from './sound.js'
import { Timeline } from './timeline.js'
import { Transcript, clock } from './transcript.js'

const FRAME_SECONDS = 0.08
const WAITS = [1, 2, 4, 8, 15, 30, 30, 30] // seconds before each new try
const ASK_WHETHER_FREE = 3000
const NO_SOUND_FRAMES = 50 // exact silence: the microphone is off somewhere

const ids = [
  'delay', 'download', 'hint', 'key', 'key-form', 'log', 'microphone', 'missed', 'model', 'mute', 'no-words',
  'persona', 'problem', 'record', 'role', 'saved', 'speaker', 'speaker-choice', 'stage', 'state', 'talk',
  'time', 'timeline', 'transcript', 'voice', 'voice-choice', 'words',
]
const ui = Object.fromEntries(ids.map(id => [id, document.getElementById(id)]))
const timeline = new Timeline(ui.timeline)
const transcript = new Transcript(ui.transcript)

let about = null // settings of the server
let talking = null // an AbortController from Talk to End
let sound = null
let conversation = null
let recording = null
let muted = false
let loudest = 0 // of the microphone, since the last bar
let silentFrames = 0
let travelled = null // smoothed seconds
let missedBefore = 0 // seconds, of what is not the player's
let frames = 0
let lock = null

// ------------------------------------------------------------------------------ what is shown

/** The state: its name for the style, words, and what to do. */
function show(state, words, hint = '') {
  document.body.dataset.state = state
  ui.state.textContent = words
  ui.hint.textContent = hint
  ui.talk.firstElementChild.textContent = talking === null ? 'Talk' : state === 'talking' ? 'End' : 'Cancel'
}

function complain(problem) {
  ui.problem.hidden = !problem
  ui.problem.textContent = problem ?? ''
}

function showReady() {
  show('ready', 'Ready', 'Press Talk and say hello.')
}

function showTalking() {
  const words = muted ? 'Muted' : 'Listening'
  show('talking', words, muted ? 'Moshi hears silence.' : 'Speak whenever you like, even while it speaks.')
}

function seconds(value) {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`
}

// ------------------------------------------------------------------------------------ sound

function heard(samples) {
  if (muted) samples.fill(0)
  let peak = 0
  for (const sample of samples) peak = Math.max(peak, Math.abs(sample))
  loudest = Math.max(loudest, peak / 32768)
  if (conversation === null) return
  silentFrames = muted || peak > 0 ? 0 : silentFrames + 1
  if (silentFrames === NO_SOUND_FRAMES) {
    complain('The microphone gives no sound at all: is it switched off, or another one chosen?')
  } else if (silentFrames === 0 && ui.problem.textContent.startsWith('The microphone gives')) {
    complain(null)
  }
  if (!conversation.hear(samples)) missedBefore += FRAME_SECONDS
  record('you', samples)
}

function played({ peak, ahead, missed }) {
  timeline.add(loudest, peak)
  loudest = 0
  if (conversation === null) return
  ui.missed.textContent = seconds(missed + missedBefore)
  if (travelled !== null) {
    // Of a sound: its frame, the way there and back, the buffer, the way to the ear.
    ui.delay.textContent = seconds(FRAME_SECONDS + travelled + ahead + sound.outputLatency)
  }
}

function said(samples, took) {
  if (took !== null) travelled = travelled === null ? took : 0.9 * travelled + 0.1 * took
  ui.time.textContent = clock(++frames * FRAME_SECONDS)
  record('moshi', samples)
  sound?.play(samples)
}

async function unplugged() {
  complain('The microphone has gone away: the system’s choice is used instead.')
  ui.microphone.value = ''
  await sound?.listen('').catch(error => complain(error.message))
}

// -------------------------------------------------------------------------------- a conversation

/** From Talk until it is over; a connection that is lost is made again. */
async function talk() {
  const control = (talking = new AbortController())
  const over = () => control.signal.aborted
  missedBefore = 0
  complain(null)
  show('asking', 'One moment…')
  try {
    sound = new Sound({ heard, played, unplugged })
    if (ui.speaker.value) await sound.speakTo(ui.speaker.value)
    for (let tries = 0; !over(); ) {
      const end = await once(over)
      if (over() || end.kind === 'closed') return showReady()
      if (end.kind === 'busy') return await showBusy()
      if (end.kind === 'key') return askForKey(end.message)
      if (end.kind === 'refused') return stop('It could not begin', end.message)
      if (end.kind === 'expired') return stop('The time is over', `${end.message}. Press Talk for a new conversation.`)
      tries = end.talked ? 0 : tries
      if (tries === WAITS.length) return stop('The server is gone', 'Is moshi-local serve still running?')
      await waitFor(WAITS[tries++], end.talked ? 'Connection lost' : 'No answer from the server', control.signal)
    }
    showReady()
  } catch (error) {
    if (over()) return showReady()
    stop('No conversation', '')
    complain(error instanceof SoundError ? error.message : `This page has failed: ${error.message}`)
  } finally {
    if (talking === control) talking = null
    finish()
    ui.talk.firstElementChild.textContent = 'Talk'
  }
}

/** One conversation; how it ended. */
async function once(over) {
  try {
    await learn()
    if (!(await isFree())) return { kind: 'busy' }
    show('asking', 'Asking for the microphone', 'Your browser may ask whether this page may use it.')
    await sound.listen(ui.microphone.value)
    listDevices({ audioinput: ui.microphone, audiooutput: ui.speaker })
    if (over()) return { kind: 'closed' }
    show('connecting', 'Connecting', about.persona ? 'A persona takes a few seconds.' : '')
    const wishes = { persona: ui.persona.value.trim(), voice: ui.voice.value }
    conversation = new Conversation(wishes, { started, sound: said, word, unheard })
    return await conversation.ended
  } catch (error) {
    if (error instanceof ServerError) return { kind: error.kind, message: error.message, talked: false }
    throw error
  } finally {
    conversation = null
    recording?.align()
    sound?.deaf()
    sound?.reset()
    ui.mute.disabled = true
  }
}

function started() {
  frames = silentFrames = 0
  travelled = null
  complain(null)
  transcript.remark('A new conversation: Moshi remembers nothing of the one before.')
  if (muted) conversation.mute(true)
  ui.mute.disabled = ui.record.disabled = false
  showTalking()
  keepAwake()
}

function word(side, text, start, end) {
  ui['no-words'].hidden = true
  ui.log.hidden = false
  transcript.add(side, text, start, end)
}

function unheard(lost) {
  missedBefore += lost
}

/** Counts down before a new try. */
async function waitFor(wait, what, signal) {
  for (let left = wait; left > 0 && !signal.aborted; left--) {
    // Told once: a screen reader need not count along.
    if (left === wait) show('lost', what, '')
    ui.hint.textContent = `Trying again in ${left} s. The microphone is closed.`
    await new Promise(settle => {
      const timer = setTimeout(settle, 1000)
      signal.addEventListener('abort', () => (clearTimeout(timer), settle()), { once: true })
    })
  }
}

function stop(words, hint) {
  talking = null
  show('stopped', words, hint)
}

/** Says that all places are taken, and when one is free. */
async function showBusy() {
  talking = null
  show('busy', 'Busy', 'Another conversation is going on. This page tells you when it is over.')
  while (document.body.dataset.state === 'busy') {
    await new Promise(settle => setTimeout(settle, ASK_WHETHER_FREE))
    if (document.body.dataset.state !== 'busy') return
    if (await isFree().catch(() => false)) return show('ready', 'Free now', 'Press Talk and say hello.')
  }
}

function finish() {
  sound?.close()
  sound = null
  ui.mute.disabled = ui.record.disabled = true
  finishRecording()
  lock?.release().catch(() => {})
  lock = null
}

async function keepAwake() {
  if (talking === null || document.hidden) return
  lock = (await navigator.wakeLock?.request('screen').catch(() => null)) ?? null
}

// ------------------------------------------------------------------------------------ recording

function record(side, samples) {
  recording?.add(side, samples)
  if (recording !== null && recording.seconds >= MOST_SECONDS) finishRecording()
}

function toggleRecording() {
  if (recording !== null) return finishRecording()
  recording = new Recording()
  press(ui.record, true)
  ui.saved.hidden = true
}

function finishRecording() {
  if (recording === null) return
  const file = recording.file(about.model, about.version)
  const long = recording.seconds
  recording = null
  press(ui.record, false)
  if (!long) return
  URL.revokeObjectURL(ui.download.href)
  const when = new Date(Date.now() - 60_000 * new Date().getTimezoneOffset()).toISOString()
  ui.download.href = URL.createObjectURL(file)
  ui.download.download = `moshi-${when.slice(0, 16).replace(/[T:]/g, '-')}-synthetic-speech.wav`
  ui.download.textContent = `Download the recording (${clock(long)}): you left, Moshi’s synthetic speech right`
  ui.saved.hidden = false
}

function press(button, pressed) {
  button.setAttribute('aria-pressed', pressed)
}

// ---------------------------------------------------------------------------------- the server

/** Reads the server's settings. Throws ServerError. */
async function learn() {
  about = await settings()
  ui.model.textContent = about.model
  ui['no-words'].textContent = `${about.captions ? 'Your words and Moshi’s' : 'Moshi’s words'} appear here, with their times.`
  ui.role.hidden = !about.persona
  ui.persona.maxLength = about.longest_persona
  ui['voice-choice'].hidden = !about.voices.length
  const chosen = ui.voice.value
  ui.voice.replaceChildren(ui.voice.options[0], ...about.voices.map(name => new Option(name)))
  ui.voice.value = about.voices.includes(chosen) ? chosen : ''
}

function askForKey(message) {
  stop('', '')
  ui['key-form'].hidden = false
  ui.stage.hidden = ui.words.hidden = true
  const wrong = hasKey()
  ui.key.setCustomValidity(wrong ? message : '')
  if (wrong) ui.key.reportValidity()
  ui.key.focus()
}

async function begin() {
  try {
    await learn()
  } catch (error) {
    if (error.kind === 'key') return askForKey(error.message)
    stop('No answer from the server', 'Is moshi-local serve still running? Press Talk to try again.')
    return
  }
  const hadForm = !ui['key-form'].hidden
  ui['key-form'].hidden = true
  ui.stage.hidden = ui.words.hidden = false
  const problem = soundProblem()
  if (problem !== null) {
    ui.talk.disabled = true
    stop('No sound here', '')
    return complain(problem)
  }
  showReady()
  if (hadForm) ui.talk.focus()
}

// ----------------------------------------------------------------------------------- what is pressed

ui.talk.addEventListener('click', () => {
  if (talking === null) return void talk()
  talking.abort()
  if (conversation === null) return showReady()
  conversation.close()
})

ui.mute.addEventListener('click', () => {
  muted = !muted
  press(ui.mute, muted)
  conversation?.mute(muted)
  showTalking()
})

ui.record.addEventListener('click', toggleRecording)

ui.microphone.addEventListener('change', async () => {
  if (conversation === null) return
  complain(null)
  await sound.listen(ui.microphone.value).catch(error => complain(error.message))
})

ui.speaker.addEventListener('change', () => sound?.speakTo(ui.speaker.value))

ui['key-form'].addEventListener('submit', event => {
  event.preventDefault()
  keepKey(ui.key.value.trim())
  ui.key.value = ''
  begin()
})

ui.key.addEventListener('input', () => ui.key.setCustomValidity(''))
document.addEventListener('visibilitychange', keepAwake)
navigator.mediaDevices?.addEventListener('devicechange', () =>
  listDevices({ audioinput: ui.microphone, audiooutput: ui.speaker }),
)
ui['speaker-choice'].hidden = !('setSinkId' in (window.AudioContext ?? class {}).prototype)
window.addEventListener('pagehide', () => conversation?.close())

takeKey()
begin()
