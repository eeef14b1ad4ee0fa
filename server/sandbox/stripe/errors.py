"""Stripe's errors: one exception with its HTTP status and its JSON."""

from http import HTTPStatus


class ApiError(Exception):
    """A call that Stripe answers with an error.

    `stored`: the response is stored under the idempotency key. Stripe stores the response of every endpoint that
    began to execute, but neither failed validation nor 401, 409 and 429 (docs.stripe.com/error-low-level).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        stored: bool = False,
        should_retry: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = int(status)
        self.kind = kind
        self.code = code
        self.param = param
        self.stored = stored
        self.should_retry = should_retry

    def body(self) -> dict[str, dict[str, str]]:
        """The error as Stripe's JSON: only the fields that are set."""
        error = {"type": self.kind, "code": self.code, "param": self.param, "message": self.message}
        return {"error": {name: value for name, value in error.items() if value is not None}}

    def headers(self) -> dict[str, str]:
        """`Stripe-Should-Retry` when this error carries it."""
        return {} if self.should_retry is None else {"Stripe-Should-Retry": self.should_retry}


def not_found(kind: str, identifier: str, *, param: str = "id") -> ApiError:
    """404: there is no such object."""
    return ApiError(
        f"No such {kind}: '{identifier}'", status=HTTPStatus.NOT_FOUND, code="resource_missing", param=param
    )


def not_allowed(message: str, *, code: str | None = None) -> ApiError:
    """400: the call is well-formed, but the object's state forbids it. Stored under the idempotency key."""
    return ApiError(message, code=code, stored=True)
