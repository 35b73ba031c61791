"""The generator: forcing, hooks, guidance, conditions, prefill, and states that go on."""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx import CheckpointError, Frame, Moshi, Sampling, SessionError, generate
from moshi_mlx.conditions import Masked
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator
from moshi_mlx.guidance import Guidance
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.state import load_state
from moshi_mlx.transformer import TransformerLayer
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import load_lm
from tests import conformance

FIXTURES = Path(__file__).parents[1] / "fixtures"
GREEDY = Sampling(temperature=0)
HOT = Sampling(temperature=1.0, top_k=20)


def load(folder: str) -> Lm:
    config = read_config(read_json(FIXTURES / folder / "config.json")).lm
    return load_lm(FIXTURES / folder / "model.safetensors", config, dtype=mx.float32)


def expected(folder: str) -> dict[str, np.ndarray]:
    arrays = mx.load(str(FIXTURES / folder / "expected.safetensors"))
    assert isinstance(arrays, dict)
    return {name: np.array(array) for name, array in arrays.items()}


def random_codes(lm: Lm, streams: int, frames: int, batch: int = 1) -> np.ndarray:
    """int32 [frames, batch, streams]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, lm.config.card, (frames, batch, streams), dtype=np.int32)


# ------------------------------------------------------------------------------- forcing


@pytest.mark.parametrize("compiled", [False, True])
def test_forcing_what_was_drawn_gives_the_same_run(compiled: bool) -> None:
    """Text and codes of two conversations, where one of them is free for half of the time."""
    lm = load("lm/moshi")
    frames = 20

    def make() -> Generator:
        return Generator(lm, batch=2, text=HOT, audio=HOT, seed=5, compiled=compiled)

    free, forced = make(), make()
    for t, codes in enumerate(random_codes(lm, free.given, frames, batch=2)):
        drawn = free.step(codes)
        text, audio = drawn.written[:, 0].copy(), drawn.written[:, 1:].copy()
        if t % 2:
            text[1], audio[1], audio[0, 3] = -2, -2, -2
        step = forced.step(codes, text=text, audio=audio)
        np.testing.assert_array_equal(step.written, drawn.written)
        assert mx.array_equal(step.text_logits, drawn.text_logits)
        assert (step.frame is None) == (drawn.frame is None) == (t < max(lm.config.delays))


def test_the_next_step_reads_what_was_forced() -> None:
    """Other tokens forced, one stream at a time, lead to other logits; −1 is none."""
    lm = load("lm/moshi")
    codes = random_codes(lm, 8, 3)
    logits = []
    for text, audio in ((7, -2), (8, -2), (-1, -2), (7, 5), (7, -1)):
        generator = Generator(lm, text=GREEDY, audio=GREEDY)
        step = generator.step(codes[0], text=text, audio=np.full(8, audio))
        assert step.written[0, 0] == text
        assert audio == -2 or (step.written[0, 1:] == audio).all()
        logits.append(np.array(generator.step(codes[1]).text_logits))
    different = [not np.allclose(a, b) for i, a in enumerate(logits) for b in logits[:i]]
    assert all(different)


def test_codes_follow_the_forced_text_and_codes() -> None:
    """The depth transformer goes on from them; what is overwritten it does not see."""
    lm = load("lm/moshi")
    codes = random_codes(lm, 8, 1)[0]

    def said(**given: object) -> list[int]:
        generator = Generator(lm, text=GREEDY, audio=GREEDY)
        return generator.step(codes, **given).written[0].tolist()  # type: ignore[arg-type]

    free = said()
    first = (free[1] + 1) % lm.config.card
    forced = said(audio=[first, *[-2] * 7])
    assert forced[1] == first
    assert forced[2:] != free[2:]
    assert said(overwrite=[first, *[-2] * 7]) == [free[0], first, *free[2:]]
    assert said(text=(free[0] + 1) % lm.config.text_card)[1:] != free[1:]
    assert said(overwrite=[-1] * 8) == [free[0], *[-1] * 8]


def test_only_slices_that_are_needed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load("lm/moshi")
    seen: list[int] = []
    step = lm.depformer.step

    def watched(k: int, *args: object) -> mx.array:
        seen.append(k)
        return step(k, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(lm.depformer, "step", watched)
    generator = Generator(lm, text=GREEDY, audio=GREEDY)
    codes = random_codes(lm, 8, 4)
    generator.step(codes[0], audio=[-2, -2, *range(6)])
    assert seen == [0, 1]
    generator.step(codes[1], audio=np.zeros(8, int))
    generator.step(codes[2], overwrite=[-1] * 8)
    assert seen == [0, 1]


def test_a_guard_of_codes_guards_nothing_where_none_are_generated() -> None:
    guarded = Sampling(temperature=0, repetition_penalty=1.2)
    generator = Generator(load("lm/moshi"), text=GREEDY, audio=guarded, generated=0)
    assert generator.step(np.zeros((1, generator.given), int)).written.shape == (1, 1)


def test_the_hook_stands_between_text_and_codes() -> None:
    """It is given what was drawn; what it returns is as if it had been forced."""
    lm = load("lm/moshi")
    seen: list[int] = []

    def hook(tokens: np.ndarray) -> np.ndarray:
        seen.append(int(tokens[0]))
        return (tokens + 1) % lm.config.text_card

    hooked, plain, forced = (Generator(lm, text=HOT, audio=HOT, seed=3) for _ in range(3))
    codes = random_codes(lm, 8, 5)
    first = plain.step(codes[0])
    step = hooked.step(codes[0], on_text=hook)
    assert seen == [first.written[0, 0]]
    assert step.written[0, 0] == (seen[0] + 1) % lm.config.text_card
    as_forced = forced.step(codes[0], text=int(step.written[0, 0]))
    np.testing.assert_array_equal(step.written, as_forced.written)
    hooked.step(codes[1], text=9, on_text=hook)
    assert seen[1] == 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": 10_000}, r"text must be from -2 to \d+, is 10000"),
        ({"text": -3}, "text must be from -2 .* is -3"),
        ({"audio": 10**7}, "audio must be from -2 .* is 10000000"),
        ({"audio": [1, 2]}, r"audio must be \[1, 8\] or \[8\], are \(2,\)"),
        ({"overwrite": np.nan}, "overwrite must be from -2 .* is nan"),
        ({"null_mask": [True]}, "null_mask is for guidance"),
        ({"on_text": lambda tokens: tokens - 9000}, "on_text's tokens must be from -1"),
    ],
)
def test_what_is_no_token_is_refused(given: dict[str, object], message: str) -> None:
    generator = Generator(load("lm/moshi"), text=GREEDY, audio=GREEDY)
    with pytest.raises(ValueError, match=message):
        generator.step(np.zeros((1, 8), int), **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"codes must be from -1 .* is -2"):
        generator.step(np.full((1, 8), -2))


# ------------------------------------------------------------- guidance and conditions


def test_conditions_have_a_mask_per_position() -> None:
    """Voices in some of five slots, of different lengths in a batch: the reference's numbers."""
    lm, found = load("tts/ahead"), expected("tts/ahead")
    names = read_json(FIXTURES / "tts" / "ahead" / "runs.json")["forward"]
    values = []
    for b in (0, 1):
        voices = mx.array(found[f"forward.speaker_wavs.{b}"])
        mask = mx.array(found[f"forward.speaker_mask.{b}"])
        values.append(
            {"speaker_wavs": Masked(voices, mask)} | {k: names[k][b] for k in ("control", "cfg")}
        )
    conditions = lm.condition_provider(values)
    assert conditions.sum is not None
    assert conditions.cross is not None
    for which, ours in (("sum", conditions.sum), ("cross", conditions.cross)):
        np.testing.assert_allclose(ours, found[f"forward.condition_{which}"], atol=1e-5)
    logits = lm.forward(mx.array(found["forward.codes"]), conditions).text_logits
    there = found["forward.text_mask"][..., None]
    difference = np.abs(np.where(there, np.array(logits) - found["forward.text_logits"], 0))
    assert difference.max() <= 1e-3


def test_shorter_conditions_are_filled_with_absent_positions() -> None:
    lm, found = load("tts/ahead"), expected("tts/ahead")
    voices = mx.array(found["forward.speaker_wavs.0"])
    mask = mx.array(found["forward.speaker_mask.0"])
    assert not mask[4:].any().item()
    short = lm.condition_provider([{"speaker_wavs": voices[:4]}, {"speaker_wavs": voices}])
    whole = lm.condition_provider([{"speaker_wavs": Masked(voices, mask)}] * 2)
    assert short.cross is not None
    assert whole.cross is not None
    np.testing.assert_allclose(short.cross[0], whole.cross[0], atol=1e-6)


@pytest.mark.parametrize("name", ["cfg", "text"])
def test_guidance(name: str) -> None:
    """Text to speech after a spoken prefix, steered as the reference's program steers it.

    What both halves read, what is drawn and the raw logits are the reference's.
    """
    lm, found = load("tts/prefix"), expected("tts/prefix")
    runs = read_json(FIXTURES / "tts" / "prefix" / "runs.json")["runs"]
    run = next(run for run in runs if run["name"] == name)
    reads, logged = found[f"{name}.inputs"], found[f"{name}.logged"][0]
    prefix = found[f"{name}.prefix.0"][1:]
    streams, length = prefix.shape
    late = np.array(lm.config.delays[1:]) + run["delay_steps"]
    delays = np.array(lm.config.delays)
    guidance = Guidance(run["cfg_coef"], text=not run["cfg_is_no_text"])
    generator = Generator(lm, text=GREEDY, audio=GREEDY, generated=streams, guidance=guidance)
    drawn: list[int] = []

    def machine(tokens: np.ndarray) -> int:
        drawn.append(int(tokens[0]))
        return int(logged[len(drawn) - 1, 1])

    for s in range(run["steps"]):
        overwrite = np.where(s < late, -1, -2)
        for k, frame in enumerate(s - late):
            if 0 <= frame < length:
                overwrite[k] = prefix[k, frame]
        silent = (delays < s) & (s <= delays + length + run["delay_steps"])
        step = generator.step(
            np.zeros((1, 0), int), on_text=machine, overwrite=overwrite, null_mask=silent
        )
        if f"{name}.text_logits" in found:
            np.testing.assert_allclose(
                step.text_logits, found[f"{name}.text_logits"][:, s], atol=1e-3
            )
        if s + 1 < run["steps"]:
            there = s + 1 > delays  # else the next step reads an initial token
            np.testing.assert_array_equal(step.written[0][there], reads[0, there, s + 1])
    assert drawn[length:] == logged[length:, 0].tolist()


def test_guidance_of_one_is_none() -> None:
    lm = load("tts/prefix")
    plain = Generator(lm, text=GREEDY, audio=GREEDY)
    guided = Generator(lm, text=GREEDY, audio=GREEDY, guidance=Guidance(1.0))
    for _ in range(6):
        nothing = np.zeros((1, 0), int)
        np.testing.assert_array_equal(plain.step(nothing).written, guided.step(nothing).written)


# ------------------------------------------------------------------------------- prefill


def personaplex(case: str) -> tuple[Lm, dict[str, np.ndarray], np.ndarray]:
    """A model, the reference's numbers, and the frames of the prompt [1, 17, N]."""
    found = expected(f"personaplex/{case}")
    silence, sine = found["silence"], found["sine"]
    quiet = int(found["silence_frames"][0])
    phases = [
        (np.full(found["voice.codes"].shape[2], 3), found["voice.codes"]),
        (np.full(quiet, 3), silence),
        (found["text.tokens"], silence),
        (np.full(quiet, 3), silence),
    ]
    text = np.concatenate([words for words, _ in phases])
    agent = np.concatenate(
        [np.broadcast_to(codes, (1, 8, len(words))) for words, codes in phases], axis=2
    )
    user = np.broadcast_to(sine, agent.shape)
    frames = np.concatenate([np.broadcast_to(text, (1, 1, len(text))), agent, user], axis=1)
    return load(f"personaplex/{case}"), found, frames


@pytest.mark.parametrize("case", ["personaplex", "personaplex-window"])
def test_personaplex(case: str) -> None:
    """The whole prompt at once, then the conversation: the reference's logits and tokens."""
    lm, found, frames = personaplex(case)
    steps = int(found["prompt_steps"][0])
    generator = Generator(lm, text=GREEDY, audio=GREEDY, generated=8)
    logits = generator.prefill(frames)
    assert generator.steps == steps == frames.shape[2] - 1
    assert np.abs(np.array(logits) - found["text_logits"][:, :steps]).max() <= 1e-3
    # The reference hears every frame one step later: first the prompt's last one.
    heard = np.concatenate([found["sine"], found["user.codes"]], axis=2)
    for t in range(found["tokens"].shape[2]):
        step = generator.step(heard[:, :, t])
        theirs = found["text_logits"][:, steps + t]
        assert np.abs(np.array(step.text_logits) - theirs).max() <= 1e-3
        assert step.frame is not None
        np.testing.assert_array_equal(step.frame[0], found["tokens"][0, :9, t])


def test_slices_that_nobody_runs_are_not_loaded() -> None:
    """Of a model that could generate both sides; what it says is the same."""
    folder = FIXTURES / "personaplex" / "personaplex"
    config = read_config(read_json(folder / "config.json")).lm
    path = folder / "model.safetensors"
    whole, part = (load_lm(path, config, dtype=mx.float32, generated=n) for n in (None, 8))
    assert (whole.config.dep_q, part.config.dep_q) == (16, 8)
    assert len(part.depformer.transformers) == len(part.depformer.linear_out) == 8
    sizes = [sum(a.nbytes for a in named_parameters(lm.depformer).values()) for lm in (whole, part)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.15)  # the text's table is in both
    generators = [Generator(lm, text=HOT, audio=HOT, generated=8) for lm in (whole, part)]
    for codes in np.random.default_rng(0).integers(0, config.card, (20, 1, 8)):
        a, b = (generator.step(codes) for generator in generators)
        np.testing.assert_array_equal(a.written, b.written)


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("case", ["personaplex", "personaplex-window"])
def test_prefill_equals_stepping(case: str, kv_bits: int | None) -> None:
    """Keys and values, and the conversation after it, with every token of the prompt forced."""
    lm, found, frames = personaplex(case)
    at_once, stepped = (
        Generator(lm, text=HOT, audio=HOT, generated=8, kv_bits=kv_bits) for _ in range(2)
    )
    prompt = at_once.prefill(frames)
    delays = np.array(lm.config.delays[1:9])
    for t in range(frames.shape[2] - 1):
        audio = [frames[0, 1 + k, t + 1 - d] for k, d in enumerate(delays)]
        step = stepped.step(frames[:, 9:, t], text=frames[0, 0, t + 1], audio=audio)
        np.testing.assert_allclose(
            step.text_logits, prompt[:, t], atol=1e-5 if not kv_bits else 0.5
        )
    if kv_bits is None:
        for a, b in zip(at_once._cache, stepped._cache, strict=True):
            context = lm.config.transformer.context or 0
            for one, other in zip(a.arrays(), b.arrays(), strict=True):
                held = min(frames.shape[2] - 1, context)
                np.testing.assert_allclose(one[..., :held, :], other[..., :held, :], atol=1e-5)
        last = [frames[0, 1 + k, -1] if d else -2 for k, d in enumerate(delays)]
        for t, codes in enumerate(found["user.codes"].transpose(2, 0, 1)):
            free = at_once.step(codes)
            same = stepped.step(codes, audio=last if t == 0 else None)
            np.testing.assert_array_equal(free.written, same.written)


def test_prefill_is_checked() -> None:
    lm, _, frames = personaplex("personaplex")
    generator = Generator(lm, text=GREEDY, audio=GREEDY, generated=8)
    with pytest.raises(ValueError, match=r"frames must be \[1, 17, frames\]"):
        generator.prefill(frames[:, :9])
    with pytest.raises(ValueError, match="frames' codes must be from -1"):
        generator.prefill(np.where(frames == frames[0, 3, 2], 10**6, frames))
    assert generator.prefill(frames[:, :, :1]).shape[1] == 0
    assert generator.steps == 0


# ------------------------------------------------------------------------------- states


@pytest.fixture(scope="module")
def nano() -> Moshi:
    return moshi_mlx.load("nano", verb="talk", codec="mlx")


def sound(frames: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.3, 0.3, (frames, 1920)).astype(np.float32)


GUARDED = Sampling(temperature=0.9, repetition_penalty=1.3)

CONTINUE = """
import json, sys
import numpy as np
import moshi_mlx
from tests.device import set_device
from tests.moshi_mlx.test_generate import GUARDED, sound
set_device()
start, paths = int(sys.argv[1]), sys.argv[2:]
moshi = moshi_mlx.load("nano", verb="talk", codec="mlx")
for path, kv_bits in zip(paths, (None, 8)):
    with moshi.session(state=path, text=GUARDED, audio=GUARDED, kv_bits=kv_bits) as session:
        frames = [session.step(pcm) for pcm in sound(start + 20)[start:]]
    print(json.dumps([[f.index, f.text, f.partial, f.tokens.tolist(), f.pcm.tobytes().hex()]
                      for f in frames]))
"""


@pytest.mark.gpu
def test_sessions_go_on_in_another_process(nano: Moshi, tmp_path: Path) -> None:
    """To the bit: the guard's memory, the seed, the codec, the word in progress."""
    start = 25
    frames: list[Frame] = []
    paths = [tmp_path / name for name in ("plain.safetensors", "packed.safetensors")]
    for path, kv_bits in zip(paths, (None, 8), strict=True):
        with nano.session(seed=4, text=GUARDED, audio=GUARDED, kv_bits=kv_bits) as session:
            for pcm in sound(start):
                session.step(pcm)
            state = session.save()
            frames += [session.step(pcm) for pcm in sound(start + 20)[start:]]
        state.save(path)  # after the session went on: a state does not change
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, str(start), *map(str, paths)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    theirs = [frame for line in done.stdout.splitlines() for frame in json.loads(line)]
    for frame, (index, text, partial, tokens, pcm) in zip(frames, theirs, strict=True):
        assert (frame.index, frame.text, frame.partial) == (index, text, partial)
        assert frame.tokens is not None
        assert frame.tokens.tolist() == tokens
        assert frame.pcm.tobytes().hex() == pcm


def test_two_futures_of_one_state(nano: Moshi) -> None:
    """Both go on from it, in turn and past its ring's growth, as if they were alone."""
    with nano.session(seed=1) as session:
        for pcm in sound(5):
            session.step(pcm)
        state = session.save()
    alone = nano.session(state=state)
    expected_pcm = [alone.step(pcm).pcm for pcm in sound(12)]
    one, two = nano.session(state=state), nano.session(state=state)
    for pcm, wanted in zip(sound(12), expected_pcm, strict=True):
        np.testing.assert_array_equal(one.step(pcm).pcm, wanted)
        two.step(-pcm)


def test_states_of_others_are_refused(nano: Moshi, tmp_path: Path) -> None:
    with nano.session() as session:
        state = session.save()
    with pytest.raises(SessionError, match="another model, number of conversations or --kv-bits"):
        nano.session(state=state, kv_bits=4)
    other = Generator(load("lm/moshi"), text=GREEDY, audio=GREEDY)
    with pytest.raises(SessionError, match="another model"):
        other.restore(state.part("generator"))
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        nano.session(state=tmp_path / "none.safetensors")
    with pytest.raises(SessionError, match="not a saved conversation"):
        load_state(FIXTURES / "lm" / "moshi" / "model.safetensors")


def test_a_batch_goes_on(tmp_path: Path) -> None:
    """Two conversations of a generator, delayed codes of a prefill pending, through a file."""
    lm, found, frames = personaplex("personaplex")
    generator = Generator(lm, text=HOT, audio=HOT, generated=8, batch=2)
    generator.prefill(np.concatenate([frames, frames]))
    path = tmp_path / "state.safetensors"
    generator.save().save(path)
    other = Generator(lm, text=HOT, audio=HOT, generated=8, batch=2)
    other.restore(load_state(path))
    for codes in np.concatenate([found["user.codes"]] * 2).transpose(2, 0, 1)[:6]:
        np.testing.assert_array_equal(generator.step(codes).written, other.step(codes).written)


# ------------------------------------------------------------------ what is compiled once


def test_functions_are_traced_once_per_model_and_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """They outlive resets and serve new conversations; other weights are noticed."""
    lm = load("lm/moshi")
    traced: list[int] = []
    finish = TransformerLayer.finish

    def watched(layer: TransformerLayer, *args: object) -> mx.array:
        traced.append(1)
        return finish(layer, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformerLayer, "finish", watched)

    def make(**given: object) -> Generator:
        return Generator(lm, text=HOT, audio=HOT, compiled=True, **given)  # type: ignore[arg-type]

    layers = lm.config.transformer.num_layers
    depth = lm.config.depth
    assert depth is not None
    once = layers + depth.num_slices * depth.transformers[0].num_layers
    codes = random_codes(lm, 8, 4)
    generator = make()
    for each in codes:
        generator.step(each)
    assert len(traced) == once
    generator.reset()
    first = generator.step(codes[0])
    make(seed=7).step(codes[0])
    assert len(traced) == once
    weight = lm.text_linear.weight
    lm.text_linear.weight = weight * 2
    changed = make().step(codes[0])
    assert len(traced) == 2 * once
    assert mx.allclose(changed.text_logits, 2 * first.text_logits, atol=1e-4)


def test_steps_do_not_keep_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    lm = load("lm/small-norms")
    generator = Generator(lm, text=GREEDY, audio=GREEDY)
    generator.step(np.zeros((1, 2), int))
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(lm)
        del lm, generator
        assert gone() is None
    finally:
        gc.enable()


def test_conformance_of_a_reset() -> None:
    """After a reset all is as at first."""
    lm = conformance.load_case(FIXTURES / "lm" / "gqa-rope-concat")[0]
    generator = Generator(lm, text=HOT, audio=HOT, seed=2)
    codes = random_codes(lm, generator.given, 30)
    first = [generator.step(c).written for c in codes]
    generator.reset()
    again = [generator.step(c).written for c in codes]
    np.testing.assert_array_equal(first, again)


def test_on_a_gpu_long_rings_are_attended_before_the_first_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once at each length from which on another kernel runs; the conversation is the same."""
    lm = load("lm/moshi")
    met: list[int] = []

    def attend(q: mx.array, held: tuple[mx.array, mx.array]) -> mx.array:
        met.append(held[0].shape[-2])
        return q

    codes = np.zeros((1, lm.config.n_q - lm.config.dep_q), np.int32)
    plain = Generator(lm, text=HOT, audio=HOT).step(codes)
    monkeypatch.setattr(generate, "on_gpu", lambda: True)
    monkeypatch.setattr(generate, "attend", attend)
    monkeypatch.setattr(generate, "_KERNEL_KEYS", (3, 5))
    prepared = Generator(lm, text=HOT, audio=HOT, compiled=False).step(codes)
    assert sorted(met) == sorted({3, 5, lm.config.transformer.context or 0})
    np.testing.assert_array_equal(plain.written, prepared.written)
