"""What can go wrong between a client and two servers, each with the HTTP status that the client gets."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any


class RouteError(Exception):
    """Ends a request, not the proxy.

    Args:
        message: for the client.
        status: of the answer, if none was begun.
        param: the request's field that it is about.
    """

    kind = "error"

    def __init__(self, message: str, status: int, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param = message, status, param

    def body(self) -> dict[str, Any]:
        """As OpenAI's and vLLM's servers write it."""
        kind = HTTPStatus(self.status).phrase.replace(" ", "") + "Error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}


class BadRequestError(RouteError):
    """The request cannot be answered as it is."""

    kind = "refused"

    def __init__(self, message: str, param: str | None = None, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message, status, param)


class BackendRefusedError(RouteError):
    """A server answered with an error of the client's; its own status and message are handed on."""

    kind = "refused"


class BackendLostError(RouteError):
    """A server cannot be reached, broke off, or was silent for too long.

    Attributes:
        backend: its name.
        reason: `connect`, `timeout`, `torn` or `status`.
    """

    kind = "lost"

    def __init__(self, backend: str, reason: str, message: str) -> None:
        status = HTTPStatus.GATEWAY_TIMEOUT if reason == "timeout" else HTTPStatus.BAD_GATEWAY
        super().__init__(f"the {backend} model's server {message}", status)
        self.backend, self.reason = backend, reason
