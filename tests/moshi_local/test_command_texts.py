"""What a TEXT, a FILE and standard input are to a command."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from moshi_local.texts import Arriving, file_of, sentences, text_in
from moshi_mlx import ArgumentError


def test_a_file_is_told_from_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text("Hello.")
    for name in ("notes", "none.txt", "./none.MD", "script.json", str(tmp_path / "notes")):
        assert file_of(name) == Path(name)
    for text in (
        "Read notes",
        "See none.txt",
        "a.b",
        "x" * 5000,
        "one\ntwo.txt",
        "e.g.",
        "a" * 300,
    ):
        assert file_of(text) is None


def test_what_a_file_must_be(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeff  Grüße. \n".encode())
    assert text_in(path, 100) == "Grüße."
    for content, message in (
        (b"", "t.txt has no text"),
        (b" \n\t", "has no text"),
        ("é".encode("latin-1"), "not text in UTF-8"),
        (b"a\0b", "not text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0", "t.txt is a picture"),
        (b"x" * 101, "has more than 0 kB"),
    ):
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=message):
            text_in(path, 100)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ArgumentError, match="cannot be read"):
            text_in(missing, 100)


def arrive(*pieces: bytes) -> list[str]:
    source, sink = os.pipe()
    for piece in pieces:
        os.write(sink, piece)
    os.close(sink)
    try:
        return list(Arriving(source, "stdin"))
    finally:
        os.close(source)


def test_pieces_come_as_they_arrive_and_letters_stay_whole() -> None:
    source, sink = os.pipe()
    asked = threading.Semaphore(0)
    happened: list[str] = []

    def waits() -> None:
        happened.append("waits")
        asked.release()

    arriving = Arriving(source, "stdin", waits=waits)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(arriving))
    thread.start()
    for piece in ("\ufeffGr".encode(), "ü".encode()[:1], "ü".encode()[1:] + b"sse"):
        assert asked.acquire(timeout=5)
        os.write(sink, piece)
    asked.acquire(timeout=5)
    os.close(sink)
    thread.join(5)
    os.close(source)
    assert found == ["Gr", "üsse"]
    assert happened == ["waits"] * 4
    assert arriving.ended
    assert arriving.first_at is not None


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "stdin has no text"),
        ([b" \n"], "stdin has no text"),
        ([b"a\xff"], "stdin is not text in UTF-8"),
        ([b"a\xc3"], "stdin is not text in UTF-8"),
        ([b"a\0"], "stdin is not text: it has zero bytes"),
    ],
)
def test_what_arrives_must_be_text(pieces: list[bytes], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        arrive(*pieces)


def test_sentences_come_when_they_are_whole() -> None:
    pieces = ["It is 5", '.30 p.m. "So', '?" he said. An', "d\nthen"]
    found = [*sentences(pieces)]
    assert found == ["It is 5.30 p.m. ", '"So?" he said. ', "And\n", "then"]
    assert [*sentences([])] == []
