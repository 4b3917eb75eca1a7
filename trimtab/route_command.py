"""`trimtab route`: entropy-adaptive decoding over two servers."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer

from .command_support import number, option, remember_debug, whole
from .errors import InputError

_GATE = "Gate"
_LOST = "Lost servers"


def route(
    small: Annotated[str, typer.Option(metavar="URL", help="The small model's server, such as http://localhost:8001.")],
    large: Annotated[str, typer.Option(metavar="URL", help="The large model's server.")],
    threshold: Annotated[
        float, option("--threshold", help="Bits; above, the large model writes.", panel=_GATE, parser=number)
    ],
    window: Annotated[
        int, option("--window", help="Tokens in the rolling mean; default: 5.", panel=_GATE, parser=whole)
    ] = 5,
    decay: Annotated[
        float | None,
        option("--decay", help="Exponential average instead of the window: 0.8, say.", panel=_GATE, parser=number),
    ] = None,
    min_stay: Annotated[
        int | None,
        option("--min-stay", help="Tokens before a model may hand over; default: WINDOW.", panel=_GATE, parser=whole),
    ] = None,
    lower_threshold: Annotated[
        float | None,
        option("--lower-threshold", help="Bits; down to it the large model goes on.", panel=_GATE, parser=number),
    ] = None,
    start: Annotated[str, option("--start", help="Who writes first, small or large; default: small.", panel=_GATE)] = (
        "small"
    ),
    top_logprobs: Annotated[
        int,
        option("--top-logprobs", help="Log-probabilities to ask for; default: 20.", panel=_GATE, parser=whole),
    ] = 20,
    tokenizer: Annotated[
        str | None,
        option("--tokenizer", help="Directory or hub id; default: where the large server has its model from."),
    ] = None,
    host: Annotated[str, option("--host", help="To listen on; default: 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int, option("--port", help="To listen on; default: 8000.", parser=whole)] = 8000,
    served_model_name: Annotated[
        str, option("--served-model-name", help="Of the pair, in requests; default: entropy-adaptive.")
    ] = "entropy-adaptive",
    on_lost: Annotated[
        str,
        option(
            "--on-lost",
            help="When a server is lost: fail (default), go on with the large model alone, or with whichever other.",
            panel=_LOST,
            metavar="fail|large|other",
        ),
    ] = "fail",
    connect_seconds: Annotated[
        float, option("--connect-seconds", help="Until it is lost; default: 5.", panel=_LOST, parser=number)
    ] = 5.0,
    first_token_seconds: Annotated[
        float, option("--first-token-seconds", help="Until it is lost; default: 120.", panel=_LOST, parser=number)
    ] = 120.0,
    between_tokens_seconds: Annotated[
        float, option("--between-tokens-seconds", help="Until it is lost; default: 30.", panel=_LOST, parser=number)
    ] = 30.0,
    retry_seconds: Annotated[
        float,
        option("--retry-seconds", help="A lost server is left alone for; default: 10.", panel=_LOST, parser=number),
    ] = 10.0,
    debug: Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)] = False,
) -> None:
    """Serve a small and a large model of two vLLM servers as one: an OpenAI-compatible proxy.

    The small model's server writes while the entropy of its tokens is low; where it rises above the threshold, the text
    is handed to the large one's, and back. Bearer tokens of the servers are read from TRIMTAB_SMALL_KEY and
    TRIMTAB_LARGE_KEY; without, the client's own is handed on.
    """
    if start not in ("small", "large"):
        raise InputError(f"--start is {start!r}: give small or large")
    if not 0 < port < 65536:
        raise InputError(f"--port is {port}: give 1 to 65535")
    import asyncio

    try:
        import uvicorn

        from .route.app import make_app
    except ModuleNotFoundError as error:
        raise InputError(f"trimtab route needs the package {error.name}: pip install 'trimtab[route]'") from error
    from .decoding.entropy_gate import GateSettings
    from .route.backend import SPEAKERS, Patience
    from .route.connect import Servers, connect
    from .route.requests import check_window

    gate = GateSettings(threshold, window, min_stay, lower_threshold, start_large=start == "large", decay=decay)
    check_window(gate)
    servers = Servers(
        urls={"small": small, "large": large},
        tokenizer=tokenizer,
        top_logprobs=top_logprobs,
        patience=Patience(connect_seconds, first_token_seconds, between_tokens_seconds, retry_seconds),
        on_lost=on_lost,  # type: ignore[arg-type]
        keys={name: key for name in SPEAKERS if (key := os.environ.get(f"TRIMTAB_{name.upper()}_KEY"))},
    )

    async def check() -> Any:
        async with AsyncExitStack() as stack:
            await connect(servers, stack)

    # once before the proxy listens, so that what is wrong is one line
    asyncio.run(check())
    app = make_app(servers, gate, name=served_model_name)
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=5)
