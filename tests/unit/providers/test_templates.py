"""Templates: the texts of messages, by locale and purpose, built in and from a folder."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path

import pytest

from server.providers.provider import Channel, Identity, Message
from server.providers.sms_segments import segments
from server.providers.templates import WEB_OTP_DOMAIN_LENGTH, Templates, load_templates

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PURPOSES = ("default", "login", "sign_up", "payment", "password_reset")
GOOD = 'sms = "{brand}{code} {time}"\nsubject = "S"\nemail = "{brand}\\n\\n{code}\\n\\n{time}"\n'
UNITS = '[units]\nminutes = "{n} min"\nseconds = "{n} s"\n'

MakeMessage = Callable[..., Message]


@pytest.fixture(scope="module")
def templates() -> Templates:
    return load_templates(None)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("locale", ["en", "id", "ar"])
def test_every_built_in_text_is_one_message_with_its_web_otp_line_last(
    templates: Templates, make_message: MakeMessage, locale: str, purpose: str
) -> None:
    domain = "d" * WEB_OTP_DOMAIN_LENGTH
    message = make_message(locale=locale, purpose=purpose, domain=domain, code="12345678", ttl=timedelta(minutes=10))

    text = templates.render(message, now=NOW).text

    assert segments(text).count == 1
    assert text.splitlines()[-1] == f"@{domain} #12345678"
    assert "12345678" in text.splitlines()[0]
    assert "10" in text.splitlines()[0]
    assert templates.by_locale[locale][purpose].locale == locale


def test_a_domain_that_would_cost_a_second_message_loses_its_line(
    templates: Templates, make_message: MakeMessage
) -> None:
    rendered = templates.render(make_message(locale="ar", domain="d" * 60), now=NOW)
    text = rendered.text

    assert "@" not in text
    assert not rendered.autofill
    assert segments(text).count == 1


@pytest.mark.parametrize(
    ("locale", "purpose", "start"),
    [
        ("id-ID", "login", "123456 adalah kode masuk"),
        ("id_ID", "LOGIN", "123456 adalah kode masuk"),
        ("ID-Latn-ID", "never_heard_of", "123456 adalah kode Anda"),
        ("fr-FR", "login", "123456 is your sign-in code"),
        ("", "", "123456 is your code"),
        ("-", "login", "123456 is your sign-in code"),
        ("in", "login", "123456 adalah kode masuk"),
        ("in-ID", "login", "123456 adalah kode masuk"),
        ("in_ID", "login", "123456 adalah kode masuk"),
        ("id_ID_#Latn", "login", "123456 adalah kode masuk"),
    ],
)
def test_a_locale_falls_back_to_its_language_then_english_and_a_purpose_to_the_default(
    templates: Templates, make_message: MakeMessage, locale: str, purpose: str, start: str
) -> None:
    rendered = templates.render(make_message(locale=locale, purpose=purpose), now=NOW)

    assert rendered.text.startswith(start)
    assert (rendered.subject, rendered.html) == ("", "")


@pytest.mark.parametrize(
    ("seconds", "locale", "time"),
    [
        (0.5, "en", "0 s"),
        (30, "en", "30 s"),
        (59.9, "en", "59 s"),
        (60, "en", "1 min"),
        (151, "en", "2 min"),
        (299, "en", "4 min"),
        (600, "en", "10 min"),
        (30, "id", "30 detik"),
        (151, "id", "2 menit"),
        (30, "ar", "30 ث"),
        (151, "ar", "2 د"),
    ],
)
def test_the_text_promises_no_more_time_than_there_is(
    templates: Templates, make_message: MakeMessage, seconds: float, locale: str, time: str
) -> None:
    for channel in (Channel.SMS, Channel.EMAIL):
        message = make_message(channel=channel, ttl=timedelta(seconds=seconds), locale=locale)
        assert f" {time}" in templates.render(message, now=NOW).text


def test_right_to_left_text_isolates_the_code(templates: Templates, make_message: MakeMessage) -> None:
    message = make_message(channel=Channel.EMAIL, locale="ar")

    rendered = templates.render(message, now=NOW)

    assert "\u2066123456\u2069" in rendered.text
    assert 'dir="rtl"' in rendered.html
    # The paragraph of the code is aligned as the text around it.
    assert '<bdi dir="ltr">123456</bdi></p>' in rendered.html
    assert rendered.html.count('dir="ltr"') == 1


def test_an_email_has_the_code_in_its_text_and_html_and_not_in_its_subject(
    templates: Templates, make_message: MakeMessage
) -> None:
    rendered = templates.render(make_message(channel=Channel.EMAIL), now=NOW)

    assert rendered.subject == "Your sign-in code"
    assert "\n\n123456\n\n" in rendered.text
    assert ">123456</bdi></p>" in rendered.html
    assert "5 min" in rendered.html
    assert 'name="color-scheme" content="light dark"' in rendered.html
    assert "color:#" not in rendered.html


def test_the_operators_texts_override_the_built_in_ones_and_are_escaped(
    tmp_path: Path, make_message: MakeMessage
) -> None:
    (tmp_path / "en.toml").write_text("[login]\n" + GOOD.replace("\\n{code}", "\\n<b> & {code}{code}"))
    (tmp_path / "pt-BR.toml").write_text(
        UNITS.replace("} min", "} minutos") + "[default]\n" + GOOD.replace("{brand}{", "{brand}oi {")
    )

    templates = load_templates(tmp_path)

    own = templates.render(make_message(channel=Channel.EMAIL), now=NOW)
    assert own.subject == "S"
    assert "<p>&lt;b&gt; &amp; 123456123456</p>" in own.html
    assert templates.render(make_message(locale="pt-BR"), now=NOW).text == "oi 123456 5 minutos"
    assert "create an account" in templates.render(make_message(purpose="sign_up"), now=NOW).text


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("en.toml", "[login]\nsms = 1", "must hold exactly sms, subject, email"),
        ("en.toml", 'login = "x"', "must hold exactly"),
        ("en.toml", "[login]\n" + GOOD.replace('sms = "{brand}{code} {time}"', "sms = 1"), "sms must be a text"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", ""), "sms must hold {brand}, {code} and {time}"),
        ("en.toml", "[login]\n" + GOOD.replace("\\n{time}", ""), "email must hold {brand}, {code}"),
        ("en.toml", "[login]\n" + GOOD.replace("{brand}{", "{"), "sms must hold {brand}, {code} and {time}"),
        ("en.toml", "[login]\n" + GOOD.replace("{brand}{code}", "{code}{brand}"), "sms must begin with {brand}"),
        (
            "en.toml",
            "[login]\n" + GOOD.replace("{brand}{code}", "{brand}{brand}{code}"),
            "{brand} must be in each text once",
        ),
        ("en.toml", "[login]\n" + GOOD.replace("{brand}\\n\\n", "{brand} "), "{brand} in a paragraph of its own"),
        ("en.toml", "[login]\n" + GOOD.replace('"S"', '"{code}"'), "subject must be one line without placeholders"),
        ("en.toml", "[login]\n" + GOOD.replace('"S"', '"S\\nBcc: x"'), "subject must be one line"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code.__class__} "), "a placeholder other than"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code!r} "), "a placeholder other than"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code} {name} "), "a placeholder other than"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code} } "), "a brace that is no placeholder"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code} https://x "), "holds a link"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code} example.com "), "holds a link"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code} " + "a" * 110), "must fit one segment"),
        ("en.toml", "[login]\n" + GOOD.replace("{code} ", "{code} ó" + "a" * 19), "must fit one segment"),
        ("en.toml", "[Log-in]\n" + GOOD, "is no purpose"),
        ("english.toml", UNITS + "[default]\n" + GOOD, "no locale"),
        ("fr.toml", UNITS + "[login]\n" + GOOD, "needs a table [default]"),
        ("fr.toml", "[default]\n" + GOOD, "needs a table [units] with minutes and seconds"),
        ("fr.toml", "units = 1", "[units] must hold exactly minutes and seconds"),
        ("fr.toml", UNITS.replace("{n} s", "s"), "[units] must be texts with {n}"),
        ("fr.toml", UNITS.replace("{n} s", "{n.x} s"), "[units] must be texts with {n}"),
        ("en.toml", "[login]\n" + GOOD.replace("{time}", "{minutes}"), "a placeholder other than"),
        ("en.toml", "[login", "is not TOML"),
    ],
)
def test_an_invalid_template_is_refused_with_its_file_and_reason(
    tmp_path: Path, name: str, content: str, rule: str
) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(ValueError, match="toml: ") as raised:
        load_templates(tmp_path)

    assert rule in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("words", ["a" * 109, "ó" + "a" * 18])
def test_the_longest_text_that_fits_one_message_loads(tmp_path: Path, words: str) -> None:
    (tmp_path / "en.toml").write_text("[login]\n" + GOOD.replace("{code} ", "{code} " + words))

    load_templates(tmp_path).check_brand("B" * 20)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("locale", ["en", "id", "ar"])
@pytest.mark.parametrize("brand", ["Acme", "Ärzte@Süd & Co_Ünlü!", "B" * 20])
def test_a_message_with_a_brand_name_stays_one_segment(
    templates: Templates, make_message: MakeMessage, brand: str, locale: str, purpose: str
) -> None:
    domain = "d" * WEB_OTP_DOMAIN_LENGTH
    identity = Identity(1, brand)
    message = make_message(locale=locale, purpose=purpose, domain=domain, code="12345678", ttl=timedelta(minutes=10))

    templates.check_brand(brand)
    text = templates.render(message._replace(identity=identity), now=NOW).text
    email = templates.render(message._replace(identity=identity, channel=Channel.EMAIL), now=NOW)
    plain = templates.render(message, now=NOW)

    assert segments(text).count == 1
    assert segments(text).encoding == segments(plain.text).encoding
    assert text.startswith(f"\u2068{brand}\u2069: " if locale == "ar" else f"{brand}: ")
    assert email.text.startswith(f"{brand}\n\n")
    assert f"<bdi>{escape(brand)}</bdi>" in email.html
    assert brand not in plain.text


@pytest.mark.parametrize(
    ("brand", "rule"),
    [
        ("Şirket", "of the GSM alphabet leaves room for 70"),
        ("بنك", "of the GSM alphabet leaves room for 70"),
        ("acme.example", "no link"),
        ("www.acme", "no link"),
        ("Ac\u202eme", "without invisible characters"),
        ("Ac\u200bme", "without invisible characters"),
        (" Acme", "without spaces around it"),
    ],
)
def test_a_brand_name_that_would_cost_or_mislead_is_refused(templates: Templates, brand: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        templates.check_brand(brand)


def test_a_file_named_by_an_old_language_code_serves_the_language(tmp_path: Path, make_message: MakeMessage) -> None:
    (tmp_path / "iw_IL.toml").write_text(UNITS + "[default]\n" + GOOD)

    rendered = load_templates(tmp_path).render(make_message(locale="he-IL"), now=NOW)

    assert rendered.text == "123456 5 min"


@pytest.mark.parametrize("locale", ["en", "id", "ar"])
def test_the_hash_of_an_app_is_the_last_line(templates: Templates, make_message: MakeMessage, locale: str) -> None:
    rendered = templates.render(make_message(locale=locale, domain="#FA+9qCX9VSu"), now=NOW)

    assert rendered.text.splitlines()[-1] == "FA+9qCX9VSu"
    assert rendered.autofill
    assert segments(rendered.text).count == 1


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there"):
        load_templates(tmp_path / "none")
