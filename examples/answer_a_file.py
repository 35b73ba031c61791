"""Answer a recording: PCM in, PCM and words out, 80 ms at a time.

python examples/answer_a_file.py question.wav answer.wav
"""

import sys

import numpy as np
import soundfile

import moshi_mlx


def main(source: str, target: str) -> None:
    moshi = moshi_mlx.load("nano", verb="talk")
    question, rate = soundfile.read(source, dtype="float32")
    assert rate == moshi.sample_rate, f"this example does not resample: give {moshi.sample_rate} Hz"
    silence = np.zeros(4 * rate, np.float32)  # time for the reply
    sound = np.concatenate([question, silence])
    frames = sound[: len(sound) // moshi.frame_size * moshi.frame_size].reshape(
        -1, moshi.frame_size
    )
    answer = []
    with moshi.session(seed=0) as session:
        for pcm in frames:
            frame = session.step(pcm)
            answer.append(frame.pcm)
            for word in frame.words:
                print(f"{word.start:6.2f} s  {word.text}")
    soundfile.write(target, np.concatenate(answer), rate)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
