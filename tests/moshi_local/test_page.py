"""The page of `moshi-local serve` in a real Chromium, with a recording as its microphone."""

import base64
import http.client
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import soxr

from moshi_local.observers.record import made_here
from moshi_local.server.pages import PAGE_PATHS
from moshi_local.serving import page_address
from moshi_mlx.sounds import open_sound
from tests.moshi_local.test_server import ANSWER, QUESTION, Server
from tests.moshi_mlx.test_families import with_anna

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")

REQUIRED = "MOSHI_REQUIRE_BROWSER_TESTS"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP moshi.test 127.0.0.1",
]
FAKE = "--use-fake-device-for-media-stream"
ALLOWED = "--use-fake-ui-for-media-stream"
TOKEN = "a key, which no header can carry: ключ"
ASKED_AT = 2.0
"""Seconds from the microphone's opening to the question."""
SLOW = 20_000
"""Milliseconds within which all must have happened, on a loaded machine too."""


def test_there_is_a_browser_where_one_is_required() -> None:
    assert BROWSER or os.environ.get(REQUIRED) != "1", f"no Chromium, and {REQUIRED}=1"


needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (.ci/run)")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    served = Server("--token", TOKEN, "--allow-host", "moshi.test")
    yield served
    served.stop()
    assert not [line for line in served.lines if "Traceback" in line]


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Any]]:
    """Starts a browser with more arguments."""
    with playwright.sync_playwright() as driver:

        def launched(*arguments: str) -> Any:
            return driver.chromium.launch(executable_path=BROWSER, args=[*QUIET, *arguments])

        yield launched


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its microphone asks nano's first question."""
    sound = as_microphone(tmp_path_factory.mktemp("microphone") / "question.wav", seconds=1.5)
    started = launch(FAKE, ALLOWED, f"--use-file-for-fake-audio-capture={sound}")
    yield started
    started.close()


def as_microphone(target: Path, seconds: float) -> Path:
    """Nano's questions, as Chromium's microphone has them: softly, since it makes them louder."""
    pcm = open_sound(QUESTION).read(24_000).mean(axis=0)[: round(24_000 * seconds)]
    pcm = 0.3 * soxr.resample(pcm, 24_000, 48_000)
    pcm = np.pad(pcm, (round(ASKED_AT * 48_000), 60 * 48_000))  # it would be repeated
    soundfile.write(target, pcm, 48_000, subtype="PCM_16")
    return target


class Visit:
    """A page of its own, and what it did."""

    def __init__(self, browser: Any, address: str) -> None:
        self.context = browser.new_context()
        self.page = self.context.new_page()
        self.page.set_default_timeout(SLOW)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("websocket", self._opened)
        self.page.goto(address)

    def _said(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def _opened(self, socket: Any) -> None:
        self.requests.append(socket.url)
        socket.on("framesent", lambda data: self.sent.append(json.loads(data)))

    def until(self, selector: str, words: str) -> str:
        """Waits until an element has these words; gives all of them."""
        found = self.page.locator(selector).filter(has_text=words)
        found.first.wait_for()
        return str(found.first.inner_text())

    def focused(self) -> str:
        return str(self.page.evaluate("document.activeElement.id"))

    def tab_to(self, name: str) -> None:
        """Goes on by the keyboard until an element has the focus."""
        for _ in range(12):
            self.page.keyboard.press("Tab")
            if self.focused() == name:
                return
        raise AssertionError(f"{name} is not reached by the keyboard")


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def made(address: str, other: Any = None) -> Visit:
        visits.append(Visit(other or browser, address))
        return visits[-1]

    yield made
    for each in visits:
        each.context.close()


def with_key(server: Server) -> str:
    return page_address(server.url, TOKEN)


# ----------------------------------------------------------------------------- over HTTP


def answer(server: Server, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.putrequest("GET", path)
    connection.endheaders()
    return connection.getresponse()


def test_files_of_the_page_need_no_key_and_load_nothing_from_elsewhere(server: Server) -> None:
    folder = Path(__file__).parents[2] / "app" / "moshi_local" / "server" / "page"
    assert {path.name for path in folder.iterdir()} == {
        Path(path).name or "index.html" for path in PAGE_PATHS
    }
    for path in sorted(PAGE_PATHS):
        got = answer(server, path)
        assert got.status == 200, path
        policy = got.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        content = got.read().decode()
        assert "http://" not in content.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in content
    assert answer(server, "/page/settings").status == 401
    for path in ("/page/../pages.py", "/page/%2e%2e/pages.py", "/page/", "/page/pages.py"):
        assert answer(server, path).status in (401, 404)


@pytest.mark.parametrize(
    ("where", "token", "address"),
    [
        ("http://127.0.0.1:8998", None, "http://127.0.0.1:8998/"),
        ("https://0.0.0.0:1", "a b/#", "https://127.0.0.1:1/#token=a%20b%2F%23"),
        ("http://[::]:8998", None, "http://[::1]:8998/"),
    ],
)
def test_address_of_the_page(where: str, token: str | None, address: str) -> None:
    assert page_address(where, token) == address


def test_open_gives_the_page_to_the_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    browser.chmod(0o700)
    monkeypatch.setenv("BROWSER", str(browser))
    served = Server("--host", "0.0.0.0", "--open")
    try:
        until = time.monotonic() + 10
        while not opened.exists() and time.monotonic() < until:
            time.sleep(0.05)
        token = next(line for line in served.lines if line.startswith("token: "))[7:]
        assert opened.read_text().strip() == page_address(served.url, token)
        assert urlsplit(opened.read_text()).hostname == "127.0.0.1"
    finally:
        served.stop()


# ------------------------------------------------------------------------- a conversation


@needs_browser
def test_a_conversation_by_the_keyboard_alone(
    server: Server, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    first = visit(with_key(server))
    first.until("#state", "Ready")
    assert first.page.url == f"{server.url}/"  # the key is in the tab's memory
    assert first.page.inner_text("#model") == "nano"
    assert "AI voice" in first.page.inner_text("header")
    first.tab_to("talk")
    first.page.keyboard.press("Enter")
    first.until("#state", "Listening")
    assert first.focused() == "talk"
    first.tab_to("record")
    first.page.keyboard.press("Space")

    second = visit(with_key(server))
    second.until("#state", "Ready")
    second.page.click("#talk")
    second.until("#state", "Busy")
    assert "Another conversation" in second.page.inner_text("#hint")
    assert not second.sent
    assert second.page.inner_text("#talk") == "Talk"

    line = first.until("#transcript .moshi", ANSWER)
    assert line.startswith("0:0")
    first.page.keyboard.press("Shift+Tab")
    first.page.keyboard.press("Shift+Tab")
    assert first.focused() == "mute"
    first.page.keyboard.press("Space")
    first.until("#state", "Muted")
    first.page.keyboard.press("Space")
    first.until("#state", "Listening")
    kinds = [event["type"] for event in first.sent]
    between = slice(
        kinds.index("session.input_audio.mute"), kinds.index("session.input_audio.unmute")
    )
    for event in first.sent[between]:
        assert not any(base64.b64decode(event.get("audio", "")))
    assert first.page.inner_text("#delay").endswith("s")
    assert first.page.inner_text("#missed").endswith("s")
    first.tab_to("talk")
    first.page.keyboard.press("Enter")
    first.until("#state", "Ready")
    assert first.page.is_disabled("#mute")

    with first.page.expect_download() as download:
        first.page.click("#download")
    assert download.value.suggested_filename.endswith("-synthetic-speech.wav")
    recording = tmp_path / "recording.wav"
    download.value.save_as(recording)
    assert made_here(recording) == "a conversation"
    pcm, rate = soundfile.read(recording)
    assert (rate, pcm.shape[1]) == (24_000, 2)
    you, moshi = (np.abs(side) for side in pcm.T)
    assert min(you.max(), moshi.max()) > 0.1
    assert np.argmax(you > 0.1) < np.argmax(moshi > 0.1)

    second.until("#state", "Free now")
    for each in (first, second):
        assert not each.problems
        assert {urlsplit(url).netloc for url in each.requests} <= {
            urlsplit(server.url).netloc,
            "",  # the recording
        }


@needs_browser
def test_a_lost_server_is_found_again_with_persona_and_voice(
    visit: Callable[..., Visit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    key = "plain-key"
    arguments = ("--model", str(with_anna(tmp_path / "model")), "--token", key)
    served = Server(*arguments, "--open")
    try:
        address = page_address(served.url, key)
        page = visit(address)
        page.until("#state", "Ready")
        page.page.click("summary:text('Persona')")
        page.page.fill("#persona", "You are a teacher.")
        page.page.select_option("#voice", "ANNA")
        page.page.click("#talk")
        page.until("#state", "Listening")
        assert page.sent[0]["session"]["instructions"] == "You are a teacher."
        assert page.sent[0]["session"]["audio"]["output"]["voice"] == "ANNA"
        assert f"there is no browser here: open {address}" in served.lines
        assert served.stop()[0] == 0
        page.until("#state", "Connection lost")
        page.until("#hint", "Trying again in")
        served = Server(*arguments, "--port", str(urlsplit(served.url).port))
        page.until("#state", "Listening")
        starts = [event for event in page.sent if event["type"] == "session.start"]
        assert len(starts) == 2
        page.page.click("#talk")
        page.until("#state", "Ready")
        assert not page.problems
    finally:
        served.stop()


# ------------------------------------------------------------------------ what goes wrong


@needs_browser
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([FAKE, "--deny-permission-prompts"], "may not use the microphone. Allow it"),
        ([ALLOWED], "There is no microphone. Connect one"),
    ],
)
def test_no_microphone_is_said_in_words(
    server: Server,
    launch: Callable[..., Any],
    visit: Callable[..., Visit],
    arguments: list[str],
    words: str,
) -> None:
    other = launch(*arguments)
    try:
        page = visit(with_key(server), other)
        page.until("#state", "Ready")
        page.page.click("#talk")
        page.until("[role=alert]", words)
        assert page.page.inner_text("#talk") == "Talk"
        assert not page.sent
    finally:
        other.close()


@needs_browser
def test_an_address_without_a_microphone_is_said_in_words(
    server: Server, visit: Callable[..., Visit]
) -> None:
    page = visit(with_key(server).replace("127.0.0.1", "moshi.test"))
    assert "--ssl" in page.until("[role=alert]", "only to pages that come over https")
    assert page.page.is_disabled("#talk")


@needs_browser
def test_a_key_is_asked_for(server: Server, visit: Callable[..., Visit]) -> None:
    page = visit(f"{server.url}/?token=wrong")
    page.page.wait_for_selector("#key-form")
    assert page.page.is_hidden("#talk")
    assert page.focused() == "key"
    assert page.page.evaluate("document.activeElement.validationMessage") != ""
    page.page.keyboard.type(TOKEN)
    page.page.keyboard.press("Enter")
    page.until("#state", "Ready")
    assert page.focused() == "talk"
    assert page.page.url == f"{server.url}/"


# ------------------------------------------------------------------- sound, words in order

_WORKLETS = """async rate => {
  const made = {}
  globalThis.sampleRate = rate
  globalThis.AudioWorkletProcessor = class { constructor() { this.port = {
    told: [], postMessage(data) { this.told.push(data) } } } }
  globalThis.registerProcessor = (name, kind) => made[name] = kind
  await import(`/page/worklets.js?${rate}`)
  globalThis.made = made
  globalThis.tone = (at, loud) => Int16Array.from({length: 1920},
    (_, i) => Math.round(loud * 32767 * Math.sin(2 * Math.PI * 500 * (1920 * at + i) / 24000)))
  // Frame n comes at times[n] (ms); what is played in that time, and how the buffer stands.
  globalThis.played = (times, loud, until) => {
    const voice = new made.playback()
    const out = []
    let next = 0
    for (let at = 0; 1000 * at / rate < until; at += 128) {
      while (next < times.length && times[next] <= 1000 * at / rate) {
        voice.push(tone(next, loud(next))); next++
      }
      const block = new Float32Array(128)
      voice.process([], [[block]])
      out.push(...block)
    }
    return {out, missed: voice.missed / rate, margin: voice.margin, ceiling: voice.ceiling,
            ahead: voice.ahead}
  }
}"""


@pytest.fixture(scope="module", params=[24_000, 44_100])
def worklets(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Any]:
    """A page in which the code of the audio thread runs at a rate, without its thread."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.evaluate(_WORKLETS, request.param)
    page.rate = request.param
    yield page
    context.close()


def play(page: Any, times: list[float], loud: str = "0.5") -> tuple[np.ndarray, dict[str, float]]:
    found = page.evaluate(f"([t, u]) => played(t, n => {loud}, u)", [times, times[-1] + 400])
    return np.array(found.pop("out")), found


@needs_browser
def test_what_comes_in_time_is_played_whole_after_a_frame_and_a_margin(worklets: Any) -> None:
    times = [80.0 * n for n in range(20)]
    pcm, state = play(worklets, times)
    assert state["ahead"] == pytest.approx(0.010, abs=0.006)
    assert state["margin"] == pytest.approx(0.015)  # one, at the end
    start = np.argmax(np.abs(pcm) > 0.1) / worklets.rate
    assert start == pytest.approx(0.010, abs=0.006)
    within = pcm[round(0.1 * worklets.rate) : round(1.5 * worklets.rate)]
    assert np.abs(within).max() == pytest.approx(0.5, abs=0.01)
    spectrum = np.abs(np.fft.rfft(within * np.hanning(len(within)))) ** 2
    at = round(500 * len(within) / worklets.rate)
    assert spectrum[at - 3 : at + 4].sum() / spectrum.sum() > 0.9999


@needs_browser
def test_what_comes_late_makes_the_margin_larger_and_no_click(worklets: Any) -> None:
    times = [80.0 * n + 40 * (n >= 5) for n in range(10)]
    pcm, state = play(worklets, times)
    assert state["margin"] == pytest.approx(0.020)
    assert state["missed"] > 0.03
    assert np.abs(np.diff(pcm)).max() < 1.3 * 0.5 * 2 * np.pi * 500 / worklets.rate + 0.01


@needs_browser
def test_what_comes_early_is_left_out_beyond_a_ceiling(worklets: Any) -> None:
    times = [80.0 * n for n in range(5)] + [330.0] * 4 + [400.0 + 80 * n for n in range(5)]
    pcm, state = play(worklets, times)
    assert state["ceiling"] > 0.08
    assert 0.2 < state["missed"] < 0.8
    assert state["ahead"] < 0.1
    assert np.abs(np.diff(pcm)).max() < 1.3 * 0.5 * 2 * np.pi * 500 / worklets.rate + 0.01


@needs_browser
def test_silence_is_left_out_at_once_and_not_missed(worklets: Any) -> None:
    times = [80.0 * n for n in range(5)] + [330.0] * 4 + [400.0 + 80 * n for n in range(5)]
    _, state = play(worklets, times, "0")
    assert state["missed"] == 0
    assert state["ahead"] < 0.03


@needs_browser
def test_the_microphone_at_any_rate_comes_in_frames(worklets: Any) -> None:
    found = worklets.evaluate(
        """seconds => {
          const ears = new made.capture()
          for (let at = 0; at < seconds * sampleRate; at += 128) {
            const block = Float32Array.from({length: 128},
              (_, i) => 0.5 * Math.sin(2 * Math.PI * 500 * (at + i) / sampleRate))
            ears.process([at ? [block] : []], [[block]])
          }
          return ears.port.told.map(frame => [...frame])
        }""",
        1.0,
    )
    assert {len(frame) for frame in found} == {1920}
    pcm = np.concatenate(found[1:]) / 32768
    assert len(pcm) / 24_000 > 0.75
    assert np.abs(pcm).max() == pytest.approx(0.5, abs=0.01)
    expected = np.sin(2 * np.pi * 500 * np.arange(len(pcm)) / 24_000 + np.arcsin(0))
    shift = np.argmax([abs(np.dot(np.roll(expected, k), pcm)) for k in range(48)])
    error = pcm - np.dot(np.roll(expected, shift), pcm) / np.dot(expected, expected) * np.roll(
        expected, shift
    )
    assert np.abs(error).max() < 0.07


@needs_browser
def test_words_of_both_sides_are_in_order_though_the_users_come_late(
    server: Server, visit: Callable[..., Visit]
) -> None:
    page = visit(with_key(server))
    page.until("#state", "Ready")
    lines = page.page.evaluate("""async () => {
      const {Transcript} = await import('/page/transcript.js')
      const list = document.getElementById('transcript')
      const words = new Transcript(list)
      words.add('moshi', ' Hello!', 3.0, 3.4)
      words.add('you', ' What', 1.0, 1.2)
      words.add('you', ' now?', 1.3, 1.5)
      words.add('moshi', ' Well,', 3.9, 4.1)
      words.add('moshi', ' <b>yes</b>.', 65.5, 66)
      return [...list.children].map(line => [...line.children].map(part => part.textContent))
    }""")
    assert lines == [
        ["0:01", "You", "What now?"],
        ["0:03", "Moshi", "Hello! Well,"],
        ["1:05", "Moshi", "<b>yes</b>."],
    ]
