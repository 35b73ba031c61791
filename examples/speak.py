"""Speak a text as it arrives, such as the answer of a language model, into a file.

python examples/speak.py MODEL speech.wav     (MODEL: tts-1.6b, or a folder)
"""

import sys
from collections.abc import Iterator

import soundfile

import moshi_mlx
from moshi_mlx.families.speak import Tts


def answer() -> Iterator[str]:
    """Pieces of a text, cut anywhere."""
    yield from ("Hello, this te", "xt arrives in pie")
    yield from ('ces. <break time="300ms"/> It is', " spoken.")


def main(name: str, target: str) -> None:
    tts = moshi_mlx.load(name, verb="speak")
    assert isinstance(tts, Tts)
    with (
        tts.speak(answer(), seed=0) as stream,
        soundfile.SoundFile(target, "w", tts.sample_rate, 1) as file,
    ):
        for chunk in stream:
            file.write(chunk.pcm)
            for word in chunk.words:
                print(f"{word.start:6.2f} to {word.end:.2f} s  {word.text or '(pause)'}")
    print(f"first sound after {stream.first_sound_seconds:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
