"""Put words into the conversation: the model speaks them in its own voice, at its own pace.

python examples/say.py question.wav answer.wav
"""

import sys

import numpy as np
import soundfile

import moshi_mlx
from moshi_mlx import Frame, TextSaid


def look_up(frame: Frame) -> str | None:
    """What a tool would answer. A slow tool calls `session.say` later, from any thread."""
    asked = [word for word in frame.words if word.text == "help"]
    return "One moment please." if asked else None


def main(source: str, target: str) -> None:
    moshi = moshi_mlx.load("nano", verb="talk")
    question, _ = soundfile.read(source, dtype="float32")
    frames = np.zeros((125, moshi.frame_size), np.float32)
    frames.flat[: len(question)] = question[: frames.size]
    answer = []
    with moshi.session(seed=0, hook=look_up) as session:
        for pcm in frames:
            frame = session.step(pcm)
            answer.append(frame.pcm)
            for word in frame.words:
                print(f"{word.start:6.2f} s  {word.text}")
            for event in frame.events:
                if isinstance(event, TextSaid):
                    print(f"{event.time:6.2f} s  said: {event.text}")
    soundfile.write(target, np.concatenate(answer), moshi.sample_rate)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
