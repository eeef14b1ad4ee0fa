"""The permission that each rpc requires.

The server does not start when an rpc has no permission or a permission has no rpc (see interceptor.py).
"""

from collections.abc import Mapping
from typing import Final

BALANCE_READ: Final = "balance.read"
SUBSCRIBE: Final = "subscribe"
CREDITS_ADJUST: Final = "credits.adjust"
TOP_UPS_RESOLVE: Final = "top_ups.resolve"
LEDGER_AUDIT: Final = "ledger.audit"
STRIPE_RELAY: Final = "stripe.relay"
OTP_SEND: Final = "otp.send"
OTP_VERIFY: Final = "otp.verify"
OTP_READ: Final = "otp.read"
OTP_REPORT: Final = "otp.report"

PERMISSIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "pulsa.credit.v1.CreditService": {
        "GetBalance": BALANCE_READ,
        "WatchBalance": BALANCE_READ,
        "GetPricing": BALANCE_READ,
        "QuoteTopUp": BALANCE_READ,
        "CreateTopUp": SUBSCRIBE,
        "GetTopUp": BALANCE_READ,
        "ListTopUps": BALANCE_READ,
        "CancelTopUp": SUBSCRIBE,
        "ResolveTopUp": TOP_UPS_RESOLVE,
        "ListLedgerEntries": BALANCE_READ,
        "UpdateAlerts": SUBSCRIBE,
        "AdjustCredits": CREDITS_ADJUST,
        "VerifyLedger": LEDGER_AUDIT,
        "RecordStripeEvent": STRIPE_RELAY,
    },
    "pulsa.otp.v1.OtpService": {
        "SendOtp": OTP_SEND,
        "ResendOtp": OTP_SEND,
        "VerifyOtp": OTP_VERIFY,
        "GetOtp": OTP_READ,
        "ListOtps": OTP_READ,
        "CancelOtp": OTP_SEND,
        "ReportDelivery": OTP_REPORT,
        "GetUsage": OTP_READ,
    },
}
"""Permissions by the service's full name and the rpc's name."""

ALL_PERMISSIONS: Final = frozenset(permission for rpcs in PERMISSIONS.values() for permission in rpcs.values())
