"""Threads, event loops, signals, forks and exits around sessions and generators."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import Frame, Moshi, SessionError
from moshi_mlx.codec import MlxCodec
from moshi_mlx.generate import Generator
from tests.moshi_mlx import test_session
from tests.moshi_mlx.test_session import equal

moshi = test_session.moshi
question = test_session.question
alone = test_session.alone


@pytest.mark.gpu
def test_stream(moshi: Moshi, question: np.ndarray) -> None:
    """Two streams at once, one from an async source, equal the steps; one thread does the work."""
    threads = set()
    assert isinstance(moshi.codec, MlxCodec)
    step = moshi.codec.encode_later

    async def slowly() -> AsyncIterator[np.ndarray]:
        for pcm in question:
            await asyncio.sleep(0)
            yield pcm

    def watched() -> Iterator[np.ndarray]:
        yield from question

    async def both() -> list[list[Frame]]:
        async def collect(source: object) -> list[Frame]:
            with moshi.session() as session:
                return [frame async for frame in session.stream(source)]  # type: ignore[arg-type]

        return list(await asyncio.gather(collect(slowly()), collect(watched())))

    with pytest.MonkeyPatch.context() as patch:

        def noting(pcm: np.ndarray, state: object) -> mx.array:
            threads.add(threading.get_ident())
            return step(pcm, state)  # type: ignore[arg-type]

        patch.setattr(moshi.codec, "encode_later", noting)
        results = asyncio.run(both())
    with moshi.session() as session:
        expected = [session.step(pcm) for pcm in question]
    assert equal(results[0], expected)
    assert equal(results[1], expected)
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_a_streamed_session_refuses_steps(moshi: Moshi, question: np.ndarray) -> None:
    async def mixed() -> None:
        with moshi.session() as session:
            stream = session.stream(question)
            await anext(stream)
            with pytest.raises(SessionError, match="being streamed"):
                session.step(question[0])
            with pytest.raises(SessionError, match="being streamed"):
                session.reset()
            with pytest.raises(SessionError, match="already"):
                await anext(session.stream(question))
            await stream.aclose()
            session.step(question[0])

    asyncio.run(mixed())


def test_cancelled_stream_leaves_the_session_usable(moshi: Moshi, question: np.ndarray) -> None:
    async def cancelled() -> None:
        with moshi.session() as session:

            async def forever() -> None:
                async for _ in session.stream(itertools.repeat(question[0])):
                    pass

            task = asyncio.create_task(forever())
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            before = session.frames
            session.step(question[0])
            assert session.frames == before + 1

    asyncio.run(cancelled())


def test_a_frame_whose_caller_is_cancelled_comes_next(moshi: Moshi, question: np.ndarray) -> None:
    async def impatient() -> list[int]:
        found: list[int] = []
        with moshi.session() as session:
            stream = session.stream(question[:6])
            while len(found) < 6:
                try:
                    found.append((await asyncio.wait_for(anext(stream), 0.0001)).index)
                except TimeoutError:
                    gone.append(len(found))
        return found

    gone: list[int] = []
    assert asyncio.run(impatient()) == list(range(6))
    assert gone  # some were cancelled


def test_a_stream_that_is_left_frees_the_session(moshi: Moshi, question: np.ndarray) -> None:
    async def left() -> int:
        with moshi.session() as session:
            async for _ in session.stream(question):
                break
            return session.step(question[0]).index

    assert asyncio.run(left()) == 1


def test_closed_during_a_stream(moshi: Moshi, question: np.ndarray) -> None:
    async def closed() -> None:
        session = moshi.session()
        stream = session.stream(question)
        await anext(stream)
        session.close()
        with pytest.raises(SessionError, match="closed"):
            await anext(stream)

    asyncio.run(closed())


def test_a_second_thread_is_refused_at_once(moshi: Moshi, question: np.ndarray) -> None:
    """While the first one steps; afterwards any thread may."""
    with moshi.session() as session:
        inside, go_on = threading.Event(), threading.Event()
        stepped = session._generator.step

        def slow(*args: object, **named: object) -> object:
            inside.set()
            go_on.wait(20)
            return stepped(*args, **named)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session._generator, "step", slow)
            patch.setattr(session, "_one_go", False)
            first = threading.Thread(target=session.step, args=[question[0]])
            first.start()
            assert inside.wait(20)
            for use in (lambda: session.step(question[0]), session.reset, session.save):
                with pytest.raises(SessionError, match="in use, by another thread"):
                    use()
            go_on.set()
            first.join()
        assert session.step(question[1]).index == 1


def test_two_who_await_a_stream_at_once(moshi: Moshi, question: np.ndarray) -> None:
    """The second is refused; it would be given the first one's frame."""

    async def both() -> tuple[int, int]:
        with moshi.session() as session:
            stream = session.stream(question[:3])
            first, second = await asyncio.gather(
                anext(stream), anext(stream), return_exceptions=True
            )
            assert isinstance(first, Frame)
            assert isinstance(second, SessionError)
            return first.index, (await anext(stream)).index

    assert asyncio.run(both()) == (0, 1)


def test_a_source_that_lets_wait_keeps_its_frame(moshi: Moshi, question: np.ndarray) -> None:
    """Whoever gives up on the next frame finds it later, and the stream goes on."""

    async def slow() -> AsyncIterator[np.ndarray]:
        for pcm in question[:3]:
            await asyncio.sleep(0.05)
            yield pcm

    async def impatient() -> list[int]:
        found: list[int] = []
        with moshi.session() as session:
            stream = session.stream(slow())
            while len(found) < 3:
                try:
                    found.append((await asyncio.wait_for(anext(stream), 0.02)).index)
                except TimeoutError:
                    gone.append(len(found))
        return found

    gone: list[int] = []
    assert asyncio.run(impatient()) == [0, 1, 2]
    assert gone


def test_cancelled_twice(moshi: Moshi, question: np.ndarray) -> None:
    """The second time while the step on its way is waited for: the session is free all the same."""

    async def cancelled() -> None:
        with moshi.session() as session:
            stream = session.stream(question)
            task = asyncio.ensure_future(anext(stream))
            while stream._step is None:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.wait([stream._step])
            session.step(question[0])

    asyncio.run(cancelled())


def test_a_state_saved_on_one_thread_serves_another(moshi: Moshi, question: np.ndarray) -> None:
    saved = []
    with moshi.session(seed=2) as session:
        for pcm in question[:4]:
            session.step(pcm)
        thread = threading.Thread(target=lambda: saved.append(session.save()))
        thread.start()
        thread.join()
        wanted = session.step(question[4]).pcm
    with moshi.session(state=saved[0]) as resumed:
        np.testing.assert_array_equal(resumed.step(question[4]).pcm, wanted)


def test_a_codecs_state_is_for_one_call_at_a_time(moshi: Moshi) -> None:
    """In each direction: two threads within it would crash."""
    assert isinstance(moshi.codec, MlxCodec)
    state, silence = moshi.codec.init_state(), np.zeros(1920, np.float32)
    codes = np.zeros((8, 1), np.int32)
    with state.encoder.turn.held():
        for step in (
            lambda: moshi.codec.encode_step(silence, state),
            lambda: moshi.mimi.encode_step(silence[None, None], state),
        ):
            with pytest.raises(SessionError, match="this direction of a codec's state is in use"):
                step()
        moshi.codec.decode_step(codes, state)
    with state.decoder.turn.held(), pytest.raises(SessionError, match="is in use"):
        moshi.codec.decode_step(codes, state)
    moshi.codec.encode_step(silence, state)


def test_sources_of_none_and_of_other_loops(moshi: Moshi, question: np.ndarray) -> None:
    """None is no frame, as it is none for `step`; a stream stays in its event loop."""
    with moshi.session() as session:
        stream = session.stream([question[0], None])  # type: ignore[list-item]
        assert asyncio.run(anext_of(stream)).index == 0
        with pytest.raises(SessionError, match="begun in another event loop"):
            asyncio.run(anext_of(stream))

        async def both() -> None:
            other = session.stream([None])  # type: ignore[list-item]
            with pytest.raises(SessionError, match="a frame is refused"):
                await anext(other)

        asyncio.run(both())


async def anext_of(stream: AsyncIterator[Frame]) -> Frame:
    return await anext(stream)


def test_a_hook_that_stops_an_iteration_ends_no_stream(moshi: Moshi, question: np.ndarray) -> None:
    def hook(_: Frame) -> str | None:
        return next(iter(()))

    async def streamed() -> None:
        session = moshi.session(hook=hook)
        with pytest.raises(SessionError, match="the hook has raised StopIteration"):
            await asyncio.wait_for(anext(session.stream(question)), 20)

    asyncio.run(streamed())


def test_a_generator_is_for_one_call_at_a_time(moshi: Moshi) -> None:
    """Not for the hook of its own step either; what was refused changes nothing."""
    made = Generator(
        moshi.lm,
        text=moshi.text_sampling,
        audio=moshi.audio_sampling,
        generated=moshi.codec.num_codebooks,
    )
    silence = np.zeros((1, made.given), np.int32)

    def again(tokens: np.ndarray) -> np.ndarray:
        with pytest.raises(SessionError, match="from within its own step"):
            made.step(silence)
        return tokens

    made.step(silence, on_text=again)
    assert made.steps == 1


def ends(code: str, timeout: float = 90, before: str = "") -> str:
    """What a Python program prints that must end well."""
    done = subprocess.run(
        [sys.executable, "-c", before + PREAMBLE + code],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


PREAMBLE = """
import os, signal, tempfile, threading, time
import mlx.core as mx, numpy as np, moshi_mlx
from moshi_mlx.generate import Generator
from moshi_mlx.state import load_state

def load(): return moshi_mlx.load('nano', verb='talk', codec='mlx')
silence = np.zeros(1920, np.float32)
moshi = load()
session = moshi.session(seed=3)
streams = moshi.lm.config.n_q
made = Generator(moshi.lm, text=moshi.text_sampling, audio=moshi.audio_sampling)
codes = np.zeros((1, made.given), np.int32)
state = session.save()
path = tempfile.mkdtemp() + "/a.state"
state.save(path)
def load_and_save():
    load_state(path).save(path)
uses = [
    lambda: session.step(silence), moshi.session, load, lambda: made.step(codes),
    lambda: mx.eval(moshi.mimi.encode(mx.zeros((1, 1, 1920)))),
    lambda: mx.eval(moshi.lm.forward(mx.zeros((1, 1 + streams, 2), mx.int32))),
    load_and_save,
]
"""


@pytest.mark.parametrize("daemon", [False, True])
def test_a_process_ends_well_after_threads_that_have_ended(daemon: bool) -> None:
    assert (
        ends(
            f"threads = [threading.Thread(target=use, daemon={daemon}) for use in 2 * uses]\n"
            "for thread in threads: thread.start(); thread.join()\n"
            "print('end')\n"
        )
        == "end\n"
    )


def test_a_process_ends_well_while_daemon_threads_are_at_work() -> None:
    """Whatever they are at: Python tears them out of it."""
    assert (
        ends(
            "def forever(use, begun):\n"
            "    while True: use(); begun.set()\n"
            "events = [threading.Event() for _ in uses]\n"
            "for each in zip(uses, events):\n"
            "    threading.Thread(target=forever, args=each, daemon=True).start()\n"
            "for event in events: event.wait()\n"
            "print('end')\n"
        )
        == "end\n"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_forked_process_is_refused() -> None:
    """With one line, where it would wait for ever."""
    said = ends(
        "session.step(silence)\n"
        "if not os.fork():\n"
        "    for use in uses:\n"
        "        try: use()\n"
        "        except moshi_mlx.SessionError as error: print(error)\n"
        "else: os.wait()\n"
    ).splitlines()
    assert len(said) == 7
    assert all("forked after it had used MLX" in line for line in said)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timers")
def test_ctrl_c_leaves_a_session_whole() -> None:
    """Wherever it comes: the frames that are given are those of a session that was left alone."""
    said = ends(
        "sound = np.random.default_rng(0).uniform(-0.3, 0.3, (40, 1920)).astype(np.float32)\n"
        "began = time.monotonic()\n"
        "wanted = [session.step(pcm).pcm for pcm in sound]\n"
        "step = (time.monotonic() - began) / 40\n"
        "def interrupt(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGALRM, interrupt)\n"
        "other, got, stops = moshi.session(seed=3), 0, np.random.default_rng(1)\n"
        "while other.frames < 40:\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, stops.uniform(1e-4, 3 * step))\n"
        "        frame = other.step(sound[other.frames])\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "        assert np.array_equal(frame.pcm, wanted[frame.index]), frame.index\n"
        "        got += 1\n"
        "    except KeyboardInterrupt: pass\n"
        "print(got)\n"
    )
    assert 1 <= int(said) < 40


def test_the_interpreters_own_end_is_no_time_for_models() -> None:
    """What is asked for by then is refused, where it would wait for ever."""
    assert ends(
        "",
        before="import atexit\n"
        "def late():\n"
        "    for use in uses[:3]:\n"
        "        try: use()\n"
        "        except moshi_mlx.SessionError as error: print(str(error).split(':')[0])\n"
        "atexit.register(late)\n",
    ).splitlines() == [
        "the process ends, and the thread of this model has ended",
        "the process ends, and the thread of this model has ended",
        "the process ends",
    ]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timers")
def test_a_handler_of_a_signal_may_close_a_session_within_its_step() -> None:
    assert (
        ends(
            "for milliseconds in range(1, 40, 4):\n"
            "    mine = moshi.session()\n"
            "    signal.signal(signal.SIGALRM, lambda *_: mine.close())\n"
            "    signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)\n"
            "    try:\n"
            "        while True: mine.step(silence)\n"
            "    except moshi_mlx.SessionError as error: assert 'closed' in str(error)\n"
            "print('end')\n"
        )
        == "end\n"
    )
