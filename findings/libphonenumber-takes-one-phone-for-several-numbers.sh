#!/bin/sh
# One phone has two international numbers that libphonenumber takes for valid mobile numbers, and for different ones.
#
# phonenumberslite 9.0.42 (libphonenumber's data of that release), Python 3.11.
#
# A limit per phone number, a deduplication or a block list usually keys on the E.164 form of a number that is valid. A
# guess would be that a phone has one valid form, or that is_number_match tells when two are the same. It is not so where
# a number can be dialled under two country codes, or where a country has changed its numbers and the old ones are still
# in the data:
#   Palestinian mobiles answer under +970 and, from Israel and much of the world, under +972;
#   Kosovo's mobiles had Monaco's code +377 until 2017 and have +383 now;
#   Gabon's mobiles had the form 0X XX XX XX until 2019, and now begin with 6 or 7.
#
# What helps: a table of equal forms that is applied before the number is judged or counted.
#
# Seen:
#   phonenumberslite 9.0.42
#   +970599123456 PS MOBILE valid | +972599123456 IL MOBILE valid | match 1
#   +38344123456 XK MOBILE valid | +37744123456 MC MOBILE valid | match 1
#   +24166031234 GA MOBILE valid | +24106031234 GA MOBILE valid | match 2
# Of is_number_match, 1 is NO_MATCH and 2 is SHORT_NSN_MATCH: one may be a shorter form of the other.
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'phonenumberslite==9.0.42'
cat > "$folder/show.py" <<'PYTHON'
import sys
from importlib.metadata import version

import phonenumbers
from phonenumbers import PhoneNumberType

PAIRS = (("+970599123456", "+972599123456"), ("+38344123456", "+37744123456"), ("+24166031234", "+24106031234"))


def told(text):
    number = phonenumbers.parse(text)
    kind = PhoneNumberType.to_string(phonenumbers.number_type(number))
    valid = "valid" if phonenumbers.is_valid_number(number) else "invalid"
    return f"{text} {phonenumbers.region_code_for_number(number)} {kind} {valid}"


print("phonenumberslite", version("phonenumberslite"))
matches = []
for pair in PAIRS:
    matches.append(phonenumbers.is_number_match(*map(phonenumbers.parse, pair)))
    print(*map(told, pair), f"match {matches[-1]}", sep=" | ")
as_described = matches == [1, 1, 2] and all("MOBILE valid" in told(text) for pair in PAIRS for text in pair)
sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
