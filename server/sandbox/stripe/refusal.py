"""How Stripe says no: one exception that knows its HTTP status and Stripe's error shape."""

from http import HTTPStatus


class Refusal(Exception):
    """A call that Stripe answers with an error.

    `stored` says whether the answer is kept under the idempotency key: Stripe keeps what an endpoint answered once it
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


def missing(kind: str, identifier: str, *, param: str = "id") -> Refusal:
    """404: there is no such object."""
    return Refusal(f"No such {kind}: '{identifier}'", status=HTTPStatus.NOT_FOUND, code="resource_missing", param=param)


def not_allowed(message: str, *, code: str | None = None) -> Refusal:
    """400: the call is well-formed, but the object's state forbids it. Kept under the idempotency key."""
    return Refusal(message, code=code, stored=True)
