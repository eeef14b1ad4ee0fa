"""Every error that a call can end with, each with its gRPC code and documented reason.

DomainError
├── InvalidFields, TokenInvalid, PermissionMissing, OrganizationMismatch, OrganizationSuspended, DeadlineExceeded
├── RequestIdReused, RequestIdExpired
├── InsufficientCredits, BalanceAboveMaximum
├── TopUpBelowMinimum, TopUpAboveMaximum, CurrencyNotSold, TopUpAlreadyOpen, TopUpNotCancelable, TopUpNotFound
├── TopUpPartlyPaid, TopUpNotResolvable, CustomerBalanceUnsettled, BillingAddressMissing
├── CardMissing, ConsentMissing
├── StripeEventInvalid
├── EventsOff, EventsMissed, ReceiptNotFound
├── InvalidDestination, DestinationBlocked, DestinationUnreadable, ChannelNotConfigured
├── SettingsChanged
├── WrongCode, OtpExpired, OtpCanceled, OtpAlreadyVerified, OtpAttemptsExhausted, OtpNotFound, DeliveryNotFound
└── RetryLater: has the time to wait
    ├── Overloaded, ServerDraining, DatabaseUnavailable, AccountBusy, PaymentProviderUnavailable
    └── ResendTooSoon, TooManySends, SpendingCapReached, TooManyGuesses

The first line of a class's docstring is the message that callers receive; its fields are the metadata. Neither may
contain a code, a destination or a secret.
"""

import re
from dataclasses import dataclass, fields
from typing import ClassVar

from grpc import StatusCode

_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass(eq=False)
class DomainError(Exception):
    """An error that the caller can understand and act on."""

    code: ClassVar[StatusCode]
    reason: ClassVar[str]
    """The class name as callers receive it: INSUFFICIENT_CREDITS. Documented in pulsa.error.v1.ErrorReason."""

    def __init_subclass__(cls, code: StatusCode | None = None) -> None:
        if code is not None:
            cls.code = code
        cls.reason = _WORD_START.sub("_", cls.__name__).upper()

    @property
    def message(self) -> str:
        """One sentence for people; programs use the reason and the metadata."""
        return (type(self).__doc__ or "").partition("\n")[0]

    @property
    def metadata(self) -> dict[str, str]:
        """Details of the error, by name."""
        return {field.name: str(getattr(self, field.name)) for field in fields(self)}

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks its rule."""

    field: str
    """The path from the request, such as `destination.email`."""
    description: str
    """The rule; never the value."""


@dataclass(eq=False)
class InvalidFields(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """Some fields are invalid; see the field violations."""

    violations: tuple[FieldViolation, ...]

    @property
    def metadata(self) -> dict[str, str]:
        """The paths of the fields, in order, separated by commas."""
        return {"fields": ",".join(violation.field for violation in self.violations)}


class TokenInvalid(DomainError, code=StatusCode.UNAUTHENTICATED):
    """A valid bearer token is required."""


@dataclass(eq=False)
class PermissionMissing(DomainError, code=StatusCode.PERMISSION_DENIED):
    """The token lacks the permission for this call."""

    permission: str


class OrganizationMismatch(DomainError, code=StatusCode.PERMISSION_DENIED):
    """The token belongs to another organization."""


class OrganizationSuspended(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """An operator suspended the organization; nothing was charged."""


class RequestIdReused(DomainError, code=StatusCode.ALREADY_EXISTS):
    """This request_id was used before with other arguments; nothing was changed."""


class RequestIdExpired(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """Whether this request_id was accepted is not known any more; nothing was changed."""


class DeadlineExceeded(DomainError, code=StatusCode.DEADLINE_EXCEEDED):
    """The caller's deadline passed before the work began; nothing was charged."""


@dataclass(eq=False)
class InsufficientCredits(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """The account has too few credits."""

    required_credits: int
    available_credits: int


@dataclass(eq=False)
class BalanceAboveMaximum(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """The balance would exceed what an account can hold; nothing was written."""

    maximum_credits: int


@dataclass(eq=False)
class TopUpBelowMinimum(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """A top-up must buy at least the minimum of credits."""

    minimum_credits: int


@dataclass(eq=False)
class TopUpAboveMaximum(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """A top-up must buy at most the maximum of credits."""

    maximum_credits: int


@dataclass(eq=False)
class CurrencyNotSold(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """Credits are not sold in this currency."""

    currency_codes: str
    """The currencies that are, separated by commas."""


@dataclass(eq=False)
class TopUpAlreadyOpen(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """An unpaid top-up is open: complete or cancel it first."""

    top_up_id: str
    hosted_invoice_url: str


@dataclass(eq=False)
class TopUpNotCancelable(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """Only an unpaid top-up can be canceled."""

    status: str


class TopUpPartlyPaid(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """A part of the invoice is paid: pay the rest, or let an operator resolve the top-up."""


@dataclass(eq=False)
class TopUpNotResolvable(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """The top-up needs no decision, or not this many credits."""

    status: str
    maximum_credits: int


@dataclass(eq=False)
class CustomerBalanceUnsettled(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """The customer's balance at Stripe must be settled before another invoice."""

    why: str
    """customer_owes, customer_balance_not_paid or rest_below_minimum_charge."""
    customer_url: str
    """The page of Stripe's dashboard where an operator settles it."""


class BillingAddressMissing(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """The tax cannot be computed without the billing address."""


class CardMissing(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """Automatic top-ups need a saved card."""


class ConsentMissing(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """Automatic top-ups need the text that a person agreed to."""


class TopUpNotFound(DomainError, code=StatusCode.NOT_FOUND):
    """The organization has no such top-up."""


class StripeEventInvalid(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """This is not an event that Stripe signed for this endpoint; nothing was stored."""


class ReceiptNotFound(DomainError, code=StatusCode.NOT_FOUND):
    """There is no such entry, or its day is not signed yet."""


class EventsOff(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """Events are not enabled for the organization."""


class EventsMissed(DomainError, code=StatusCode.OUT_OF_RANGE):
    """An event after the cursor is not stored; begin without a cursor."""


@dataclass(eq=False)
class InvalidDestination(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """The destination is not a valid e-mail address or phone number."""

    field: str
    """The path from the request, such as `destination.email`."""


@dataclass(eq=False)
class DestinationBlocked(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """Sends to this destination are not allowed."""

    channel: str


class DestinationUnreadable(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """The OTP's last destination cannot be decrypted any more; give the destination."""


@dataclass(eq=False)
class ChannelNotConfigured(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """No provider is configured for this channel."""

    channel: str


@dataclass(eq=False)
class SettingsChanged(DomainError, code=StatusCode.ABORTED):
    """The settings are not at the version that the change was made on."""

    version: int
    """The one in force."""


@dataclass(eq=False)
class WrongCode(DomainError, code=StatusCode.INVALID_ARGUMENT):
    """The code is wrong; the guess was counted."""

    attempts_remaining: int


class OtpExpired(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """The OTP has expired."""


class OtpCanceled(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """The OTP was canceled."""


class OtpAlreadyVerified(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """The code was accepted before; a code works once."""


class OtpAttemptsExhausted(DomainError, code=StatusCode.FAILED_PRECONDITION):
    """Too many wrong codes were tried for this OTP."""


class OtpNotFound(DomainError, code=StatusCode.NOT_FOUND):
    """The organization has no such OTP."""


class DeliveryNotFound(DomainError, code=StatusCode.NOT_FOUND):
    """The organization has no such delivery."""


@dataclass(eq=False)
class RetryLater(DomainError):
    """The call cannot be served now; the caller should repeat it after the given time."""

    retry_after_seconds: float

    @property
    def metadata(self) -> dict[str, str]:
        """The other fields: the time to wait is sent as RetryInfo."""
        return {field.name: str(getattr(self, field.name)) for field in fields(self)[1:]}


class Overloaded(RetryLater, code=StatusCode.RESOURCE_EXHAUSTED):
    """Too many calls are in flight; nothing was charged."""


class ServerDraining(RetryLater, code=StatusCode.UNAVAILABLE):
    """This server is stopping; repeat with the same request_id."""


class DatabaseUnavailable(RetryLater, code=StatusCode.UNAVAILABLE):
    """The database did not answer; repeat with the same request_id."""


class AccountBusy(RetryLater, code=StatusCode.UNAVAILABLE):
    """Another transaction holds the organization's account; nothing was charged."""


class PaymentProviderUnavailable(RetryLater, code=StatusCode.UNAVAILABLE):
    """Stripe did not answer; repeat with the same request_id."""


class ResendTooSoon(RetryLater, code=StatusCode.RESOURCE_EXHAUSTED):
    """A code was just sent to this destination for this purpose."""


@dataclass(eq=False)
class TooManySends(RetryLater, code=StatusCode.RESOURCE_EXHAUSTED):
    """A limit on sends was reached."""

    limit: str
    """Which one: `destination_hour`, `destination_day`, `organization_minute`, `country` or `prefix`."""


@dataclass(eq=False)
class SpendingCapReached(RetryLater, code=StatusCode.RESOURCE_EXHAUSTED):
    """The send would exceed the organization's spending cap for the day; nothing was charged."""

    daily_credit_cap: int
    spent_credits: int


class TooManyGuesses(RetryLater, code=StatusCode.RESOURCE_EXHAUSTED):
    """Too many wrong codes were tried for this destination."""
