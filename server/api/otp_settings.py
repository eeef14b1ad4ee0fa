"""The rpcs of the OTP service that read and change an organization's settings."""

# ruff: noqa: N802 - a method is named as its rpc

from dataclasses import dataclass
from functools import partial
from typing import Final

from pulsa.otp.v1 import otp_service_pb2 as pb

from server.api.interceptor import Call
from server.api.pagination import DEFAULT_PAGE_SIZE, PageTokens, write_page
from server.api.settings_messages import chosen_settings, effective_message, fields_of, write_version
from server.otps.organization_settings import SettingsVersion, list_versions, read_settings, update_settings
from server.otps.settings_cache import SettingsCache
from server.postgres.pool import Pool

_AFTER_THE_LAST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SettingsDependencies:
    """What the rpcs of the settings use."""

    pool: Pool
    cache: SettingsCache
    low_balance_threshold: int
    """Of an account that a change creates."""


class OtpSettings:
    """GetSettings, UpdateSettings and ListSettingsVersions of pulsa.otp.v1.OtpService."""

    def __init__(self, dependencies: SettingsDependencies) -> None:
        self._settings = dependencies

    async def GetSettings(self, request: pb.GetSettingsRequest, _: Call) -> pb.GetSettingsResponse:
        """Return the settings in force, chosen and effective."""
        organization_id = request.organization_id
        current = await read_settings(self._settings.pool, organization_id)
        operator = self._settings.cache.operator
        response = pb.GetSettingsResponse(test_organization=organization_id in operator.test_organizations)
        self._write_current(response, organization_id, current)
        return response

    async def UpdateSettings(self, request: pb.UpdateSettingsRequest, call: Call) -> pb.UpdateSettingsResponse:
        """Change the fields of the mask, and return the settings in force."""
        organization_id, dependencies = request.organization_id, self._settings
        fields = fields_of(request.settings, request.update_mask)
        current = await update_settings(
            dependencies.pool,
            organization_id,
            chosen_settings(request.settings),
            fields,
            check=partial(dependencies.cache.operator.check, fields=fields),
            expected_version=request.expected_version if request.HasField("expected_version") else None,
            updated_by=call.caller.subject,
            low_balance_threshold=dependencies.low_balance_threshold,
            now=dependencies.pool.now(),
        )
        await dependencies.cache.refresh(dependencies.pool)
        response = pb.UpdateSettingsResponse()
        self._write_current(response, organization_id, current)
        return response

    async def ListSettingsVersions(
        self, request: pb.ListSettingsVersionsRequest, _: Call
    ) -> pb.ListSettingsVersionsResponse:
        """Return a page of versions, newest first."""
        tokens = PageTokens("ListSettingsVersions", request.organization_id, newest=_AFTER_THE_LAST)
        size = request.page_size or DEFAULT_PAGE_SIZE
        versions = await list_versions(
            self._settings.pool,
            request.organization_id,
            before_version=tokens.read(request.page_token),
            limit=size + 1,
        )
        response = pb.ListSettingsVersionsResponse()
        if last := write_page(response.settings_versions, versions, write_version, size=size):
            response.next_page_token = tokens.write(last.version)
        return response

    def _write_current(
        self,
        response: pb.GetSettingsResponse | pb.UpdateSettingsResponse,
        organization_id: str,
        current: SettingsVersion,
    ) -> None:
        write_version(response.current, current)
        effective = self._settings.cache.operator.apply(organization_id, current.version, current.settings)
        response.effective_settings.CopyFrom(effective_message(effective, current.settings))
