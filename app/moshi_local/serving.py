"""`moshi-local serve`: the model, its places for conversations and the sockets, put together.

Knows every part and decides nothing that a part can decide.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console

from moshi_mlx import Model, Moshi, MoshiError, Stt, catalog
from moshi_mlx.families.kinds import Verb, kind_of, verb_of
from moshi_mlx.hub import canonical

from . import arguments as a
from . import platform as system
from .assembly import CaptionModel, consoles, load_model, session_arguments
from .captioned import CaptionedConversation
from .engine import Engine
from .options import CodecChoice, ModelSource, PersonaFlags, SamplingFlags
from .report import warm_up
from .role import Role, own_voices, role_for
from .voice_services import ServiceOptions, check_services, loaded_services

if TYPE_CHECKING:
    from aiohttp import web

    from .server.access import Access
    from .server.room import Room, Wishes
    from .server.services import Services
    from .server.talk import SocketSteps

__all__ = ["ServeOptions", "serve", "serve_command"]

SERVER = "Server"
PORT = 8998
"""Where Kyutai's clients look for a server."""
NO_MODEL = "none"
"""In place of a model's name: none that talks."""
CAPTIONS_MARGIN = 1.0
"""Seconds beyond a model's delay in which a word of the user is expected."""
STOPPING_SECONDS = 2.0
"""In which conversations end when the server is stopped."""
_WARM_UP_FRAMES = 12
_MOST_SESSIONS = 64
_OPEN_FILES = 4096
"""Connections need one each; some systems begin with 256."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What a server is asked for.

    kv_bits, persona, seed, sampling: of conversations whose clients say nothing else.
    sessions: conversations at the same time.
    token: that clients must bring; None: one is made where others can reach the server.
    tls: a folder with cert.pem and key.pem.
    unix: the path of a socket, in place of host and port.
    origins, hosts: beside the server's own.
    minutes: that a conversation may last.
    beside: what the server is to do beside talking.
    wyoming: host and port for Wyoming; None: it isn't spoken.
    opens: the page, in the user's browser.
    """

    model: ModelSource
    host: str = "127.0.0.1"
    port: int = PORT
    seed: int | None = None
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    persona: PersonaFlags = field(default_factory=PersonaFlags)
    kv_bits: int | None = None
    loop_guard: bool = True
    sessions: int = 1
    token: str | None = None
    tls: Path | None = None
    unix: Path | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    minutes: float | None = None
    beside: ServiceOptions = field(default_factory=ServiceOptions)
    wyoming: tuple[str, int] | None = None
    opens: bool = False


def serve(options: ServeOptions) -> None:
    """Serves until Ctrl-C or SIGTERM; conversations then end within STOPPING_SECONDS.

    Raises:
        MoshiError: a part is missing, the model can neither talk nor translate, or the address
            cannot be used.
    """
    _, notes = consoles(stdout_is_taken=True)
    tls = None if options.tls is None else tls_of(options.tls)
    access = _access(options)
    _log_to_stderr()
    check_services(options.beside)
    with ExitStack() as stack:
        hints = [*stack.enter_context(system.keep_awake_and_fast())]
        system.allow_open_files(_OPEN_FILES)
        if options.model.name == NO_MODEL:
            loaded = stack.enter_context(loaded_services(options.beside, notes, None))
            room = None
        else:
            translates = verb_of(options.model.name) == "translate"
            role = role_for(options.persona, options.model.name, options.kv_bits)
            if translates and role.asked:
                raise MoshiError(
                    f"{options.model.name} translates, and takes no persona and no voice: "
                    "leave out --persona and --voice"
                )
            verb: Verb = "translate" if translates else "talk"
            model, verdict = load_model(options.model, notes, options.kv_bits, verb)
            hints += filter(None, {model.worker.call(system.prefer_this_thread)})
            engine = stack.enter_context(Engine(lambda: model))
            talks = (model, verdict)
            loaded = stack.enter_context(loaded_services(options.beside, notes, talks))
            opener = _opener(engine, options, role, verdict.kv_bits, loaded.captions)
            with model.session(kv_bits=verdict.kv_bits) as session:
                warm_up(session, model.frame_size, _WARM_UP_FRAMES)
            hints += filter(None, [verdict.advice])
            room = _room(model, options, opener, loaded.captions)
        for line in hints:
            notes.print(line, markup=False, soft_wrap=True)
        asyncio.run(_serve(options, room, loaded.services, access, tls, notes))


def tls_of(folder: Path) -> ssl.SSLContext:
    """The server's side of TLS from a folder with cert.pem and key.pem.

    Raises:
        MoshiError: a file is missing, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise MoshiError(
            f"--ssl {folder}: cert.pem and key.pem cannot be used: {reason}. "
            "mkcert makes both for this machine"
        ) from error
    return context


def _access(options: ServeOptions) -> Access:
    """The rules. Where other machines can reach the server, it always has a token."""
    from .server.access import LOCAL_HOSTS, Access, is_local

    local = options.unix is not None or is_local(options.host)
    token = options.token
    if token is None and not local:
        token = secrets.token_urlsafe(16)
    named = {name.lower() for name in options.hosts}
    if options.host not in ("0.0.0.0", "::"):
        named.add(options.host.lower())
    return Access(LOCAL_HOSTS | named, frozenset(options.origins), token)


def _opener(
    engine: Engine,
    options: ServeOptions,
    role: Role,
    kv_bits: int | None,
    captions: CaptionModel | None,
) -> Callable[[Wishes], SocketSteps]:
    """What makes a client's conversation."""

    def opened(wishes: Wishes) -> SocketSteps:
        model = engine.moshi
        own = role
        if wishes.persona is not None or wishes.voice is not None:
            own = replace(
                role, persona=wishes.persona or role.persona, voice=wishes.voice or role.voice
            )
        wanted: dict[str, Any] = {k: v for k, v in wishes.sampling.items() if v is not None}
        sampling = replace(options.sampling, **wanted)
        seeds = (wishes.seed, options.seed, secrets.randbits(31))
        seed = next(seed for seed in seeds if seed is not None)
        conversation = engine.open(
            guard=options.loop_guard, **session_arguments(model, seed, sampling, kv_bits, own)
        )
        if captions is None or not wishes.captions:
            return conversation
        return CaptionedConversation(
            conversation, captions.open_session(), captions.model.worker, model.frame_rate
        )

    return opened


def _room(
    model: Model,
    options: ServeOptions,
    opener: Callable[[Wishes], SocketSteps],
    captions: CaptionModel | None,
) -> Room:
    from .server.room import Room

    after = None
    if captions is not None:
        assert isinstance(captions.model, Stt), "no other model writes captions"
        after = captions.model.delay_seconds + CAPTIONS_MARGIN

    persona = kind_of(model.config, model.name).persona
    return Room(
        model.name,
        model.sample_rate,
        model.frame_size,
        opener,
        places=options.sessions,
        takes_persona=persona,
        voices=_voices(model) if persona and isinstance(model, Moshi) else (),
        translates=model.verb == "translate",
        minutes=options.minutes,
        captions_after=after,
    )


def _voices(model: Moshi) -> list[str]:
    """Names that a client may ask for: the model's own voices and the user's."""
    own = own_voices()
    mine = sorted(path.stem for path in own.glob("*.safetensors")) if own.is_dir() else []
    return [*model.voices(), *mine]


async def _serve(
    options: ServeOptions,
    room: Room | None,
    services: Services,
    access: Access,
    tls: ssl.SSLContext | None,
    notes: Console,
) -> None:
    from aiohttp import web

    from .server.app import make_app

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_in_one_line)
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        make_app(room, access, services), access_log=None, shutdown_timeout=STOPPING_SECONDS
    )
    await runner.setup()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        if room is not None:
            stack.push_async_callback(room.close)
        where = await _listen(options, runner, tls, stack)
        if options.wyoming is not None:
            line = await _listen_to_wyoming(*options.wyoming, services, stack)
            notes.print(line, markup=False, soft_wrap=True)
        first, *others = [*([] if room is None else [room.name]), *services.names]
        besides = f" with {' and '.join(others)}" if others else ""
        notes.print(f"{first}{besides} is ready: {where}", markup=False, soft_wrap=True)
        page = page_address(where, access.token)
        if access.token is not None and options.token is None:
            notes.print(f"token: {access.token}", markup=False, soft_wrap=True)
            if room is not None:
                notes.print(f"in a browser: {page}", markup=False, soft_wrap=True)
        if options.opens and not system.open_in_browser(page):
            notes.print(f"there is no browser here: open {page}", markup=False, soft_wrap=True)
        await stop.wait()
        notes.print("stopping")


async def _listen(
    options: ServeOptions, runner: web.AppRunner, tls: ssl.SSLContext | None, stack: AsyncExitStack
) -> str:
    """Opens the address; gives it in words. Raises MoshiError."""
    from aiohttp import web

    try:
        if options.unix is not None:
            path = options.unix
            if path.exists():
                if not stat.S_ISSOCK(path.stat().st_mode):
                    raise FileExistsError(errno.EEXIST, "there is a file of that name")
                if _answers(path):
                    raise OSError(errno.EADDRINUSE, "another server listens there")
                path.unlink()  # of a server that was killed
            before = os.umask(0o177)
            try:
                await web.UnixSite(runner, str(path), ssl_context=tls).start()
            finally:
                os.umask(before)
            stack.callback(path.unlink, missing_ok=True)
            return f"unix socket {path}"
        site = web.TCPSite(runner, options.host, options.port, ssl_context=tls)
        await site.start()
    except OSError as error:
        where = options.unix or f"{options.host} port {options.port}"
        reason = error.strerror or str(error)
        in_use = error.errno == errno.EADDRINUSE and options.unix is None
        if in_use:
            reason = "it is in use"
        advice = ". Is another server running? --port takes another" if in_use else ""
        raise MoshiError(f"cannot listen on {where}: {reason}{advice}") from error
    scheme = "http" if tls is None else "https"
    port = runner.addresses[0][1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{scheme}://{host}:{port}"


def _in_one_line(loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
    """Errors of the loop. That there are too many connections is told once."""
    error = about.get("exception")
    if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
        loop.default_exception_handler(about)
    elif not getattr(loop, "_told_of_files", False):
        loop._told_of_files = True  # type: ignore[attr-defined]
        logging.getLogger("moshi_local.server").warning("too many connections: some must wait")


def _answers(path: Path) -> bool:
    """Whether a server listens on this unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


async def _listen_to_wyoming(
    host: str, port: int, services: Services, stack: AsyncExitStack
) -> str:
    """Opens the port; gives it in words. Raises MoshiError."""
    from .server.access import is_local
    from .server.wyoming import WyomingServer

    server = WyomingServer(services)
    try:
        port = await server.start(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MoshiError(f"--wyoming: cannot listen on {host} port {port}: {reason}") from error
    stack.push_async_callback(server.close)
    open_to = "" if is_local(host) else ": it asks for no key, whoever reaches it is served"
    return f"Wyoming: tcp://{host}:{port}{open_to}"


def _wyoming_address(text: str) -> tuple[str, int]:
    """Of "PORT" or "ADDRESS:PORT"."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter(f"--wyoming {text}: give PORT or ADDRESS:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def page_address(where: str, token: str | None) -> str:
    """Where this machine's browser finds the page; the token is in the fragment, which is not sent.

    Args:
        where: the server's address; one that stands for all addresses becomes this machine's own.
        token: that the page must bring.
    """
    address = where.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    return f"{address}/" if token is None else f"{address}/#token={quote(token, safe='')}"


def _log_to_stderr() -> None:
    """One line a conversation; neither sound nor words."""
    log = logging.getLogger("moshi_local.server")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    # What aiohttp says there is of requests that it cannot read, and refuses: a traceback for each.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


# ---------------------------------------------------------------------------- the command


def serve_command(
    context: typer.Context,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Listen on this address. Anything but this machine's own demands a token.",
            rich_help_panel=SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            help="Listen on this port; 0 takes a free one.",
            rich_help_panel=SERVER,
        ),
    ] = PORT,
    sessions: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MOST_SESSIONS,
            metavar="N",
            help="Hold up to N conversations at once.",
            rich_help_panel=SERVER,
        ),
    ] = 1,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="MOSHI_LOCAL_TOKEN",
            help="Serve only clients that bring this key.",
            show_default="none on this machine, a random one elsewhere",
            rich_help_panel=SERVER,
        ),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            "--ssl",
            metavar="DIR",
            help="Serve https with cert.pem and key.pem of this folder.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    unix: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Listen on this unix socket, which only you can open, instead of an address.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Let pages of this website use the server.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Answer to this name too, such as mac.local.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=100_000.0,
            metavar="N",
            help="End a conversation after N minutes.",
            show_default="never",
            rich_help_panel=SERVER,
        ),
    ] = None,
    stt: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Transcribe for other programs with this model, such as "
            f"{a.default_of('transcribe')}.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    tts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Speak texts of other programs with this model, such as {a.default_of('speak')}.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    tts_voice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --tts, a voice that programs may ask for: see `moshi-local voices`. The "
            "first one speaks where they ask for none.",
            show_default="the model's choice",
            rich_help_panel=SERVER,
        ),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Tell clients of /v1/live/sessions and /v1/realtime what their user says, with "
            "this speech-to-text model.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    wyoming: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="With --stt or --tts, speak Home Assistant's Wyoming protocol on this port, such "
            "as 10300. It has no keys.",
            show_default=False,
            rich_help_panel=SERVER,
        ),
    ] = None,
    open_page: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Open the page in the browser as soon as the server is ready.",
            rich_help_panel=SERVER,
        ),
    ] = False,
    model: a.ModelOption = None,
    force: a.ForceOption = False,
    codec: a.CodecNameOption = CodecChoice.auto,
    lora: a.LoraOption = None,
    base: a.BaseOption = None,
    kv_bits: a.KvBitsOption = None,
    float16: a.Float16Option = False,
    persona: a.PersonaOption = None,
    voice: a.VoiceOption = None,
    no_prompt_cache: a.NoPromptCacheOption = False,
    keep_persona: a.KeepPersonaOption = False,
    no_loop_guard: a.NoLoopGuardOption = False,
    seed: a.SeedOption = None,
    temperature: a.TemperatureOption = None,
    temperature_text: a.TemperatureTextOption = None,
    top_k: a.TopKOption = None,
    top_k_text: a.TopKTextOption = None,
    top_p: a.TopPOption = None,
    min_p: a.MinPOption = None,
) -> None:
    """Talk with the model in a browser, and let other programs do so, over sockets on this machine.

    The page is at /, Kyutai's protocol at /api/chat, OpenAI's GPT-Live at /v1/live/sessions. With
    --stt and --tts, OpenAI's are at /v1/audio. --model none loads no model that talks. Nothing is
    kept, and no sound or word is logged.
    """
    del context
    alone = model == NO_MODEL
    if alone and not (stt or tts):
        raise typer.BadParameter("--model none leaves nothing to serve: give --stt or --tts too")
    if alone and captions:
        raise typer.BadParameter("--captions goes with a model that talks, not with --model none")
    if wyoming and not (stt or tts):
        raise typer.BadParameter("--wyoming goes with --stt or --tts: give one of them")
    if tts_voice and not tts:
        raise typer.BadParameter("--tts-voice goes with --tts")
    if open_page and (alone or unix is not None):
        why = "--model none" if alone else "--unix: browsers open no unix socket"
        raise typer.BadParameter(f"--open shows the page, which is not there with {why}")
    serve(
        ServeOptions(
            model=ModelSource(
                canonical(model or catalog.default_model()), codec, lora, float16, force, base
            ),
            host=host,
            port=port,
            seed=seed,
            sampling=SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p),
            persona=PersonaFlags(persona, voice, not no_prompt_cache, keep_persona),
            kv_bits=kv_bits,
            loop_guard=not no_loop_guard,
            sessions=sessions,
            token=token,
            tls=tls,
            unix=unix,
            origins=tuple(allow_origin or ()),
            hosts=tuple(allow_host or ()),
            minutes=max_minutes,
            beside=ServiceOptions(
                stt=stt and canonical(stt),
                tts=tts and canonical(tts),
                captions=captions and canonical(captions),
                voices=tuple(tts_voice or ()),
                seed=seed,
                force=force,
            ),
            wyoming=None if wyoming is None else _wyoming_address(wyoming),
            opens=open_page,
        )
    )
