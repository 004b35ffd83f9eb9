# SPDX-License-Identifier: MIT
"""The one table of what can go wrong: exception class to D-Bus name, HTTP status, OpenAI type.

An error here is the user's mistake or the world's fault: one line that says what happened, and
a hint that says what to do next. Anything else is a bug and stays a traceback in the journal.
"""

from __future__ import annotations

# Not imported in fact: names.py, which is imported in haste, needs these errors.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class LlmuxError(Exception):
    """Base of all typed errors. `str(error)` is one line: what happened, then the hint."""

    dbus_name: ClassVar[str] = "org.llmux.Error.Failed"
    http_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    openai_code: ClassVar[str | None] = None
    hint: ClassVar[str] = ""

    def __init__(self, message: str, hint: str | None = None, retry_after: float | None = None):
        """`hint` replaces the class's own; `retry_after` is in seconds, for HTTP's Retry-After."""
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint_text = self.hint if hint is None else hint
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} ({self.hint_text})" if self.hint_text else self.message


class InvalidName(LlmuxError):
    """A text that cannot be a model's name."""

    dbus_name = "org.llmux.Error.InvalidName"
    http_status = 400
    openai_type = "invalid_request_error"


class ConfigInvalid(LlmuxError):
    """llmux.yaml cannot be used; the message begins with file:line:column."""

    dbus_name = "org.llmux.Error.ConfigInvalid"


class NoSuchModel(LlmuxError):
    """No model of this name or alias is configured."""

    dbus_name = "org.llmux.Error.NoSuchModel"
    http_status = 404
    openai_type = "invalid_request_error"
    openai_code = "model_not_found"


class BadRequest(LlmuxError):
    """The HTTP request cannot be understood."""

    dbus_name = "org.llmux.Error.BadRequest"
    http_status = 400
    openai_type = "invalid_request_error"


class NoSuchRoute(LlmuxError):
    """The HTTP request's path is none that is answered."""

    http_status = 404
    openai_type = "invalid_request_error"
    hint = "the routes are in llmuxd(8)"


class MethodNotAllowed(LlmuxError):
    """The HTTP request's path takes another method."""

    http_status = 405
    openai_type = "invalid_request_error"


class ExpectationFailed(LlmuxError):
    """The HTTP request expects what cannot be done."""

    http_status = 417
    openai_type = "invalid_request_error"


class Unauthorized(LlmuxError):
    """The HTTP request has no API key, or none that is known."""

    http_status = 401
    openai_type = "invalid_request_error"
    openai_code = "invalid_api_key"
    hint = "send it as 'Authorization: Bearer KEY'"


class KeyForbids(LlmuxError):
    """The API key may not use the model."""

    http_status = 403
    openai_type = "permission_error"
    openai_code = "model_not_allowed"
    hint = "GET /v1/models lists those that it may use"


class OriginForbidden(LlmuxError):
    """A page in a browser, of another origin, sends what its browser let it send unasked."""

    http_status = 403
    openai_type = "permission_error"
    openai_code = "origin_not_allowed"
    hint = "cors_origins in llmux.yaml names those that may ask"


class RateLimited(LlmuxError):
    """The API key has used up what it may."""

    http_status = 429
    openai_type = "rate_limit_error"
    openai_code = "rate_limit_exceeded"
    hint = "try again later"


class TooSlow(LlmuxError):
    """The client stopped in the middle of its request."""

    http_status = 408
    openai_type = "invalid_request_error"


class BodyTooLarge(LlmuxError):
    """The HTTP request's body exceeds the configured limit."""

    http_status = 413
    openai_type = "invalid_request_error"


class ModelFailed(LlmuxError):
    """The model's unit could not be started, or keeps failing."""

    dbus_name = "org.llmux.Error.ModelFailed"
    http_status = 503
    openai_code = "model_failed"


class NoRoom(LlmuxError):
    """The model does not fit on its GPU, whoever leaves; the message says who holds it."""

    dbus_name = "org.llmux.Error.NoRoom"
    http_status = 507
    openai_code = "no_room"
    hint = "end what holds the GPU, unpin a model, or lower vram in llmux.yaml"


class QueueFull(LlmuxError):
    """As many requests wait as may."""

    dbus_name = "org.llmux.Error.QueueFull"
    http_status = 429
    openai_type = "rate_limit_error"
    openai_code = "queue_full"
    hint = "try again later; queue_limit in llmux.yaml is the limit"


class TimedOut(LlmuxError):
    """The request's time ran out before its answer began."""

    dbus_name = "org.llmux.Error.TimedOut"
    http_status = 504
    openai_type = "timeout_error"
    openai_code = "request_timeout"
    hint = "request_timeout in llmux.yaml is the limit"


class BackendLost(LlmuxError):
    """The model's server went away while it had the request."""

    http_status = 502
    openai_code = "backend_lost"


class HandshakeRefused(LlmuxError):
    """The model's server has no WebSocket there."""

    http_status = 502
    openai_code = "no_websocket"


class NotRunning(LlmuxError):
    """The operation needs a model that runs."""

    dbus_name = "org.llmux.Error.NotRunning"
    http_status = 409


class NotSupported(LlmuxError):
    """The model's configuration rules the operation out."""

    dbus_name = "org.llmux.Error.NotSupported"
    http_status = 409


class NoSuchJob(LlmuxError):
    """No job of this number runs."""

    dbus_name = "org.llmux.Error.NoSuchJob"
    http_status = 404


class AccessDenied(LlmuxError):
    """The caller may not do this."""

    # Not the bus's own name for it: busctl would print that without our words.
    dbus_name = "org.llmux.Error.AccessDenied"
    http_status = 403
    hint = "sudo, or a polkit rule for this action: see llmuxd(8)"


class InteractionRequired(LlmuxError):
    """The caller may do this after authentication; a name that clients such as busctl know."""

    dbus_name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
    http_status = 403
    hint = "sudo; or allow interaction, with an authentication agent such as pkttyagent"


class SystemdUnreachable(LlmuxError):
    """PID 1 did not answer, or the system bus is away."""

    dbus_name = "org.llmux.Error.SystemdUnreachable"
    http_status = 503
    hint = "see 'systemctl status' and 'journalctl -u llmuxd'"


class NoSocket(LlmuxError):
    """llmuxd was to listen on systemd's socket and got none."""

    hint = "see 'systemctl status llmuxd.socket', or listen by -p PORT"


class UnitRefused(LlmuxError):
    """systemd refused an operation on a model's unit."""

    dbus_name = "org.llmux.Error.UnitRefused"
    http_status = 503


class Stopping(LlmuxError):
    """llmuxd is on its way out and takes no new work."""

    dbus_name = "org.llmux.Error.Stopping"
    http_status = 503
    hint = "try again in a moment"


class StateNotKept(LlmuxError):
    """What is kept in /var/lib/llmux could not be brought up to date."""

    hint = "has its disk room, and may root write to it? Nothing of it is lost"


class StateTooNew(LlmuxError):
    """What is kept in /var/lib/llmux was written by a newer llmuxd."""

    hint = "install that release again, or move the directory away: all models then start cold"


class NotChanged(LlmuxError):
    """`llmuxctl check --fix` could not make a change."""


class Internal(LlmuxError):
    """A bug; the caller learns no more than that."""

    dbus_name = "org.llmux.Error.Internal"
    hint = "the journal has the details: journalctl -u llmuxd"
