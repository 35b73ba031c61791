"""Text to speech: the reference's cases, speech as it is made, text that arrives, voices."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import ArgumentError, CheckpointError, ConfigError, Sampling, SessionError, load
from moshi_mlx.families.speak import Tts
from moshi_mlx.families.speech_stream import SpokenChunk
from moshi_mlx.published import read_config
from tests.conformance import passes, run_case
from tests.fixtures import make_tts

CASES = Path(__file__).parents[1] / "fixtures" / "tts"
GREEDY = Sampling(temperature=0)
TEXT = "Hello, this is a small test of the talking machine."
QUICK: Any = {"text": GREEDY, "audio": GREEDY, "codebooks": 1}


def model_of(case: str) -> Tts:
    model = load(CASES / case, verb="speak", codec="mlx", dtype=mx.float32)
    assert isinstance(model, Tts)
    return model


@pytest.fixture(scope="module")
def tts() -> Tts:
    return model_of("ahead")


@pytest.fixture(scope="module")
def prefixed() -> Tts:
    return model_of("prefix")


@pytest.mark.parametrize(
    "case", ["machine.json", "scripts.json", "ahead", "plain", "prefix", "multistream"]
)
def test_all_is_as_the_reference_has_it(case: str) -> None:
    """Traces, scripts; tokens drawn, forced and read, frames, times, logits and sound."""
    result = run_case(CASES / case)
    assert passes(result), result


# --------------------------------------------------------------------------- text that arrives


def test_text_that_arrives_in_any_pieces_is_spoken_as_the_whole(tts: Tts) -> None:
    """To the last sample: nothing is padded while text lacks."""
    text = 'A: Hello there.\nB: Yes <break time="300ms"/> it is.\nA: Good.'
    whole = tts.speak(text, voice="alice", **QUICK).all()
    for size in (1, 7):
        pieces = (text[i : i + size] for i in range(0, len(text), size))
        stream = tts.speak(pieces, voice="alice", **QUICK)
        arrived = stream.all()
        np.testing.assert_array_equal(arrived.pcm, whole.pcm)
        assert arrived.words == whole.words
        assert stream.first_sound_seconds is not None


def test_sound_begins_as_soon_as_the_words_ahead_are_known(tts: Tts) -> None:
    """Text is asked for only when the next step needs it."""
    asked: list[str] = []

    def text() -> Iterator[str]:
        for word in TEXT.split():
            asked.append(word)
            yield f"{word} "

    stream = tts.speak(text(), **QUICK)
    next(stream)
    first = tts.delay_steps + max(tts.lm.config.delays) + 1
    begun = [word for word in stream._machine.begun if word.step < first]
    assert len(asked) <= len(begun) + tts.tts.second_stream_ahead + 1 < len(TEXT.split())
    stream.close()


def test_an_error_of_the_text_reaches_the_caller_and_ends_the_speech(tts: Tts) -> None:
    def text() -> Iterator[str]:
        yield "One two three four "
        raise OSError("the text is gone")

    stream = tts.speak(text())
    with pytest.raises(OSError, match="the text is gone"):
        stream.all()
    assert list(stream) == []


def test_closing_lets_go_of_everything(tts: Tts) -> None:
    closed: list[bool] = []

    def text() -> Iterator[str]:
        try:
            while True:
                yield "and so on "
        finally:
            closed.append(True)

    with tts.speak(text()) as stream:
        next(stream)
    assert closed == [True]
    assert stream._speaking is None
    with pytest.raises(SessionError, match="this speech is closed"):
        next(stream)


@pytest.mark.parametrize(
    ("script", "message"),
    [(7, "script must be text"), ([1], "script must be turns of text"),
     ([b"x"], "script must be turns of text"), ('[{"text": 1}]', "turn 1 of the script must be"),
     ('["a",', "the script cannot be read as JSON"), ('<break time="long"/> x', "is no break"),
     ('<break strength="huge"/> x', "the strength is one of"),
     ('<break time="99999s"/> x', "at most 60 s")],
)  # fmt: skip
def test_scripts_that_make_no_sense(tts: Tts, script: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tts.speak(script)  # type: ignore[arg-type]


def test_an_event_loop_gets_the_same(tts: Tts) -> None:
    """From an asynchronous text; a piece whose caller gave up is the next one."""
    whole = tts.speak(TEXT, **QUICK).all()

    async def text() -> AsyncIterator[str]:
        for word in TEXT.split():
            await asyncio.sleep(0)
            yield f"{word} "

    async def spoken() -> list[SpokenChunk]:
        stream = tts.speak(text(), **QUICK)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        return [chunk async for chunk in stream]

    chunks = asyncio.run(spoken())
    np.testing.assert_array_equal(np.concatenate([chunk.pcm for chunk in chunks]), whole.pcm)
    with pytest.raises(SessionError, match="use async for"):
        tts.speak(text()).all()


def test_an_event_loop_runs_on_while_a_text_blocks(tts: Tts) -> None:
    """As standard input does."""
    more = threading.Event()

    def text() -> Iterator[str]:
        yield "One "
        assert more.wait(20)
        yield "two three four five"

    async def spoken() -> int:
        stream = tts.speak(text())
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        more.set()
        await waiting
        return 1 + len([chunk async for chunk in stream])

    assert asyncio.run(spoken()) > 1


# ---------------------------------------------------------------------------------- speech


def test_two_runs_are_equal_and_another_seed_is_not(tts: Tts) -> None:
    first, again, other = (tts.speak("Two runs.", seed=seed).all() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.pcm, again.pcm)
    assert first.words == again.words
    assert len(other.pcm) != len(first.pcm) or not np.array_equal(other.pcm, first.pcm)


def test_a_batch_speaks_as_each_alone(tts: Tts) -> None:
    texts, voices = ["A short one.", ["", "The other one speaks much longer."]], ["alice", "bob"]
    both = tts.speak_batch(texts, voices=voices, **QUICK)
    for text, voice, speech in zip(texts, voices, both, strict=True):
        alone = tts.speak(text, voice=voice, **QUICK).all()
        # The steps of the longer one complete the shorter one's last frames too.
        np.testing.assert_allclose(speech.pcm[: len(alone.pcm)], alone.pcm, atol=1e-4)
        assert speech.words == alone.words


def test_pauses_have_times(tts: Tts) -> None:
    spoken = tts.speak('One <break time="800ms"/> two.', text=GREEDY, audio=GREEDY).all()
    one, pause, two = spoken.words
    assert (one.text, pause.text, two.text) == ("One", "", "two.")
    assert one.end == pause.start
    assert pause.end == two.start
    assert pause.end - pause.start >= 0.8
    assert spoken.text == "One two."


def test_speed_is_a_bonus_for_padding_and_kept_in_range(tts: Tts) -> None:
    """Faster is less of it; what a bonus does is in the reference's runs."""
    _, text = tts._drawing(None, False, 1.5, None)
    assert text is not None
    assert text.bonus == (3, -1.5)
    with pytest.raises(ArgumentError, match="speed must be from -2 to 2"):
        tts.speak("x", speed=3)


def test_speech_goes_on_past_what_the_model_remembers(tts: Tts) -> None:
    context = tts.lm.config.transformer.context
    assert context is not None
    spoken = tts.speak("yes it is so and " * 4, **QUICK).all()
    assert spoken.seconds * tts.frame_rate > 2 * context
    starts = [word.start for word in spoken.words]
    assert len(starts) == 20
    assert starts == sorted(starts)


# ---------------------------------------------------------------------------------- voices


def test_voices_by_name_file_and_for_two_speakers(tts: Tts) -> None:
    assert tts.voices() == ["alice", "bob"]
    file = CASES / "ahead" / "voices" / "alice.wav.5eedfa11@7.safetensors"
    spoken = [
        tts.speak("Hello to you.", voice=voice, **QUICK).all().pcm
        for voice in ("alice", "alice.wav", file, str(file), tts.voice("alice"), ["alice", "alice"])
    ]
    for pcm in spoken[1:5]:
        np.testing.assert_array_equal(pcm, spoken[0])
    assert not np.array_equal(spoken[5], spoken[0])


def test_voices_of_other_models_are_refused_by_name(tts: Tts, tmp_path: Path) -> None:
    def written(about: dict[str, str], *shape: int) -> Path:
        path = tmp_path / "v.safetensors"
        mx.save_safetensors(str(path), {"speaker_wavs": mx.zeros(shape)}, about)
        return path

    with pytest.raises(ArgumentError, match=r"was made for tts-1\.6b; this model takes those"):
        tts.voice(written({"sig": "1e68beda", "epoch": "240"}, 1, 16, 4))
    with pytest.raises(CheckpointError, match=r"must be \[1, 16, frames\], is \[1, 512, 125\]"):
        tts.voice(written({}, 1, 512, 125))
    with pytest.raises(ArgumentError, match="there is no voice 'carla'"):
        tts.voice("carla", offline=True)
    with pytest.raises(ArgumentError, match=r"voices must be of one length, are of \[5, 6\]"):
        tts.speak("x", voice=["alice", written({}, 1, 16, 6)])


def test_a_model_goes_on_from_a_recording(prefixed: Tts, tmp_path: Path) -> None:
    """That came with it, or of which a voice was made with consent: a bare recording is refused."""
    assert prefixed.voices() == ["carol", "dave"]
    voice = prefixed.voice("carol")
    path = tmp_path / "mine.safetensors"
    voice.save(path, consent="made up")  # type: ignore[union-attr]
    spoken = [
        prefixed.speak("This follows.", voice=each, voices_folder=tmp_path, audio=GREEDY).all()
        for each in ("carol", "mine", path, "dave", None)
    ]
    for speech in spoken[1:3]:
        np.testing.assert_array_equal(speech.pcm, spoken[0].pcm)
    for speech in spoken[3:]:
        assert not np.array_equal(speech.pcm[:1920], spoken[0].pcm[:1920])
    for speech in spoken:
        assert speech.words[0].start >= 2 / prefixed.frame_rate
    with pytest.raises(CheckpointError, match=r"not a voice: that is a \.safetensors file"):
        prefixed.voice(CASES / "prefix" / "voices" / "carol.wav")
    with pytest.raises(ArgumentError, match="did you mean carol"):
        prefixed.voice("karol")
    with pytest.raises(ArgumentError, match="goes on from one recording"):
        prefixed.speak("x", voice=["carol", "dave"])


@pytest.mark.parametrize("fuser", [{}, None, {"sum": ["cfg", "control"]}])
def test_a_condition_that_nothing_takes_is_refused(fuser: object, tmp_path: Path) -> None:
    raw = make_tts.config_of(False, fuser=fuser)
    with pytest.raises(ConfigError, match=r"'fuser' must name the conditioner '\w+' in 'sum'"):
        read_config(raw)


def test_a_cfg_that_the_model_does_not_know(tts: Tts) -> None:
    with pytest.raises(ArgumentError, match=r"cfg must be one of 1.0, 1.5, .*, is 2.2"):
        tts.speak("x", cfg=2.2)


# ----------------------------------------------------------------------------------- queue


def test_a_queue_speaks_requests_in_order_and_forgets_the_cancelled(tts: Tts) -> None:
    alone = tts.speak("Two words.", **QUICK).all()
    with tts.queue() as queue:
        first = queue.submit("One.", **QUICK)
        second = queue.submit("Never said.", **QUICK)
        third = queue.submit("Two words.", **QUICK)
        broken = queue.submit(["x"], voice="nobody", offline_is="unknown")
        second.cancel()
        assert first.all().text == "One."
        np.testing.assert_array_equal(third.all().pcm, alone.pcm)
        with pytest.raises(SessionError, match="was cancelled"):
            second.all()
        with pytest.raises(TypeError):
            broken.all()
    with pytest.raises(SessionError, match="the queue is closed"):
        queue.submit("x")
