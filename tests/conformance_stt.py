"""What the cases of speech-to-text models have besides: the reference's file run, and its words.

The reference has two rules for words, of its script and of its server. The product has a third one,
told in `docs/transcribe-library.md`; these two are here to show that its tokens give theirs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moshi_mlx.families.hearing import Hearing
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling
from moshi_mlx.text import TextTokenizer

GREEDY = Sampling(temperature=0)
EPAD, EOS, PAD = 0, 2, 3
LAST_FRAMES = 12
TIMES = 1e-6


def script_words(
    tokens: Sequence[int], tokenizer: TextTokenizer, offset: float, rate: float
) -> list[dict[str, Any]]:
    """As the script has them: EPADs part segments, of which all words but the last are counted.

    Args:
        tokens: the text, one token a frame.
        tokenizer: of the text.
        offset: seconds that are taken off.
        rate: frames per second.
    """
    marks = [i for i, token in enumerate(tokens) if token == EPAD]
    ends = [i for i, token in enumerate(tokens) if token == EOS and marks and i > marks[-1]]

    def seconds(index: int) -> float:
        return max(0.0, index / rate - offset)

    words = []
    for n, mark in enumerate(marks):
        start = mark + 1
        if n + 1 < len(marks):
            end = marks[n + 1]
        else:
            end = ends[0] if ends else min(len(tokens), start + LAST_FRAMES)
        texts = tokenizer.decode(tokens[start:end]).split()
        for i, text in enumerate(texts):
            stop = end if i == len(texts) - 1 else start + len(tokenizer.encode(text))
            words.append({"text": text, "start": seconds(start), "end": seconds(stop)})
            start = stop
    return words


def server_events(
    tokens: Sequence[int], tokenizer: TextTokenizer, delay: int, rate: float
) -> list[dict[str, Any]]:
    """As the server tells them: a word at the first padding after it, its end at the next EPAD.

    Args:
        tokens: the text, one token a frame.
        tokenizer: of the text.
        delay: steps in which nothing is told.
        rate: frames per second.
    """
    events: list[dict[str, Any]] = []
    pending: list[int] = []
    last, open_word = 0.0, False
    for step, token in enumerate(tokens):
        done = step + 1
        if done < delay:
            continue
        if token not in (EPAD, PAD):
            pending.append(token)
            continue
        if pending:
            word = {"type": "Word", "text": tokenizer.decode(pending), "start_time": last}
            events.append({**word, "step": step})
            pending, open_word = [], True
        if token == EPAD:
            stop = (done - delay) / rate
            if open_word:
                events.append({"type": "EndWord", "stop_time": stop, "step": step})
            last, open_word = stop, False
    return events


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """Whether texts, kinds and steps are equal, and times by `TIMES`."""

    def alike(a: Any, b: Any) -> bool:
        return bool(abs(a - b) <= TIMES) if isinstance(b, float) else bool(a == b)

    return len(ours) == len(theirs) and all(
        a.keys() == b.keys() and all(alike(a[name], b[name]) for name in b)
        for a, b in zip(ours, theirs, strict=True)
    )


def run_stt(lm: Lm, expected: dict[str, np.ndarray], folder: Path) -> dict[str, float]:
    """The reference's file run by `Hearing`: largest differences, tokens and word lists wrong."""
    if "file.tokens" not in expected:
        return {}
    codes = expected["stream.user_codes"]
    hearing = Hearing(Generator(lm, batch=len(codes), text=GREEDY, audio=GREEDY))
    tokens, logits, pauses = [], [], []
    for t in range(codes.shape[2]):
        step = hearing.hear(codes[:, :, t])
        tokens.append(step.written[:, 0])
        logits.append(np.array(step.text_logits))
        pauses.append(hearing.pauses(step))
    ours = np.stack(tokens, 1)
    result = {
        "file.tokens": float((ours != expected["file.tokens"][:, 0]).sum()),
        "file.text_logits": float(np.abs(np.stack(logits, 1) - expected["file.text_logits"]).max()),
    }
    if "file.extra_heads" in expected:
        theirs = expected["file.extra_heads"][..., 0]  # [heads, B, T]
        ours_heads = np.array(pauses).transpose(2, 1, 0)
        result["file.extra_heads"] = float(np.abs(ours_heads - theirs).max())
    words = folder / "words.json"
    if words.exists():
        facts, tokenizer = read_json(words), TextTokenizer(folder / "tokenizer.model")
        rate, wrong = facts["frame_rate"], {"script": 0, "server": 0}
        for row, item in zip(ours.tolist(), facts["items"], strict=True):
            script = script_words(row, tokenizer, facts["offset_seconds"], rate)
            server = server_events(row, tokenizer, facts["delay_steps"], rate)
            wrong["script"] += not same(script, item["script"])
            wrong["server"] += not same(server, item["server"])
        result |= {f"words.{name}": float(count) for name, count in wrong.items()}
    return result
