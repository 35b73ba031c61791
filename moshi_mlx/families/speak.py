"""Text-to-speech models: Kyutai's TTS, which speaks a text while it is still being written.

A model asks for words one by one; its sound is some frames behind. Some take a voice's file, some
go on from a recording.
"""

from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .. import catalog
from ..arguments import real, whole
from ..arrays import Codes, Pcm, Tokens
from ..checkpoint import Checkpoint
from ..codec import CodecName, MlxCodec
from ..conditions import Condition
from ..config import ModelConfig, TtsConfig
from ..errors import ArgumentError, ConfigError, VerbError, counted, shown
from ..generate import Generator
from ..guidance import Guidance
from ..sampling import Sampling
from ..speech import Speech
from ..voices import Voice, voice_from_sound
from .kinds import persona_models
from .model import Model
from .recorded_voices import RecordedVoices
from .speaker_voices import TENSOR, SpeakerVoice, SpeakerVoices, slots_of
from .speech_machine import SpeechMachine
from .speech_queue import SpeechQueue
from .speech_run import SpeechRun
from .speech_script import ScriptReader, entries_of, turns_of
from .speech_stream import Pieces, SpeechStream, Words

VoiceLike = str | Path | SpeakerVoice | Voice
Text = str | Sequence[str] | Iterable[str] | AsyncIterable[str]

_TOP_K_TEXT, _TOP_K, _TEMPERATURE = 25, 250, 0.6
_CFG = 2.0
_PREFIX_CUT = 2  # frames at the end of a recording that are not used
_PADDING = 3
_MOST_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Pacing:
    """How a text is spread over the steps, as the reference calls it.

    max_padding: steps that may pass before a word must begin.
    initial_padding: steps before the first word.
    final_padding: steps after the last.
    padding_between: steps that a word's last token has at least, if it is not 0.
    """

    max_padding: int = 8
    initial_padding: int = 2
    final_padding: int = 4
    padding_between: int = 1

    def __post_init__(self) -> None:
        for name in ("max_padding", "initial_padding", "final_padding", "padding_between"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0, 10_000))


class _Sound:
    """Frames of one text of a run → sound, the prefix's and what comes before it left out.

    Args:
        model: whose run it is.
        run: of one or several texts.
        row: of these.
    """

    def __init__(self, model: "Tts", run: SpeechRun, row: int = 0) -> None:
        self._row = row
        codec: Any = model.codec
        if run.fewer:  # which other codecs do not decode
            codec = MlxCodec(model.mimi)
        self._codec, self._run = codec, run
        self._sides = 2 if model.tts.multistream else 1
        self._states: list[Any] = []
        self.nothing = np.zeros((0,) if self._sides == 1 else (0, 2), np.float32)

    def of(self, frame: Tokens | None) -> Pcm | None:
        """Of the next frame, int32 [1, 1 + streams]; None while there is none to be heard."""
        if frame is None:
            return None
        number = self._run.frame
        if number < self._run.delay:
            return None
        if not self._states:
            self._states = [self._codec.init_state() for _ in range(self._sides)]
            before = self._run.prefixes[self._row][:, : number - self._run.delay]
            if before.shape[1]:  # its steps were made at once
                self._decode(before)
        sides = self._decode(frame[self._row, 1:, None])
        if number < self._run.first_sound(self._row):
            return None
        sound = sides[0] if self._sides == 1 else np.stack(sides, axis=1)
        clipped: Pcm = np.clip(sound, -1.0, 1.0)
        return clipped

    def _decode(self, codes: Codes) -> list[Pcm]:
        """Codes [streams, frames] → sound of each side, float32 [samples]."""
        sides = np.split(codes, self._sides)
        if self._sides == 2:  # with fewer codebooks than the model has, there are none at the end
            sides = [side[(side >= 0).all(axis=1)] for side in sides]
        pairs = zip(sides, self._states, strict=True)
        return [self._codec.decode_step(side, state) for side, state in pairs]


class _Speaking:
    """One text and its sound, for a stream."""

    def __init__(self, run: SpeechRun, sound: _Sound) -> None:
        self._run, self._sound = run, sound
        self.nothing = sound.nothing

    @property
    def done(self) -> bool:
        return self._run.done

    @property
    def ready(self) -> bool:
        return self._run.ready

    def step(self) -> Pcm | None:
        return self._sound.of(self._run.step().frame)


class Tts(Model):
    """A loaded text-to-speech model; made by `load`."""

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, codec: CodecName = "auto", dtype: mx.Dtype | None = None
    ) -> "Tts":
        if checkpoint.config.tts is None:
            raise ConfigError(
                f"{checkpoint.files.config}: field 'tts_config' is missing: a text-to-speech "
                "model needs its audio_delay"
            )
        return super().from_checkpoint(checkpoint, codec=codec, dtype=dtype)

    @classmethod
    def codebooks(cls, config: ModelConfig) -> int:
        """Each speaker has a codec's stream where the model keeps them apart."""
        apart = config.tts is not None and config.tts.multistream
        return config.lm.n_q // 2 if apart else config.lm.n_q

    @property
    def tts(self) -> TtsConfig:
        """How it writes."""
        assert self.config.tts is not None
        return self.config.tts

    @property
    def speakers(self) -> int:
        """Speakers of a script that it tells apart, each with a voice: 2, or 1."""
        return min(2, self.tts.max_speakers) if self.takes_voice_files else 1

    @property
    def takes_voice_files(self) -> bool:
        """Whether a voice is a file that it attends to; else speech that it goes on from."""
        return TENSOR in self.lm.config.conditioners

    @property
    def delay_steps(self) -> int:
        """Steps by which the sound is behind the text."""
        return int(self.tts.audio_delay * self.frame_rate)

    @property
    def text_sampling(self) -> Sampling:
        return self._drawn(_TOP_K_TEXT, "temp_text")

    @property
    def audio_sampling(self) -> Sampling:
        return self._drawn(_TOP_K, "temp")

    def _drawn(self, top_k: int, name: str) -> Sampling:
        """As the makers draw it: top-k is not in the file."""
        given = self.config.raw.get("lm_gen_config") or {}
        has = any(field in given for field in (name, "text_temp" if "text" in name else name))
        temperature = getattr(self.config.sampling, name) if has else _TEMPERATURE
        return Sampling(temperature=temperature, top_k=top_k)

    # ---------------------------------------------------------------------------- voices

    @cached_property
    def speaker_voices(self) -> SpeakerVoices:
        """Where its voices are, if they are files that it attends to."""
        about = self.config.raw.get("model_id") or {}
        signature = f"{about.get('sig')}@{about.get('epoch')}"
        conditioner = self.lm.config.conditioners[TENSOR]
        return SpeakerVoices(self.checkpoint.folder, signature, conditioner.dim)

    @cached_property
    def recorded_voices(self) -> RecordedVoices:
        """Where its voices are, if it goes on from them."""
        return RecordedVoices(self.checkpoint.folder, self.codec)

    def voices(self, folder: Path | None = None) -> list[str]:
        """Names of the voices that are here; others may be published."""
        found = self.speaker_voices if self.takes_voice_files else self.recorded_voices
        return found.names(folder)

    def voice(
        self, name: VoiceLike, *, folder: Path | None = None, offline: bool = False
    ) -> SpeakerVoice | Voice:
        """A voice by its name or file.

        Args:
            name: as `SpeakerVoices.find` takes it; for a model that goes on from speech, as
                `RecordedVoices.find` does.
            folder: one with further voices.
            offline: never use the network.

        Raises:
            ArgumentError: there is no such voice, or it is of another model.
            CheckpointError: its file is damaged.
            HubError: it cannot be fetched.
        """
        if isinstance(name, SpeakerVoice | Voice):
            if isinstance(name, SpeakerVoice) != self.takes_voice_files:
                raise ArgumentError(f"the voice {name.name} is of another kind of model")
            return name
        if not isinstance(name, str | Path) or not str(name):
            raise ArgumentError(f"voice must be a name, a file or a voice, is {shown(name)}")
        if self.takes_voice_files:
            return self.speaker_voices.find(name, folder, offline=offline)
        find = self.recorded_voices.find
        return self.worker.call(lambda: find(name, folder, offline=offline))

    def check_voices(self, count: int) -> None:
        """Whether it can be given that number of voices, before they are looked for.

        Raises:
            ArgumentError: there are more than it has speakers.
            VerbError: it has a voice of itself alone.
        """
        entry = catalog.find(self.name)
        if count and entry is not None and entry.bundled:
            raise VerbError(f"{self.name} has one voice, and cannot be given another: leave it out")
        if count > self.speakers:
            takes = "goes on from one recording: give one voice"
            if self.speakers > 1:
                takes = f"takes a voice for each of {self.speakers} speakers: give no more"
            raise ArgumentError(f"{self.name} {takes}, not {count}")

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
            VerbError: the model takes voices from files alone.
            ArgumentError: there is too little or too much speech, or it clips or is noisy.
        """
        if self.takes_voice_files:
            raise VerbError(
                f"{self.name} takes published voices alone: what encodes a recording for it is not "
                "public"
            )
        count = self.lm.config.n_q
        return self.worker.call(
            lambda: voice_from_sound(
                self.codec, pcm, name=name, accept_faults=accept_faults, codebooks=count
            )
        )

    # ---------------------------------------------------------------------------- speech

    def speak(
        self,
        script: Text,
        *,
        voice: VoiceLike | Sequence[VoiceLike] | None = None,
        cfg: float | None = None,
        speed: float = 0.0,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        pacing: Pacing | None = None,
        codebooks: int | None = None,
        exact: bool = False,
        kv_bits: int | None = None,
        voices_folder: Path | None = None,
    ) -> SpeechStream:
        """Speaks a text, while it is made.

        Args:
            script: a text; lines "A: …" and "B: …" or JSON for two speakers; a list of turns, the
                first speaker's first; or an iterator of pieces of such a text, which is
                spoken as it arrives, from the first three words on (JSON: from its end on).
            voice: one voice, or one for each speaker; None: the model's choice.
            cfg: how closely to keep to the voice. Some models know a few values alone; others take
                twice the work. The makers' 2 if None, where there is a voice.
            speed: −2 (slow) … 2 (fast): less or more is paused between words.
            seed: the same seed and text give the same speech.
            text: how it is drawn where pauses end; the makers' way if None.
            audio: how codes are drawn; the makers' way if None.
            pacing: the makers' if None.
            codebooks: of the sound, fewer are faster and worse; all if None.
            exact: breaks in the reference's one spelling alone.
            kv_bits: quantize keys and values to 8 or 4 bits; None: as they are computed.
            voices_folder: one with further voices.

        Raises:
            ArgumentError: an argument has an impossible value, or the model takes no such voice.
            CheckpointError: a voice's file is damaged.
        """
        pieces, turns = _as_text(script)
        pacing = Pacing() if pacing is None else pacing
        machine, reader = self.machine(pacing, exact, ended=turns is not None)
        for i, turn in enumerate(turns or ()):
            reader.turn(i % 2)
            machine.add(reader.read(turn) + reader.end())
        if turns is None:
            reader.turn(0)
        voices = self._given_voices(voice, voices_folder)
        cfg, text = self._drawing(cfg, any(voices), speed, text)

        def make() -> tuple[SpeechRun, _Speaking]:
            run = self.run(
                [machine], [voices], cfg=cfg, text=text, audio=audio, seed=seed, pacing=pacing,
                codebooks=codebooks, kv_bits=kv_bits,
            )  # fmt: skip
            return run, _Speaking(run, _Sound(self, run))

        run, speaking = self.worker.call(make)
        words = Words(machine, self.frame_rate, run.prefix_frames[0])
        return SpeechStream(self.worker, speaking, machine, words, reader, pieces, self.sample_rate)

    def speak_batch(
        self,
        scripts: Sequence[str | Sequence[str]],
        *,
        voices: Sequence[VoiceLike | Sequence[VoiceLike] | None] | None = None,
        cfg: float | None = None,
        speed: float = 0.0,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        pacing: Pacing | None = None,
        codebooks: int | None = None,
        exact: bool = False,
        kv_bits: int | None = None,
        voices_folder: Path | None = None,
    ) -> list[Speech]:
        """Speaks several texts side by side, which takes less time than one after the other.

        Args:
            scripts: each a text or a list of turns, up to 64.
            voices: of each text, as `speak` has them; None: the model's choice.
            cfg, speed, seed, text, audio, pacing, codebooks, exact, kv_bits, voices_folder: as
                `speak` has them, of all texts.

        Raises:
            ArgumentError: as `speak`.
            CheckpointError: as `speak`.
        """
        count = whole("the number of scripts", len(scripts), 1, _MOST_TEXTS)
        if voices is not None and len(voices) != count:
            raise ArgumentError(f"voices must be {count}, one for each text, are {len(voices)}")
        pacing = Pacing() if pacing is None else pacing
        machines = []
        for script in scripts:
            pieces, turns = _as_text(script)
            if pieces is not None or turns is None:
                raise ArgumentError("the texts of a batch must be there as a whole")
            machine, reader = self.machine(pacing, exact)
            machine.add(entries_of(reader, turns))
            machines.append(machine)
        given = [self._given_voices(v, voices_folder) for v in voices or [None] * count]
        cfg, text = self._drawing(cfg, any(map(any, given)), speed, text)

        def make() -> tuple[SpeechRun, list[_Sound]]:
            run = self.run(
                machines, given, cfg=cfg, text=text, audio=audio, seed=seed, pacing=pacing,
                codebooks=codebooks, kv_bits=kv_bits,
            )  # fmt: skip
            return run, [_Sound(self, run, row) for row in range(count)]

        run, sounds = self.worker.call(make)
        parts: list[list[Pcm]] = [[sound.nothing] for sound in sounds]

        def step() -> None:
            frame = run.step().frame
            for row, sound in enumerate(sounds):
                pcm = None if run.over(row) else sound.of(frame)
                parts[row] += [] if pcm is None else [pcm]

        while not run.done:
            self.worker.call(step)
        words = (
            Words(machine, self.frame_rate, frames).new()
            for machine, frames in zip(machines, run.prefix_frames, strict=True)
        )
        return [
            Speech(np.concatenate(sound), found, self.sample_rate)
            for sound, found in zip(parts, words, strict=True)
        ]

    def queue(self) -> SpeechQueue:
        """A queue of texts, which are spoken one after the other on another thread."""
        return SpeechQueue(self.speak)

    def _given_voices(
        self, voice: VoiceLike | Sequence[VoiceLike] | None, folder: Path | None
    ) -> list[SpeakerVoice | Voice | None]:
        """Of one text, each found."""
        given = [voice] if voice is None or isinstance(voice, VoiceLike) else list(voice)
        if not self.takes_voice_files:
            self.check_voices(sum(each is not None for each in given))
        return [None if v is None else self.voice(v, folder=folder) for v in given]

    def _drawing(
        self, cfg: float | None, voiced: bool, speed: float, text: Sampling | None
    ) -> tuple[float | None, Sampling | None]:
        """How closely to keep to the voice, and how text is drawn at that speed."""
        if cfg is None and ("cfg" in self.lm.config.conditioners or voiced):
            cfg = _CFG
        if speed:
            real("speed", speed, -2, 2)
            text = _with_bonus(self.text_sampling if text is None else text, -speed)
        return cfg, text

    def run(
        self,
        machines: Sequence[SpeechMachine],
        voices: Sequence[Sequence[SpeakerVoice | Voice | None]],
        *,
        cfg: float | None = None,
        guide_text: bool = False,
        guide_prefix: bool = False,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        seed: int = 0,
        pacing: Pacing | None = None,
        codebooks: int | None = None,
        kv_bits: int | None = None,
    ) -> SpeechRun:
        """Texts side by side, as `speak` has one; on the model's thread.

        Args:
            machines: one for each text; they hold the words.
            voices: of each text.
            cfg: as `speak` has it; None: no guidance.
            guide_text: where guidance doubles the work, guide the text too.
            guide_prefix: there, the null half hears the recording too.
            text, audio, seed, pacing, codebooks, kv_bits: as `speak` has them.

        Raises:
            ArgumentError: as `speak`.
        """
        config = self.lm.config
        pacing = Pacing() if pacing is None else pacing
        streams = config.dep_q if codebooks is None else codebooks
        whole("codebooks", streams, 1, config.dep_q)
        lm, unused = self.lm, []
        if self.tts.multistream:
            half, used = config.dep_q // 2, streams // 2
            unused = [k for k in range(config.dep_q) if k % half >= used]
            lm, streams = (lm.without_streams(unused) if unused else lm), config.dep_q
        conditions, guidance = self._conditions(voices, cfg, guide_text)
        prefixes = None
        if not self.takes_voice_files:
            prefixes = [self._prefix(given, streams) for given in voices]
            if not any(prefix.shape[1] for prefix in prefixes):
                prefixes = None
            if guidance is not None and conditions is None and guide_text and guide_prefix:
                raise ArgumentError("guidance needs a difference: guide the text or the prefix")
        generator = Generator(
            lm,
            batch=len(machines),
            text=self.text_sampling if text is None else text,
            audio=self.audio_sampling if audio is None else audio,
            seed=seed,
            conditions=conditions,
            generated=streams,
            guidance=guidance,
            kv_bits=kv_bits,
        )
        return SpeechRun(
            generator,
            machines,
            delay=self.delay_steps,
            final_padding=pacing.final_padding,
            prefixes=prefixes,
            guide_prefix=guide_prefix,
            drawn_for_nothing=unused,
        )

    def machine(
        self, pacing: Pacing, exact: bool = False, *, ended: bool = True
    ) -> tuple[SpeechMachine, ScriptReader]:
        """For one text, and what reads that."""
        machine = SpeechMachine(
            rows=self.lm.config.text_card + 1,
            ahead=self.tts.second_stream_ahead,
            max_padding=pacing.max_padding,
            initial_padding=pacing.initial_padding,
            ended=ended,
        )
        reader = ScriptReader(
            self.text.encode,
            frame_rate=self.frame_rate,
            padding_between=pacing.padding_between,
            speakers=self.takes_voice_files,
            exact=exact,
        )
        return machine, reader

    def _conditions(
        self,
        voices: Sequence[Sequence[SpeakerVoice | Voice | None]],
        cfg: float | None,
        guide_text: bool,
    ) -> tuple[list[dict[str, Condition]] | None, Guidance | None]:
        """What each text's steps are told, and whether they are doubled."""
        config, guidance = self.lm.config, None
        known = config.conditioners.get("cfg")
        if cfg is not None:
            real("cfg", cfg, 0, 100)
        if known is None and cfg not in (None, 1):
            guidance = Guidance(float(cfg), text=guide_text)
        if not config.conditioners:
            return None, guidance
        same: dict[str, Condition] = {}
        if known is not None and cfg is not None:
            name, values = f"{cfg:.1f}", known.possible_values or ()
            if name not in values or float(name) != cfg:
                raise ArgumentError(f"cfg must be one of {', '.join(values)}, is {cfg:g}")
            same["cfg"] = name
        if "control" in config.conditioners:
            same["control"] = "ok"
        found = [dict(same) for _ in voices]
        if self.takes_voice_files:
            dim = config.conditioners[TENSOR].dim
            for each, given in zip(found, voices, strict=True):
                files = [v for v in given if v is None or isinstance(v, SpeakerVoice)]
                each[TENSOR] = slots_of(
                    files, self.tts.max_speakers, dim, self.speaker_voices.frames
                )
        return found, guidance

    def _prefix(self, given: Sequence[SpeakerVoice | Voice | None], streams: int) -> Codes:
        """The speech that a text goes on from, int32 [streams, frames]."""
        spoken = [voice for voice in given if isinstance(voice, Voice)]
        if not spoken:
            return np.zeros((streams, 0), np.int32)
        if len(spoken) > 1:
            raise ArgumentError("this model goes on from one recording: give one voice")
        codes = spoken[0].codes
        again = f"make one of a recording: `moshi-local voices add NAME FILE --model {self.name}`"
        if codes is None:
            raise ArgumentError(
                f"voice {spoken[0].name}: is for {persona_models()}; this model goes on from "
                f"speech, {again}"
            )
        if len(codes) != streams:
            raise ArgumentError(
                f"voice {spoken[0].name}: has {counted(len(codes), 'codebook')}, this model needs "
                f"{streams}: {again}"
            )
        if codes.shape[1] <= _PREFIX_CUT:
            raise ArgumentError(f"voice {spoken[0].name}: is too short")
        return codes[:, :-_PREFIX_CUT]


FAMILY = Tts


def _as_text(script: Text) -> tuple[Pieces | None, list[str] | None]:
    """Pieces that arrive, or turns that are there."""
    if isinstance(script, str):
        return None, turns_of(script)
    if isinstance(script, list | tuple):
        if not all(isinstance(turn, str) for turn in script):
            raise ArgumentError(f"script must be turns of text, is {shown(script)}")
        return None, [*script]
    if isinstance(script, AsyncIterable):
        return aiter(script), None
    if isinstance(script, Iterable):
        return iter(script), None
    raise ArgumentError(f"script must be text, turns or pieces of text, is {shown(script)}")


def _with_bonus(sampling: Sampling, bonus: float) -> Sampling:
    """What makes padding likelier, and so speech slower."""
    return replace(sampling, bonus=(_PADDING, float(bonus)))
