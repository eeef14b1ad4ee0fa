"""The permission that each rpc requires: `noun.verb`, and `subscribe`.

`subscribe` is the name that the dashboard gives it, so that the platform signs what its users are granted, unchanged.

The server does not start when an rpc has no permission or a permission has no rpc (see interceptor.py).
"""

from collections.abc import Mapping
from typing import Final

BALANCE_READ: Final = "balance.read"
SUBSCRIBE: Final = "subscribe"
ORGANIZATION_SUSPEND: Final = "organization.suspend"
CREDITS_ADJUST: Final = "credits.adjust"
TOP_UPS_RESOLVE: Final = "top_ups.resolve"
LEDGER_AUDIT: Final = "ledger.audit"
STRIPE_RELAY: Final = "stripe.relay"
OTP_SEND: Final = "otp.send"
OTP_VERIFY: Final = "otp.verify"
OTP_READ: Final = "otp.read"
OTP_REPORT: Final = "otp.report"
DESTINATION_ERASE: Final = "destination.erase"
EVENT_READ: Final = "event.read"
EVENT_ENABLE: Final = "event.enable"
SETTINGS_READ: Final = "settings.read"
SETTINGS_WRITE: Final = "settings.write"

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
        "ExportLedger": BALANCE_READ,
        "GetReceipt": BALANCE_READ,
        "GetAlerts": SUBSCRIBE,
        "UpdateAlerts": SUBSCRIBE,
        "GetAutomaticTopUp": SUBSCRIBE,
        "UpdateAutomaticTopUp": SUBSCRIBE,
        "StartCardSetup": SUBSCRIBE,
        "RemoveCard": SUBSCRIBE,
        "AdjustCredits": CREDITS_ADJUST,
        "SuspendOrganization": ORGANIZATION_SUSPEND,
        "ResumeOrganization": ORGANIZATION_SUSPEND,
        "VerifyLedger": LEDGER_AUDIT,
        "RecordStripeEvent": STRIPE_RELAY,
    },
    "pulsa.otp.v1.OtpService": {
        "SendOtp": OTP_SEND,
        "BatchSendOtps": OTP_SEND,
        "PreviewOtps": OTP_SEND,
        "ResendOtp": OTP_SEND,
        "VerifyOtp": OTP_VERIFY,
        "GetOtp": OTP_READ,
        "ListOtps": OTP_READ,
        "CancelOtp": OTP_SEND,
        "ReportDelivery": OTP_REPORT,
        "ReportMail": OTP_REPORT,
        "ListSuppressions": OTP_READ,
        "LiftSuppression": OTP_SEND,
        "GetUsage": OTP_READ,
        "EraseDestination": DESTINATION_ERASE,
        "GetSettings": SETTINGS_READ,
        "UpdateSettings": SETTINGS_WRITE,
        "ListSettingsVersions": SETTINGS_READ,
    },
    "pulsa.event.v1.EventService": {
        "WatchEvents": EVENT_READ,
        "EnableEvents": EVENT_ENABLE,
        "DisableEvents": EVENT_ENABLE,
    },
}
"""Permissions by the service's full name and the rpc's name."""

ALL_PERMISSIONS: Final = frozenset(permission for rpcs in PERMISSIONS.values() for permission in rpcs.values())
