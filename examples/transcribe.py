"""Write down what is said in a recording, word by word with its times.

python examples/transcribe.py stt-1b talk.m4a
"""

import sys

import moshi_mlx


def main(model: str, source: str) -> None:
    stt = moshi_mlx.load(model, verb="transcribe")
    for passage in stt.transcribing([source]):
        for word in passage.words:
            print(f"{word.start:6.2f} – {word.end:6.2f} s  {word.text}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
