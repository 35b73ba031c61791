"""A bench for conversation: how a dialogue model takes turns, waits, stops and goes on.

`Bench` makes scenes or takes the folders of Full-Duplex-Bench, runs a model through them frame by
frame, and scores what it says by that bench's definitions.
"""

from .acoustics import at_level, in_noise, in_room, on_telephone, room_response, sounding_level
from .benchmark_folders import found_sets
from .ears import Whisper
from .evaluation import DEFAULT_SCENES, Bench, BenchOptions, Evaluation, evaluations_json
from .figures import figures_markdown, figures_rows, figures_svg
from .scenes import Axis
from .scores import Behaviour

__all__ = [
    "DEFAULT_SCENES",
    "Axis",
    "Behaviour",
    "Bench",
    "BenchOptions",
    "Evaluation",
    "Whisper",
    "evaluations_json",
    "at_level",
    "figures_markdown",
    "figures_rows",
    "figures_svg",
    "found_sets",
    "in_noise",
    "in_room",
    "on_telephone",
    "room_response",
    "sounding_level",
]
