"""Talk on the sound card, and print Moshi's words as they come; Ctrl-C ends.

python examples/live_words.py
"""

import moshi_mlx
from moshi_local import Event, LiveAudio, PortAudioDevice, run_loop, warm_up
from moshi_mlx import WordSpoken


def show(event: Event) -> None:
    if isinstance(event, WordSpoken):
        print(event.word.text, end=" ", flush=True)


def main() -> None:
    moshi = moshi_mlx.load("nano", verb="talk")
    rate, size = moshi.sample_rate, moshi.frame_size
    with moshi.session() as session:
        warm_up(session, size)
        with LiveAudio(
            PortAudioDevice(sample_rate=rate, refresh=True), sample_rate=rate, frame_size=size
        ) as port:
            run_loop(session, port, frame_size=size, frame_rate=moshi.frame_rate, listeners=[show])


if __name__ == "__main__":
    main()
