"""The settings of providers do not print their secrets."""

import pytest

from server.providers.smtp import SmtpSettings
from server.providers.twilio import TwilioSettings
from server.providers.vonage import VonageSettings
from server.providers.whatsapp import WhatsAppSettings


@pytest.mark.parametrize(
    "settings",
    [
        SmtpSettings("localhost", "a@example.com", username="u", password="hush"),
        TwilioSettings("AC1", "hush", "+15005550006"),
        VonageSettings("key", "hush", "Pulsa"),
        WhatsAppSettings("1055", "hush", "one_time_code"),
    ],
)
def test_the_settings_of_a_provider_do_not_print_its_secret(settings: object) -> None:
    assert "hush" not in repr(settings)
