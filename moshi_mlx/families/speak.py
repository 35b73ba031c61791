"""Text-to-speech models: a script and voices in, sound and the times of its words out.

Joins the parts: a script becomes entries, a machine gives them to the model, the run its codes, and
the codec sound. Knows how voices and guidance reach these models.
"""

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..arguments import real, truth, whole
from ..arrays import Codes, Pcm
from ..checkpoint import Checkpoint
from ..codec import Codec, CodecName
from ..conditions import Condition, Masked
from ..config import ModelConfig, TtsConfig
from ..errors import ArgumentError, ConfigError, shown
from ..generate import Generator
from ..guidance import Guidance
from ..lm import Lm
from ..sampling import Sampling
from ..script_formats import turns_of
from ..speech import Speech
from ..speech_machine import Entry, SpeechMachine
from ..speech_run import SpeechRun
from ..speech_script import ScriptReader
from ..speech_sound import Decode, SpeechSound, SpokenChunk
from ..speech_stream import Pieces, SpeechStream, Wants
from ..threads import mlx_work
from ..voices import Voice, voice_from_sound
from .model import Model
from .speaker_voices import LATENTS, SpeakerVoice, SpeakerVoices
from .unused_codebooks import without_codebooks

OneVoice = SpeakerVoice | Voice | str | Path
Script = str | Sequence[str] | Pieces
"""A text, turns of two speakers, or pieces of a text that arrive."""

_CFG, _CONTROL, _CONTROLLED = "cfg", "control", "ok"
_USUAL_CFG = 2.0
_DROPPED = 2
"""Frames at a recording's end that are not given to a model: they are of its edge."""
_USUAL_VOICE = 125
"""Frames of a published voice: 10 s."""
_TOP_K_TEXT, _TOP_K = 25, 250
_SPEEDS = -2.0, 2.0
_MOST_AT_ONCE = 64


@dataclass(frozen=True)
class SpeakSettings:
    """How a script is spoken, in the terms of the models' makers, whose values these are.

    max_padding: steps without a word after which the next one begins by force.
    initial_padding: steps before the first word.
    final_padding: steps after the last one.
    padding_between: steps after each word, beyond those of its pieces; 0: none at all.
    padding_bonus: added to the logit of padding: more speaks slower; −2 to 2 are useful.
    codebooks: to generate, of all that the model has; fewer are faster. None: all.
    guided_text: with two passes, guide the text too.
    guided_prefix: with two passes, let the second one hear the voice too.
    without_cfg: leave out the condition by which a model of one pass is told the cfg.
    both_slots: give a single voice to the other speaker too.
    exact: know pauses in the makers' one spelling, and nothing else.
    paragraph_pause: seconds of pause at an empty line of a text; 0: none.
    """

    max_padding: int = 8
    initial_padding: int = 2
    final_padding: int = 4
    padding_between: int = 1
    padding_bonus: float = 0.0
    codebooks: int | None = None
    guided_text: bool = False
    guided_prefix: bool = False
    without_cfg: bool = False
    both_slots: bool = False
    exact: bool = False
    paragraph_pause: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_padding", "initial_padding", "final_padding", "padding_between"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0, 10_000))
        real("padding_bonus", self.padding_bonus, -100, 100)
        real("paragraph_pause", self.paragraph_pause, 0, 60)
        for name in ("guided_text", "guided_prefix", "without_cfg", "both_slots", "exact"):
            truth(name, getattr(self, name))


@dataclass(frozen=True)
class _Plan:
    """All that speaking takes beside scripts, of each item of a batch."""

    settings: SpeakSettings
    conditions: list[Mapping[str, Condition]] | None
    prefixes: list[Codes | None]
    guidance: Guidance | None


class Tts(Model):
    """A loaded text-to-speech model; made by `load`."""

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, codec: CodecName = "auto", dtype: mx.Dtype | None = None
    ) -> "Tts":
        _tts_of(checkpoint.config, checkpoint.files.config or checkpoint.name)
        return super().from_checkpoint(checkpoint, codec=codec, dtype=dtype)

    @classmethod
    def codebooks(cls, config: ModelConfig) -> int:
        tts = config.tts
        return config.lm.dep_q // (2 if tts is not None and tts.multistream else 1)

    @property
    def tts(self) -> TtsConfig:
        """What its config.json says of speech."""
        return _tts_of(self.config, self.name)

    @property
    def delay_steps(self) -> int:
        """Frames from a text token to its sound."""
        return self.tts.delay_steps(self.frame_rate)

    @property
    def text_sampling(self) -> Sampling:
        return Sampling(self.config.sampling.temp_text, top_k=_TOP_K_TEXT)

    @property
    def audio_sampling(self) -> Sampling:
        return Sampling(self.config.sampling.temp, top_k=_TOP_K)

    # ------------------------------------------------------------------------------ voices

    def voices(self, *, folder: Path | None = None) -> list[str]:
        """Names of the voices that are beside the model, and in `folder`."""
        return self._voices.names(folder)

    def voice(
        self, name: OneVoice, *, folder: Path | None = None, offline: bool = False
    ) -> SpeakerVoice | Voice:
        """A voice by its name or file.

        Args:
            name: one of `voices`, a file, "hf://org/repo/path", or the name of a published one,
                which is fetched if it is not here.
            folder: one with further voices; the model's own come first.
            offline: look only at what is here.

        Raises:
            ArgumentError: there is none of that name; names those that come near.
            CheckpointError: the file is missing, damaged, no voice, or another model's.
            HubError: it cannot be fetched.
        """
        if isinstance(name, SpeakerVoice | Voice):
            return name
        find = self._voices.find
        return self.worker.call(lambda: find(name, self.codec, folder=folder, offline=offline))

    def voice_from_sound(
        self, pcm: npt.ArrayLike, *, name: str, accept_faults: bool = False
    ) -> Voice:
        """The voice of a recording of one speaker, who must agree to it: see `Voice.save`.

        Args:
            pcm: sound [samples] at `sample_rate`: floats in −1 … 1, int16 or int32; 1 to 60 s of
                speech.
            name: of the voice.
            accept_faults: also take a recording that clips or is noisy.

        Raises:
            ArgumentError: the model takes published voices only, or the recording is too short, too
                long, clips, or is noisy.
        """
        if self._speaker_dim is not None:
            raise ArgumentError(
                f"{self.name} takes voices that its makers published: what makes one of a "
                "recording is not public; tts-0.75b takes recordings"
            )
        n_q = self.lm.config.n_q
        return self.worker.call(
            lambda: voice_from_sound(
                self.codec, pcm, name=name, accept_faults=accept_faults, codebooks=n_q
            )
        )

    @cached_property
    def _voices(self) -> SpeakerVoices:
        folder = self.checkpoint.folder
        return SpeakerVoices(self.name, folder, self.config.model_id, self._speaker_dim)

    @cached_property
    def _voice_frames(self) -> int:
        """Length of a voice, which a slot without one has too."""
        for name in self.voices():
            voice = self.voice(name)
            if isinstance(voice, SpeakerVoice):
                return len(voice.latents)
        return _USUAL_VOICE

    @property
    def _speaker_dim(self) -> int | None:
        """Channels of a voice that is cross-attended; None: voices are heard as codes."""
        conditioner = self.lm.config.conditioners.get(LATENTS)
        return None if conditioner is None else conditioner.dim

    # ---------------------------------------------------------------------------- speaking

    def speak(
        self,
        script: Script,
        *,
        voice: OneVoice | Sequence[OneVoice] | None = None,
        cfg: float | None = None,
        speed: float = 0.0,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        settings: SpeakSettings | None = None,
        voices_folder: Path | None = None,
        kv_bits: int | None = None,
        offline: bool = False,
    ) -> SpeechStream:
        """Speaks a script of any length: a stream of sound and of words with their times.

        Args:
            script: a text, in which lines that begin with "A:" and "B:" are two speakers, or a
                script in JSON; a list of turns, of the two speakers one after the other, spoken
                exactly as the models' makers do; or an iterator, also an asynchronous one, of
                pieces of a text, cut anywhere, which is spoken as it arrives.
            voice: as `voice` takes it, or two of these, the second one for the other speaker; None:
                the model's choice.
            cfg: how closely to keep to the voice, 1 is not at all; the makers' choice if None. Some
                models know a few values only; for others, all but 1 is twice the work.
            speed: from −2, slower, to 2, faster.
            seed: the same seed and script give the same speech.
            text: how text is drawn; the model's own way if None.
            audio: how codes are drawn; the model's own way if None.
            settings: all else.
            voices_folder: where voices are looked for, beside the model's own.
            kv_bits: quantize keys and values to 8 or 4 bits; None: as they are computed.
            offline: fetch no voice.

        Raises:
            ArgumentError: an argument has an impossible value, a pause is none, or there is no such
                voice.
            CheckpointError: a voice's file is missing, damaged, or another model's.
            HubError: a voice cannot be fetched.
        """
        entries, pieces = self._script(script)
        plan = self._plan([voice], cfg, speed, settings, voices_folder, offline)
        reader = self._reader(plan.settings)
        known = None if entries is None else [reader.turns(entries)]
        if isinstance(script, str) and entries is None:
            known = [reader.add(script) + reader.finish()]
        drawing = {"seed": seed, "text": text, "audio": audio, "kv_bits": kv_bits}
        generator = self.worker.call(lambda: self._run_generator(plan, 1, drawing))

        def begin() -> _Speaking:
            machines = [self._machine(plan.settings)]
            for machine, there in zip(machines, known or [], strict=False):
                machine.add(there)
                machine.complete()
            return _Speaking(self, generator, plan, machines, reader)

        return SpeechStream(self.worker, begin, pieces, self.sample_rate)

    def speak_batch(
        self,
        scripts: Sequence[str | Sequence[str]],
        *,
        voices: Sequence[OneVoice | Sequence[OneVoice] | None] | None = None,
        cfg: float | None = None,
        speed: float = 0.0,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        settings: SpeakSettings | None = None,
        voices_folder: Path | None = None,
        kv_bits: int | None = None,
        offline: bool = False,
    ) -> list[Speech]:
        """Speaks several scripts side by side, each as `speak` does; at most 64.

        Args:
            scripts: each a text, or a list of turns.
            voices: of each script, as `speak` has them; None: the model's choice.

        The other arguments, and the errors, are those of `speak`.
        """
        count = whole("the number of scripts", len(scripts), 1, _MOST_AT_ONCE)
        if voices is not None and len(voices) != count:
            raise ArgumentError(f"voices must be {count}, one per script, are {len(voices)}")
        plan = self._plan(voices or [None] * count, cfg, speed, settings, voices_folder, offline)
        machines = []
        for script in scripts:
            turns, pieces = self._script(script)
            if pieces is not None:
                raise ArgumentError("a script of a batch must be there as a whole")
            machine, reader = self._machine(plan.settings), self._reader(plan.settings)
            if turns is not None:
                machine.add(reader.turns(turns))
            elif isinstance(script, str):
                machine.add(reader.add(script) + reader.finish())
            machine.complete()
            machines.append(machine)
        drawing = {"seed": seed, "text": text, "audio": audio, "kv_bits": kv_bits}
        generator = self.worker.call(lambda: self._run_generator(plan, count, drawing))
        speaking = self.worker.call(lambda: _Speaking(self, generator, plan, machines, None))
        chunks: list[list[SpokenChunk]] = [[] for _ in machines]
        while (found := self.worker.call(speaking.next_of_all)) is not None:
            for row, chunk in enumerate(found):
                chunks[row] += [] if chunk is None else [chunk]
        return [_joined(each, self.sample_rate) for each in chunks]

    def _script(self, script: Script) -> tuple[list[str] | None, Pieces | None]:
        """A script's turns, or the pieces in which it arrives; neither for a text of lines."""
        if isinstance(script, str):
            return turns_of(script), None
        if isinstance(script, list | tuple):
            return list(script), None
        if isinstance(script, Iterable | AsyncIterable) and not isinstance(script, bytes | dict):
            return None, script
        raise ArgumentError(
            f"script must be text, a list of turns, or an iterator of text, is {shown(script)}"
        )

    def _reader(self, settings: SpeakSettings) -> ScriptReader:
        return ScriptReader(
            self.text.encode,
            speaker_tokens=self._speaker_dim is not None,
            padding_between=settings.padding_between,
            frame_rate=self.frame_rate,
            exact=settings.exact,
            paragraph_pause=settings.paragraph_pause,
        )

    def entries(
        self, script: str | Sequence[str], settings: SpeakSettings | None = None
    ) -> list[Entry]:
        """Words and pauses of a script, as the model gets them. Raises ArgumentError."""
        turns, _ = self._script(script)
        reader = self._reader(settings or SpeakSettings())
        if turns is not None:
            return reader.turns(turns)
        return reader.add(str(script)) + reader.finish()

    def _machine(self, settings: SpeakSettings) -> SpeechMachine:
        return SpeechMachine(
            text_card=self.lm.config.text_card,
            ahead=self.tts.second_stream_ahead,
            max_padding=settings.max_padding,
            initial_padding=settings.initial_padding,
        )

    def _plan(
        self,
        voices: Sequence[OneVoice | Sequence[OneVoice] | None],
        cfg: float | None,
        speed: float,
        settings: SpeakSettings | None,
        folder: Path | None,
        offline: bool,
    ) -> _Plan:
        if not isinstance(settings, SpeakSettings | None):
            raise ArgumentError(f"settings must be a SpeakSettings, is {shown(settings)}")
        settings = settings or SpeakSettings()
        faster = real("speed", speed, *_SPEEDS)
        settings = replace(settings, padding_bonus=settings.padding_bonus - faster)
        config = self.lm.config
        if settings.codebooks is not None:
            whole("codebooks", settings.codebooks, 1, config.dep_q)
            if self.tts.multistream and settings.codebooks % 2:
                raise ArgumentError(
                    f"codebooks must be even for two speakers, is {settings.codebooks}"
                )
        given = [self._voices_of(voice, folder, offline) for voice in voices]
        prefixes: list[Codes | None] = [None] * len(given)
        if self._speaker_dim is None:
            prefixes = [self._prefix(voices) for voices in given]
        guidance = None
        wanted = None if cfg is None else real("cfg", cfg, -100, 100)
        values: list[Mapping[str, Condition]] | None = None
        if _CFG not in config.conditioners:
            wanted = _USUAL_CFG if wanted is None else wanted
            if wanted != 1:
                guidance = Guidance(wanted, text=settings.guided_text)
                if not config.conditioners and settings.guided_text and settings.guided_prefix:
                    raise ArgumentError(
                        "guided_text and guided_prefix must not both be set for this model: its "
                        "second pass would be the first one"
                    )
        if config.conditioners:
            told = _CFG in config.conditioners and not settings.without_cfg
            distilled = self._cfg_condition(wanted) if told else None
            values = self._conditions(given, distilled, settings)
        return _Plan(settings, values, prefixes, guidance)

    def _cfg_condition(self, wanted: float | None) -> str:
        known = self.lm.config.conditioners[_CFG].possible_values or ()
        name = f"{_USUAL_CFG if wanted is None else wanted:.1f}"
        if name not in known or (wanted is not None and float(name) != wanted):
            raise ArgumentError(
                f"cfg must be one of {', '.join(known)} for this model, is {wanted:g}"
            )
        return name

    def _voices_of(
        self, voice: OneVoice | Sequence[OneVoice] | None, folder: Path | None, offline: bool
    ) -> list[SpeakerVoice | Voice]:
        if voice is None:
            return []
        names: list[OneVoice]
        if isinstance(voice, SpeakerVoice | Voice | str | Path):
            names = [voice]
        elif isinstance(voice, Sequence):
            names = list(voice)
        else:
            raise ArgumentError(f"voice must be a name, a file or a voice, is {shown(voice)}")
        most = self.tts.max_speakers if self._speaker_dim is not None else 1
        if len(names) > most:
            raise ArgumentError(
                f"{self.name} takes {most} voice{'s'[: most > 1]} at most, not {len(names)}"
            )
        found = [self.voice(name, folder=folder, offline=offline) for name in names]
        for each in found:
            kind = SpeakerVoice if self._speaker_dim is not None else Voice
            if not isinstance(each, kind):
                raise ArgumentError(f"voice {each.name} is for models of another kind")
        return found

    def _prefix(self, voices: Sequence[SpeakerVoice | Voice]) -> Codes | None:
        """What is heard of a voice before the script begins."""
        if not voices:
            return None
        (voice,) = voices
        assert isinstance(voice, Voice)
        n_q, codes = self.lm.config.n_q, voice.codes
        if codes is None:
            raise ArgumentError(f"voice {voice.name} is for models of another kind")
        if len(codes) < n_q:
            raise ArgumentError(
                f"voice {voice.name} has {len(codes)} codebooks, this model needs {n_q}: make it "
                "again of the recording, for this model"
            )
        if codes.shape[1] <= _DROPPED:
            raise ArgumentError(f"voice {voice.name} is too short: {codes.shape[1]} frames")
        if codes[:n_q].max() >= self.lm.config.card:
            raise ArgumentError(f"voice {voice.name} is for models of another codec")
        return codes[:n_q, :-_DROPPED]

    def _conditions(
        self,
        given: Sequence[Sequence[SpeakerVoice | Voice]],
        cfg: str | None,
        settings: SpeakSettings,
    ) -> list[Mapping[str, Condition]]:
        """Of each item; what it has no voice for is absent."""
        conditioners = self.lm.config.conditioners
        fixed: dict[str, Condition] = {}
        if _CONTROL in conditioners:
            fixed[_CONTROL] = _CONTROLLED
        if cfg is not None:
            fixed[_CFG] = cfg
        if LATENTS not in conditioners:
            return [fixed for _ in given]
        slots = self.tts.max_speakers
        rows = []
        for voices in given:
            latents = [voice.latents for voice in voices if isinstance(voice, SpeakerVoice)]
            if settings.both_slots and len(latents) == 1:
                latents *= 2
            rows.append(latents)
        lengths = sorted({len(each) for row in rows for each in row})
        if len(lengths) > 1:
            raise ArgumentError(f"all voices must have the same length: these have {lengths}")
        length = lengths[0] if lengths else self._voice_frames
        dim = conditioners[LATENTS].dim
        spoken = [_slots(row, slots, length, dim) for row in rows]
        return [fixed | {LATENTS: voices} for voices in spoken]

    def _run_generator(self, plan: _Plan, batch: int, drawing: Mapping[str, Any]) -> Generator:
        """Fresh, for scripts of that plan; on the model's thread."""
        lm, config, wanted = self.lm, self.lm.config, plan.settings.codebooks
        generated = config.dep_q if wanted is None else wanted
        if self.tts.multistream and generated < config.dep_q:
            lm, generated = self._with_codebooks(generated // 2), config.dep_q
        text, audio = drawing["text"], drawing["audio"]
        return Generator(
            lm,
            batch=batch,
            text=self.text_sampling if text is None else text,
            audio=self.audio_sampling if audio is None else audio,
            seed=drawing["seed"],
            conditions=plan.conditions,
            generated=generated,
            guidance=plan.guidance,
            kv_bits=drawing["kv_bits"],
            padding_bonus=plan.settings.padding_bonus,
        )

    def _with_codebooks(self, count: int) -> Lm:
        """The model with the first `count` codebooks of each speaker."""
        half = self.lm.config.dep_q // 2
        unused = [*range(count, half), *range(half + count, 2 * half)]
        return without_codebooks(self.lm, unused)

    def _sound(self, machine: SpeechMachine, plan: _Plan, prefix: Codes | None) -> SpeechSound:
        """On the model's thread."""
        dep_q = self.lm.config.dep_q
        wanted = dep_q if plan.settings.codebooks is None else plan.settings.codebooks
        codebooks = [slice(0, wanted)]
        if self.tts.multistream:
            half = dep_q // 2
            codebooks = [slice(0, wanted // 2), slice(half, half + wanted // 2)]
        count = codebooks[0].stop
        codec: Codec[Any] = self.codec
        decode: Decode = codec.decode_step
        begin: Callable[[], Any] = codec.init_state
        if count != codec.num_codebooks:
            mimi = self.mimi

            def decode_fewer(codes: Codes, state: Any) -> Pcm:
                pcm = mimi.decode_step(codes[None], state)
                mx.eval(pcm, *state.decoder.arrays())
                return np.array(pcm[0, 0])

            decode, begin = decode_fewer, mimi.init_state
        return SpeechSound(
            machine,
            decode,
            [begin() for _ in codebooks],
            codebooks,
            frame_rate=self.frame_rate,
            prefix=prefix,
            final_padding=plan.settings.final_padding,
        )


class _Speaking:
    """Scripts on their way, on the model's thread; `speech_stream.Speaking` for one of them."""

    def __init__(
        self,
        model: Tts,
        generator: Generator,
        plan: _Plan,
        machines: Sequence[SpeechMachine],
        reader: ScriptReader | None,
    ) -> None:
        self._machines, self._reader = machines, reader
        self._run = SpeechRun(
            generator,
            machines,
            delay_steps=model.delay_steps,
            final_padding=plan.settings.final_padding,
            prefixes=plan.prefixes,
            guided_prefix=plan.settings.guided_prefix,
        )
        self._sounds = [
            model._sound(machine, plan, prefix)
            for machine, prefix in zip(machines, plan.prefixes, strict=True)
        ]
        self._frames = [0] * len(machines)
        self._told = False

    def add(self, piece: str) -> None:
        assert self._reader is not None
        self._machines[0].add(self._reader.add(piece))

    def complete(self) -> None:
        assert self._reader is not None
        self._machines[0].add(self._reader.finish())
        self._machines[0].complete()

    def next(self) -> SpokenChunk | Wants:
        while True:
            if not self._run.done and not self._run.ready:
                return Wants.MORE
            found = self.next_of_all()
            if found is None:
                return Wants.NOTHING
            if found[0] is not None:
                return found[0]

    def next_of_all(self) -> list[SpokenChunk | None] | None:
        """What the next step makes of each script; None after the last one."""
        if self._run.done:
            return self._last()
        _, frame = self._run.step()
        found: list[SpokenChunk | None] = []
        for row, sound in enumerate(self._sounds):
            chunk = None if frame is None else sound.add(frame.codes[row], frame.step)
            self._frames[row] += chunk is not None
            found.append(chunk)
        return found

    def _last(self) -> list[SpokenChunk | None] | None:
        """Words that end with the sound."""
        if self._told:
            return None
        self._told = True
        pairs = zip(self._sounds, self._frames, strict=True)
        words = [sound.last_words(frames) for sound, frames in pairs]
        nothing = np.zeros(0, np.float32)
        return [SpokenChunk(nothing, each) if each else None for each in words]


FAMILY = Tts


def _tts_of(config: ModelConfig, where: str | Path) -> TtsConfig:
    """Raises ConfigError: the file does not say it."""
    if config.tts is None:
        raise ConfigError(f"{where}: field 'tts_config' is missing: a speech model needs it")
    return config.tts


@mlx_work
def _slots(voices: Sequence[mx.array], slots: int, length: int, dim: int) -> Masked:
    """Voices [length, dim] in the first of so many slots, the others masked."""
    empty = [mx.zeros((length, dim))] * (slots - len(voices))
    mask = np.arange(slots * length) < len(voices) * length
    filled = Masked(mx.concatenate([*voices, *empty]), mx.array(mask))
    mx.eval(filled.values, filled.mask)  # what is lazy belongs to this thread
    return filled


def _joined(chunks: Sequence[SpokenChunk], sample_rate: int) -> Speech:
    pcm = np.concatenate([np.zeros(0, np.float32), *(chunk.pcm for chunk in chunks)])
    return Speech(pcm, tuple(word for chunk in chunks for word in chunk.words), sample_rate)
