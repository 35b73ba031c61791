// The server that this page came from: its key, its settings, where its sockets are.

const KEPT_AS = 'moshi-local key'
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/ // what a header and a subprotocol may carry
const PATIENCE = 5000

/** kind: 'key' (it is missing or wrong) or 'lost' (no answer). */
export class ServerError extends Error {
  constructor(kind, message) {
    super(message)
    this.kind = kind
  }
}

/** Takes the key out of the address, where it would stay in the history, into this tab's memory. */
export function takeKey() {
  const address = new URL(location.href)
  const fragment = new URLSearchParams(address.hash.slice(1))
  const found = fragment.get('token') ?? address.searchParams.get('token')
  if (found === null) return
  keepKey(found)
  address.searchParams.delete('token')
  fragment.delete('token')
  address.hash = fragment.toString()
  history.replaceState(null, '', address)
}

export function keepKey(key) {
  sessionStorage.setItem(KEPT_AS, key)
}

export function hasKey() {
  return sessionStorage.getItem(KEPT_AS) !== null
}

/** What this page must know of the model. Throws ServerError. */
export async function settings() {
  return await (await get('page/settings')).json()
}

/** Whether there is a place for another conversation. Throws ServerError. */
export async function isFree() {
  return (await (await get('health')).json()).status !== 'busy'
}

/** A websocket at a path. */
export function connect(path) {
  const [url, key] = withKey(path)
  url.protocol = url.protocol.replace('http', 'ws')
  return new WebSocket(url, key === null ? ['realtime'] : ['realtime', `openai-insecure-api-key.${key}`])
}

async function get(path) {
  const [url, key] = withKey(path)
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` }
  let answer
  try {
    answer = await fetch(url, { headers, signal: AbortSignal.timeout(PATIENCE) })
  } catch {
    throw new ServerError('lost', 'The server does not answer.')
  }
  if (answer.status === 401) throw new ServerError('key', 'The key is not the one of this server.')
  if (!answer.ok) throw new ServerError('lost', `The server answered with ${answer.status}.`)
  return answer
}

/** An address, and the key that goes beside it; one that cannot go there goes into the address. */
function withKey(path) {
  const url = new URL(path, location.href)
  const key = sessionStorage.getItem(KEPT_AS)
  if (key === null || TOKEN.test(key)) return [url, key]
  url.searchParams.set('token', key)
  return [url, null]
}
