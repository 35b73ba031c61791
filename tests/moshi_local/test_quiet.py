"""What sound libraries write to stderr, and what must come through all the same."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from moshi_local.audio import quiet
from moshi_local.audio.quiet import quiet_libraries, restore_stderr

NOISE = [
    b"ALSA lib pcm.c:2722:(snd_pcm_open_noupdate) Unknown PCM cards.pcm.rear\n",
    b"Cannot connect to server socket err = No such file or directory\n",
    b"Cannot connect to server request channel\n",
    b"jack server is not running or cannot be started\n",
    b"JackShmReadWritePtr::~JackShmReadWritePtr - Init not done for -1, skipping unlock\n",
    b"connect(2) call to /dev/shm/jack-0/default/jack_0 failed (err=No such file or directory)\n",
    b"Expression 'alsa_snd_pcm_hw_params_any( pcm, hwParams )' failed in 'src/pa_linux_alsa.c'\n",
    b"||PaMacCore (AUHAL)|| Error on line 2747: err='-10863', msg=Audio Unit\n",
]


def test_only_the_libraries_lines_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_libraries():
        for line in NOISE:
            os.write(2, b"ours: " + line)
            os.write(2, line)
        for part in (b"ALSA lib ", b"no such card: ours", b"\n"):
            os.write(2, part)
        os.write(2, b"no end of line")
    os.write(2, b"; after it\n" + NOISE[0])
    err = capfd.readouterr().err
    ours = "".join(f"ours: {line.decode()}" for line in NOISE)
    assert err == f"{ours}no end of line; after it\n{NOISE[0].decode()}"


def test_words_without_an_end_of_line_pass_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_libraries():
        os.write(2, b"one word")
        deadline = time.monotonic() + 5
        while not (err := capfd.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.001)
    assert err == "one word"


def test_several_threads_and_an_error_leave_stderr_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before, descriptors = os.fstat(2), len(list(Path("/dev/fd").iterdir()))
    inside, leave = threading.Barrier(4, timeout=10), threading.Event()

    def open_card() -> None:
        with quiet_libraries():
            inside.wait()
            leave.wait(10)

    threads = [threading.Thread(target=open_card) for _ in range(3)]
    for thread in threads:
        thread.start()
    inside.wait()
    with pytest.raises(ValueError, match="ours"), quiet_libraries():
        raise ValueError("ours")
    os.write(2, NOISE[0])
    leave.set()
    for thread in threads:
        thread.join()
    assert capfd.readouterr().err == "", "the others were still inside"
    assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (before.st_dev, before.st_ino)
    assert len(list(Path("/dev/fd").iterdir())) == descriptors


def test_a_thread_that_never_leaves_does_not_keep_the_last_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    quiet._enter()
    try:
        os.write(2, b"moshi-local: the last words\n")
        restore_stderr()
        assert capfd.readouterr().err == "moshi-local: the last words\n"
        os.write(2, NOISE[0])
        assert capfd.readouterr().err == NOISE[0].decode()
    finally:
        quiet._leave()


def test_without_stderr_nothing_happens() -> None:
    saved = os.dup(2)
    os.close(2)
    try:
        with quiet_libraries():
            pass
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(2)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
