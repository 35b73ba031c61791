"""Answer a recording of any rate, and print what happens as JSON lines for another program.

python examples/events_as_json.py question.wav answer.wav | jq .
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import moshi_mlx
from moshi_local import Event, FileAudio, FrameDone, run_loop


def show(event: Event) -> None:
    if not isinstance(event, FrameDone):  # one per frame, with its sound
        print(json.dumps({"event": type(event).__name__, **asdict(event)}), flush=True)


def main(source: str, target: str) -> None:
    moshi = moshi_mlx.load("nano", verb="talk")
    rate, size = moshi.sample_rate, moshi.frame_size
    files = FileAudio(Path(source), Path(target), sample_rate=rate, frame_size=size, tail=4.0)
    with moshi.session(seed=0) as session, files:
        run_loop(session, files, frame_size=size, frame_rate=moshi.frame_rate, listeners=[show])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
