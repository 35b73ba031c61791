"""One model, one thread, several conversations."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import moshi_mlx
from moshi_local.engine import Engine
from moshi_mlx import ArgumentError, HubError, Moshi, SessionError, SpeechStarted, WordSpoken
from moshi_mlx.arrays import Pcm
from moshi_mlx.hub import bundled_folder
from moshi_mlx.sounds import open_sound

FRAMES = 15


def load() -> Moshi:
    return moshi_mlx.load("nano", verb="talk", codec="mlx")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(load) as engine:
        yield engine


def sound(seed: int) -> Pcm:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.3, 0.3, (FRAMES, 1920)).astype(np.float32)


@pytest.fixture(scope="module")
def alone() -> list[list[Pcm]]:
    """What two conversations say when each has a model to itself."""
    moshi = load()
    said = []
    for seed in (0, 1):
        with moshi.session(seed=seed) as session:
            said.append([session.step(pcm).pcm for pcm in sound(seed)])
    return said


def test_threads(engine: Engine, alone: list[list[Pcm]]) -> None:
    """Two conversations from two threads are, to the bit, as each alone."""
    said: dict[int, list[Pcm]] = {0: [], 1: []}

    def talk(seed: int) -> None:
        with engine.open(seed=seed) as conversation:
            for pcm in sound(seed):
                frame, _ = conversation.step(pcm)
                assert frame is not None
                said[seed].append(frame.pcm)

    threads = [threading.Thread(target=talk, args=[seed]) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        np.testing.assert_array_equal(said[seed], alone[seed])


def test_event_loop(engine: Engine, alone: list[list[Pcm]]) -> None:
    async def talk(seed: int) -> list[Pcm]:
        with engine.open(seed=seed) as conversation:
            frames = [await conversation.step_async(pcm) for pcm in sound(seed)]
        return [frame.pcm for frame, _ in frames if frame is not None]

    async def both() -> list[list[Pcm]]:
        return list(await asyncio.gather(talk(0), talk(1)))

    for ours, theirs in zip(asyncio.run(both()), alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mute_and_events_belong_to_a_conversation(engine: Engine) -> None:
    """A muted microphone is silence to the model; the other conversation hears on."""
    with engine.open() as muted, engine.open() as other:
        muted.controls.mute(True)
        events = {"muted": [], "other": []}  # type: ignore[var-annotated]
        for pcm in sound(3):
            events["muted"] += muted.step(pcm)[1]
            events["other"] += other.step(pcm)[1]
    assert not [e for e in events["muted"] if isinstance(e, SpeechStarted) and e.side == "user"]
    assert [e for e in events["other"] if isinstance(e, SpeechStarted) and e.side == "user"]


def test_one_that_fails_does_not_disturb_the_other(engine: Engine, alone: list[list[Pcm]]) -> None:
    with engine.open(seed=0) as good, engine.open() as bad:
        for t, pcm in enumerate(sound(0)):
            with pytest.raises(SessionError, match="a frame is 1920 samples"):
                bad.step(pcm[:7])
            frame, _ = good.step(pcm)
            assert frame is not None
            np.testing.assert_array_equal(frame.pcm, alone[0][t])
            if t == 5:
                bad.close()
                bad.close()
                break
        with pytest.raises(SessionError, match="is closed"):
            bad.step(sound(0)[0])
        assert good.step(sound(0)[6])[0] is not None


def test_what_is_no_sound_leaves_the_conversation_usable(engine: Engine) -> None:
    with engine.open() as conversation:
        for _ in range(2):
            with pytest.raises(ArgumentError, match="sound has floats"):
                conversation.step(np.zeros(1920, np.uint8))
        assert conversation.step(sound(0)[0])[0] is not None


def test_conversations_that_are_dropped_are_forgotten(engine: Engine) -> None:
    engine.open()
    gc.collect()
    assert not engine._open


def test_one_frame_at_a_time(engine: Engine) -> None:
    """While a frame waits, another one of the same conversation is refused at once."""
    gate = threading.Event()
    with engine.open() as conversation:
        engine.submit(gate.wait)
        with pytest.raises(TimeoutError):
            conversation.step(sound(0)[0], timeout=0.05)
        with pytest.raises(SessionError, match="still being stepped"):
            conversation.step(sound(0)[1])
        gate.set()
        engine.submit(lambda: None).result()
        assert conversation.step(sound(0)[1])[0] is not None


def test_the_end() -> None:
    before = threading.active_count()
    with Engine(load) as engine:
        conversation = engine.open()
        conversation.step(sound(0)[0])
    assert threading.active_count() == before
    for call in (engine.open, lambda: conversation.step(sound(0)[0])):
        with pytest.raises(SessionError, match="is closed"):
            call()

    def missing() -> Moshi:
        return moshi_mlx.load("nanoo", verb="talk")

    with pytest.raises(HubError, match="nanoo"):
        Engine(missing)
    assert threading.active_count() == before


def test_conversations_that_step_together_say_what_they_say_alone(engine: Engine) -> None:
    """Three askers who begin one after the other, each from its own thread."""
    question = open_sound(bundled_folder("nano") / "question.wav").read(24_000).mean(axis=0)
    frames = np.pad(question[:36_000], (0, 480 + 1920 * 30)).reshape(-1, 1920)

    def words(late: float) -> list[str]:
        time.sleep(late)
        with engine.open(seed=0) as conversation:
            steps = [conversation.step(frame)[1] for frame in frames]
        return [e.word.text for events in steps for e in events if isinstance(e, WordSpoken)]

    alone = words(0)
    assert alone[0] == "Hello!"
    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(words, (0, 0.1, 0.2))] == [alone] * 3
