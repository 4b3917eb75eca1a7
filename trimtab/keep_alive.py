"""How long connections to model servers are kept between requests."""

from __future__ import annotations

IDLE_SECONDS = 2.0
"""For httpx's `keepalive_expiry`.

vLLM closes a connection that was idle for 5 seconds (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`), and httpx would keep one for as
long: a request that is sent while the server closes is lost with a `ReadError`, though nothing is wrong with either.
"""
