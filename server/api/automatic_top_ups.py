"""The rpcs of the credit service that are about automatic top-ups and the card that they charge."""

# ruff: noqa: N802 - a method is named as its rpc

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from google.protobuf.field_mask_pb2 import FieldMask
from pulsa.credit.v1 import automatic_top_up_pb2
from pulsa.credit.v1 import credit_service_pb2 as pb
from pulsa.credit.v1.address_pb2 import Address

from server.api.converters import AUTOMATIC_STATES, timestamp
from server.api.interceptor import Call
from server.credits.top_ups.automatic import AutomaticTopUp, AutomaticTopUpState, Consent
from server.credits.top_ups.automatic_service import AutomaticTopUps, AutomaticTopUpView
from server.credits.top_ups.cards import CardSetupOrder

_COLUMNS: Final = {
    "enabled": "is_enabled",
    "threshold_credits": "threshold_credits",
    "credits": "credits",
    "currency_code": "currency_code",
    "monthly_credit_cap": "monthly_credit_cap",
    "billing_email": "billing_email",
    "billing_name": "billing_name",
    "billing_address": "billing_address",
    "tax_id_type": "tax_id",
    "tax_id": "tax_id",
}
"""The field of AutomaticTopUp of each field of AutomaticTopUpSettings."""
_PLAIN: Final = (
    *("threshold_credits", "credits", "currency_code", "monthly_credit_cap", "billing_email", "billing_name"),
)
"""Fields that are the same on both sides."""
_ANY_TIME: Final = datetime.min.replace(tzinfo=UTC)
_WITH_NEXT_ATTEMPT: Final = frozenset({AutomaticTopUpState.DECLINED, AutomaticTopUpState.CAP_REACHED})


class AutomaticTopUpRpcs:
    """GetAutomaticTopUp, UpdateAutomaticTopUp, StartCardSetup and RemoveCard of pulsa.credit.v1.CreditService."""

    def __init__(self, automatic_top_ups: AutomaticTopUps) -> None:
        self._automatic = automatic_top_ups

    async def GetAutomaticTopUp(self, request: pb.GetAutomaticTopUpRequest, _: Call) -> pb.GetAutomaticTopUpResponse:
        """Return settings, card, consent and state."""
        view = await self._automatic.read(request.organization_id)
        return pb.GetAutomaticTopUpResponse(automatic_top_up=_message(view))

    async def UpdateAutomaticTopUp(
        self, request: pb.UpdateAutomaticTopUpRequest, call: Call
    ) -> pb.UpdateAutomaticTopUpResponse:
        """Change the fields of the mask, with the person's consent while enabled."""
        settings = request.automatic_settings
        view = await self._automatic.update(
            request.organization_id,
            _chosen(request.organization_id, settings),
            {_COLUMNS[name] for name in _fields_of(settings, request.update_mask)},
            Consent(request.consent_text, given_by=call.caller.subject),
        )
        return pb.UpdateAutomaticTopUpResponse(automatic_top_up=_message(view))

    async def StartCardSetup(self, request: pb.StartCardSetupRequest, _: Call) -> pb.StartCardSetupResponse:
        """Return Stripe's page on which a card is saved."""
        order = CardSetupOrder(
            organization_id=request.organization_id,
            request_id=UUID(request.request_id),
            billing_email=request.billing_email,
            billing_name=request.billing_name,
            return_url=request.return_url,
        )
        setup = await self._automatic.start_card_setup(order)
        return pb.StartCardSetupResponse(setup_url=setup.url, expire_time=timestamp(setup.expire_time))

    async def RemoveCard(self, request: pb.RemoveCardRequest, _: Call) -> pb.RemoveCardResponse:
        """Remove the card and switch automatic top-ups off."""
        view = await self._automatic.remove_card(request.organization_id)
        return pb.RemoveCardResponse(automatic_top_up=_message(view))


def _fields_of(settings: automatic_top_up_pb2.AutomaticTopUpSettings, mask: FieldMask) -> Collection[str]:
    """The fields that a valid mask names; of an empty one, those that are set."""
    if list(mask.paths) == ["*"]:
        return _COLUMNS
    return mask.paths or [field.name for field, _ in settings.ListFields()]


def _chosen(organization_id: str, settings: automatic_top_up_pb2.AutomaticTopUpSettings) -> AutomaticTopUp:
    return AutomaticTopUp(
        organization_id,
        _ANY_TIME,
        is_enabled=settings.enabled,
        **{name: getattr(settings, name) for name in _PLAIN},
        billing_address={field.name: value for field, value in settings.billing_address.ListFields()},
        tax_id={"type": settings.tax_id_type, "value": settings.tax_id} if settings.tax_id else {},
    )


def _message(view: AutomaticTopUpView) -> automatic_top_up_pb2.AutomaticTopUp:
    row = view.row
    settings = automatic_top_up_pb2.AutomaticTopUpSettings(
        enabled=row.is_enabled,
        **{name: getattr(row, name) for name in _PLAIN if getattr(row, name)},
        billing_address=Address(**row.billing_address) if row.billing_address else None,
        tax_id_type=row.tax_id.get("type"),
        tax_id=row.tax_id.get("value"),
    )
    message = automatic_top_up_pb2.AutomaticTopUp(
        automatic_settings=settings,
        state=AUTOMATIC_STATES[view.state],
        off_reason=row.off_reason,
        last_top_up_id=str(row.top_up_id or ""),
        failed_charges=row.failed_charges,
        last_failure=row.last_failure,
        next_attempt_time=timestamp(row.next_attempt_time if view.state in _WITH_NEXT_ATTEMPT else None),
        month_credits=view.month_credits,
    )
    if row.payment_method_id is not None:
        message.card.CopyFrom(
            automatic_top_up_pb2.Card(
                brand=row.card_brand,
                last4=row.card_last4,
                expire_month=row.card_expire_month,
                expire_year=row.card_expire_year,
                save_time=timestamp(row.card_save_time),
            )
        )
    if row.consent_time is not None:
        message.consent.CopyFrom(
            automatic_top_up_pb2.Consent(
                consent_text=row.consent_text,
                given_by=row.consent_given_by,
                give_time=timestamp(row.consent_time),
            )
        )
    return message
