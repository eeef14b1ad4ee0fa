"""Messages that nobody should send, to every rpc of a real server: nothing is Pulsa's own fault, nothing leaks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from tests.callers import RPCS
from tests.fuzz.calls import Calls, Message
from tests.fuzz.cases import new_cases
from tests.fuzz.ground import open_ground
from tests.fuzz.messages import MARKER, Case, good_request, some_requests
from tests.fuzz.mutations import Mutator
from tests.fuzz.scale import MESSAGES, Progress, chance

EACH = 50
"""Messages to an rpc, before there are new cases."""
GENERATED = 25
"""Of them, beside the good ones; the rest are mutations."""
MOST_MEGABYTES = 24
"""What the server may grow by after its first messages, however many come."""
WORDS = [
    MARKER.encode(),
    b"\x0b" * 200,  # groups in groups
    b"\x80" * 11,  # a number without end
    b"\xfa\x7f\x08" + MARKER.encode(),  # a field that nobody knows
    b"\x0a\xff\xff\xff\xff\x07",  # a text of 2 GiB
    b"\x0a\x03\xed\xa0\x80",  # half of a surrogate pair
]


def fuzzed(cases: Sequence[Case], random: Random) -> Iterator[list[Message]]:
    """The good ones of every case, rpc by rpc, and then generated ones and what mutation makes of both, mingled."""
    mutator, odd = Mutator(random, words=WORDS), []
    for rpc, method in RPCS.items():
        request = method.input_type
        good = [good_request(request, case) for case in cases]
        made = some_requests(request, cases, count=GENERATED, number=random.getrandbits(32))
        spoiled = EACH - len(good) - len(made)
        made += [mutator.mutate(random.choice(good + made), random.choice(made)) for _ in range(spoiled)]
        odd += [(rpc, payload) for payload in made]
        # In the contract's order an OTP is sent again before it is verified or canceled.
        yield [(rpc, payload) for payload in good]
    random.shuffle(odd)
    yield odd


async def test_no_message_is_pulsas_own_fault_or_is_kept_or_told(database_url: str, tmp_path: Path) -> None:
    random, progress, warm = chance(), Progress("messages", MESSAGES), 0.0
    async with open_ground(database_url, tmp_path) as ground:
        calls = Calls(ground, chance())
        while progress.goes_on:
            for messages in fuzzed(await new_cases(ground), random):
                await calls.make(messages)
                progress.add(len(messages))
            if not warm and progress.done >= MESSAGES / 5:
                warm = ground.megabytes("serve")
        grown = ground.megabytes("serve") - warm
        complaints = await ground.complaints()
        served = await ground.site.balance("org-0")

    progress.tell(f"{dict(Counter(end for _, end in calls.ends.elements()))}")
    progress.tell(f"{len(calls.findings)} faults, {len(complaints)} complaints, {grown:.1f} MiB more than {warm:.0f}")
    for finding in [*calls.findings, *complaints][:20]:
        progress.tell(finding[:1500])
    assert calls.findings == []
    assert complaints == []
    assert served >= 0
    assert grown <= MOST_MEGABYTES
    assert {rpc for rpc in RPCS if calls.ends[rpc, "OK"]} == RPCS.keys()
