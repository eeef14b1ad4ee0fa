"""Invalid messages to every rpc of a running server cause no internal error, and enter neither memory nor log."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from tests.callers import RPCS
from tests.fuzz.cases import new_cases
from tests.fuzz.environment import open_environment
from tests.fuzz.messages import MARKER, Case, good_request, some_requests
from tests.fuzz.mutations import Mutator
from tests.fuzz.progress import MESSAGES, Progress, seeded_random
from tests.fuzz.rpc_calls import Message, RpcCaller

MESSAGES_PER_RPC = 50
"""Messages to each rpc before new cases are created."""
GENERATED = 25
"""Of these, generated ones, in addition to the valid ones; the rest are mutations."""
MAXIMUM_GROWTH_MEGABYTES = 24
"""By how much the server's memory may grow after the first messages, however many follow."""
WORDS = [
    MARKER.encode(),
    b"\x0b" * 200,  # nested groups
    b"\x80" * 11,  # a varint that does not end
    b"\xfa\x7f\x08" + MARKER.encode(),  # an unknown field
    b"\x0a\xff\xff\xff\xff\x07",  # a string of 2 GiB
    b"\x0a\x03\xed\xa0\x80",  # half of a surrogate pair
]

REFUSED = {"ResolveTopUp", "GetReceipt"}
"""Rpcs that no message here can succeed with: no top-up needs a person, and no day of the ledger has ended."""


def fuzzed(cases: Sequence[Case], random: Random) -> Iterator[list[Message]]:
    """Yield the valid messages of every case, rpc by rpc, then all generated and mutated messages in random order.

    Generating takes seconds of processor time.
    """
    mutator, invalid = Mutator(random, words=WORDS), []
    for rpc, method in RPCS.items():
        request = method.input_type
        good = [good_request(request, case) for case in cases]
        made = some_requests(request, cases, count=GENERATED, number=random.getrandbits(32))
        mutated = MESSAGES_PER_RPC - len(good) - len(made)
        made += [mutator.mutate(random.choice(good + made), random.choice(made)) for _ in range(mutated)]
        invalid += [(rpc, payload) for payload in made]
        # In the order of the contract an OTP is resent before it is verified or canceled.
        yield [(rpc, payload) for payload in good]
    random.shuffle(invalid)
    yield invalid


async def test_no_message_causes_an_internal_error_fills_the_memory_or_enters_the_log(
    database_url: str, tmp_path: Path
) -> None:
    random, progress, warm = seeded_random(), Progress("messages", MESSAGES), 0.0
    async with open_environment(database_url, tmp_path) as environment:
        calls = RpcCaller(environment, seeded_random())
        while progress.is_unfinished:
            cases = await new_cases(environment)
            # In a thread, as the providers' stand-ins must answer meanwhile.
            for messages in await asyncio.to_thread(list, fuzzed(cases, random)):
                await calls.make(messages)
                progress.add(len(messages))
            if not warm and progress.done >= MESSAGES / 5:
                warm = environment.megabytes("serve")
        grown = environment.megabytes("serve") - warm
        findings = await environment.findings()
        served = await environment.deployment.balance("org-0")

    progress.report(f"{dict(Counter(status for _, status in calls.results.elements()))}")
    progress.report(f"{len(calls.findings)} faults, {len(findings)} findings, {grown:.1f} MiB more than {warm:.0f}")
    for finding in [*calls.findings, *findings][:20]:
        progress.report(finding[:1500])
    assert calls.findings == []
    assert findings == []
    assert served >= 0
    assert grown <= MAXIMUM_GROWTH_MEGABYTES
    assert {rpc for rpc in RPCS if calls.results[rpc, "OK"]} == RPCS.keys() - REFUSED
