// The client against a scripted server: tokens, deadlines, repeats, errors, streams.

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, formatMoney, PulsaClient, PulsaError } from "pulsa-client";
import { type Refusal, type ScriptedServer, scriptedServer } from "./scripted.js";

let server: ScriptedServer;
let pulsa: PulsaClient;
/** 10,000 take ten seconds of processor time. */
const CALLS_AT_ONCE = Number(process.env.CALLS_AT_ONCE ?? 1_000);
const REQUEST = { organizationId: "acme" };
const OVERLOADED: Refusal = { code: Code.ResourceExhausted, reason: "OVERLOADED", retryAfterMs: 10 };

before(async () => {
  server = await scriptedServer();
  pulsa = new PulsaClient({ baseUrl: server.baseUrl, token: "secret" });
});
after(() => {
  pulsa.close();
  server.close();
});
beforeEach(() => {
  server.requests.length = 0;
  server.refusals.length = 0;
  server.cuts.length = 0;
  server.messages = 1;
  server.isSilent = false;
});

async function refused(call: Promise<unknown>): Promise<PulsaError> {
  const error = await call.then(
    () => assert.fail("the call was not refused"),
    (reason: unknown) => reason,
  );
  assert(error instanceof PulsaError, String(error));
  return error;
}

function fieldError(name: string): (error: Error) => boolean {
  return (error) => !(error instanceof PulsaError) && error.message.includes(name);
}

test("a call has the token that the provider returns for it", async () => {
  let tokens = 0;
  const client = new PulsaClient({ baseUrl: server.baseUrl, token: async () => `token-${++tokens}` });
  await client.credits.getBalance(REQUEST);
  await client.credits.getBalance(REQUEST);
  client.close();
  assert.deepEqual(
    server.requests.map(({ token }) => token),
    ["Bearer token-1", "Bearer token-2"],
  );
});

test("a refusal has everything that the server sent", async () => {
  server.refusals.push({
    code: Code.InvalidArgument,
    reason: "INVALID_FIELDS",
    metadata: { fields: "page_size" },
    retryAfterMs: 12_500,
    violations: [{ field: "page_size", description: "0 to 500" }],
  });
  const error = await refused(pulsa.credits.getBalance(REQUEST));
  assert.equal(error.message, "INVALID_FIELDS: a message of the server");
  assert.deepEqual(
    [error.code, error.reason, error.metadata, error.retryAfterMs, error.violations],
    [
      Code.InvalidArgument,
      "INVALID_FIELDS",
      { fields: "page_size" },
      12_500,
      [{ field: "page_size", description: "0 to 500" }],
    ],
  );
});

for (const [refusal, attempts] of [
  [{ code: Code.Unavailable }, 4],
  [{ code: Code.Canceled }, 4],
  [{ code: Code.Unavailable, reason: "SERVER_DRAINING", retryAfterMs: 10 }, 4],
  [OVERLOADED, 4],
  [{ code: Code.ResourceExhausted, reason: "RESEND_TOO_SOON", retryAfterMs: 10 }, 1],
  [{ code: Code.ResourceExhausted, reason: "TOO_MANY_SENDS", retryAfterMs: 10 }, 1],
  [{ code: Code.ResourceExhausted }, 1],
  [{ code: Code.Internal }, 1],
  [{ code: Code.Unknown }, 1],
  [{ code: Code.Aborted }, 1],
  [{ code: Code.DeadlineExceeded }, 1],
] satisfies [Refusal, number][]) {
  test(`a send that ends with ${Code[refusal.code]} ${refusal.reason ?? ""} is tried ${attempts} times`, async () => {
    server.refusals.push(...Array<Refusal>(10).fill(refusal));
    const error = await refused(pulsa.otps.sendOtp({ organizationId: "acme", requestId: "the same" }));
    assert.equal(error.code, refusal.code);
    assert.deepEqual(
      server.requests.map(({ message }) => (message as { requestId: string }).requestId),
      Array(attempts).fill("the same"),
    );
  });
}

for (const code of [Code.Unavailable, Code.Canceled]) {
  test(`a guess that ends with ${Code[code]} is not repeated, unlike one that the server had no room for`, async () => {
    server.refusals.push(OVERLOADED, { code });
    const error = await refused(pulsa.otps.verifyOtp({ organizationId: "acme", code: "1" }));
    assert.deepEqual([error.code, server.requests.length], [code, 2]);
  });
}

for (const cut of ["refused", "reset"] as const) {
  test(`a send whose stream is ${cut} is repeated`, async () => {
    server.cuts.push(cut, cut);
    await pulsa.otps.sendOtp({ organizationId: "acme", requestId: "the same" });
    assert.equal(server.requests.length, 1);
    server.cuts.push(cut, cut, cut, cut);
    assert.equal((await refused(pulsa.otps.sendOtp({ organizationId: "acme" }))).code, Code.Unavailable);
  });

  test(`a watched balance goes on after its stream was ${cut}`, async () => {
    server.cuts.push(cut);
    for await (const _ of pulsa.watchBalance("acme")) {
      break;
    }
  });
}

test("a guess is repeated when the server has not looked at it, and not when its connection broke", async () => {
  server.cuts.push("refused");
  await pulsa.otps.verifyOtp({ organizationId: "acme", code: "1" });
  server.cuts.push("reset");
  assert.equal((await refused(pulsa.otps.verifyOtp({ organizationId: "acme", code: "1" }))).code, Code.Unavailable);
  assert.equal(server.requests.length, 1);
});

test("a repeat that would come after the deadline is not waited for", async () => {
  server.refusals.push({ ...OVERLOADED, retryAfterMs: 60_000 });
  assert.equal((await refused(pulsa.credits.getBalance(REQUEST))).retryAfterMs, 60_000);
});

test("a server that does not answer ends the call at its deadline", async () => {
  const client = new PulsaClient({ baseUrl: "http://127.0.0.1:1", token: "secret", timeoutMs: 300 });
  const error = await refused(client.credits.getBalance(REQUEST));
  client.close();
  assert([Code.Unavailable, Code.DeadlineExceeded].includes(error.code));
});

for (const timeoutMs of [0, -1, NaN, Infinity, 2 ** 31]) {
  test(`a deadline of ${timeoutMs} ms is refused`, async () => {
    assert.throws(() => new PulsaClient({ baseUrl: server.baseUrl, token: "", timeoutMs }), RangeError);
    await assert.rejects(pulsa.credits.getBalance(REQUEST, { timeoutMs }), RangeError);
    assert.equal(server.requests.length, 0);
  });
}

test(`${CALLS_AT_ONCE} calls at once are all answered, once each`, async () => {
  const call = () => pulsa.credits.getBalance(REQUEST, { timeoutMs: 120_000 });
  await Promise.all(Array.from({ length: CALLS_AT_ONCE }, call));
  assert.equal(server.requests.length, CALLS_AT_ONCE);
});

test("a repeat has the time that is left", async () => {
  server.refusals.push({ ...OVERLOADED, retryAfterMs: 500 });
  await pulsa.credits.getBalance(REQUEST, { timeoutMs: 5_000 });
  const [first, second] = server.requests.map(({ timeoutMs }) => timeoutMs ?? Infinity) as [number, number];
  assert(first <= 5_000 && second <= 4_500);
});

for (const [end, leave] of [
  ["its client is closed", (client: PulsaClient) => client.close()],
  ["its signal is aborted", (_: PulsaClient, abort: AbortController) => abort.abort()],
] as const) {
  test(`a call in progress, or one that waits for its repeat, ends when ${end}`, { timeout: 5_000 }, async () => {
    const ways = [() => server.cuts.push("silent"), () => server.refusals.push({ ...OVERLOADED, retryAfterMs: 8_000 })];
    for (const prepare of ways) {
      const client = new PulsaClient({ baseUrl: server.baseUrl, token: "secret" });
      const abort = new AbortController();
      prepare();
      const call = refused(client.credits.getBalance(REQUEST, { signal: abort.signal }));
      while (server.cuts.length + server.refusals.length > 0) {
        await sleep(10);
      }
      await sleep(100); // so that the refusal has arrived
      leave(client, abort);
      await call;
      client.close();
    }
    assert.equal(server.requests.length, 1);
  });
}

for (const [value, name] of [
  [2n ** 63n, "adjust_credits"],
  [-(2n ** 63n) - 1n, "adjust_credits"],
  [1.5 as unknown as bigint, "adjust_credits"],
  ["1e3" as unknown as bigint, "adjust_credits"],
] as const) {
  test(`${value} credits are refused and not sent`, async () => {
    await assert.rejects(pulsa.credits.adjustCredits({ ...REQUEST, adjustCredits: value }), fieldError(name));
    assert.equal(server.requests.length, 0);
  });
}

test("an int32 that its field cannot hold is refused and not sent", async () => {
  await assert.rejects(pulsa.otps.listOtps({ ...REQUEST, pageSize: 3_000_000_000 }), fieldError("page_size"));
});

for (const cut of [
  undefined,
  { code: Code.Internal },
  { code: Code.Unknown },
  { code: Code.Canceled },
  { code: Code.Unavailable, reason: "DATABASE_UNAVAILABLE" },
  { code: Code.Unauthenticated, reason: "TOKEN_INVALID" },
  OVERLOADED,
] satisfies (Refusal | undefined)[]) {
  test(`a watched balance goes on after ${cut ? Code[cut.code] : "the end of its stream"}`, async () => {
    server.refusals.push(...(cut ? [cut] : []));
    let balances = 0;
    for await (const _ of pulsa.watchBalance("acme")) {
      if (++balances === 3) {
        break;
      }
    }
    assert(server.requests.length >= 2);
  });
}

test("watched events go on after the last cursor", async () => {
  server.refusals.push({ code: Code.Unavailable });
  const cursors: string[] = [];
  for await (const { cursor } of pulsa.watchEvents("acme", { cursor: "start" })) {
    cursors.push(cursor);
    if (cursors.length === 3) {
      break;
    }
  }
  assert.deepEqual(cursors, ["start+", "start++", "start+++"]);
});

for (const refusal of [
  { code: Code.PermissionDenied, reason: "PERMISSION_MISSING" },
  { code: Code.Internal, reason: "INTERNAL" }, // unlike a proxy's, it has a reason
  { code: Code.DeadlineExceeded },
]) {
  test(`a watched balance ends when the server refuses it with ${Code[refusal.code]}`, async () => {
    server.refusals.push(refusal);
    const balances = pulsa.watchBalance("acme");
    await balances.next();
    assert.equal((await refused(balances.next())).code, refusal.code);
    assert.equal(server.requests.length, 1);
  });
}

test("a watched balance ends with a token that is refused from the beginning", async () => {
  server.refusals.push(...Array(2).fill({ code: Code.Unauthenticated, reason: "TOKEN_INVALID" }));
  const balances = pulsa.watchBalance("acme");
  await balances.next();
  server.messages = 0;
  assert.equal((await refused(balances.next())).reason, "TOKEN_INVALID");
  assert.equal(server.requests.length, 2);
});

test("a stream that cannot be opened is tried again after growing pauses", async () => {
  server.messages = 0;
  server.refusals.push(...Array(3).fill({ code: Code.Unavailable }), { code: Code.PermissionDenied });
  const began = performance.now();
  await refused(pulsa.watchBalance("acme").next());
  assert(performance.now() - began >= 690);
});

test("a watched balance ends when its signal is aborted, and with its client", async () => {
  const abort = new AbortController();
  for await (const _ of pulsa.watchBalance("acme", abort.signal)) {
    abort.abort();
  }
  const client = new PulsaClient({ baseUrl: server.baseUrl, token: "secret" });
  for await (const _ of client.watchBalance("acme")) {
    client.close();
  }
});

test("a stream that is left ends at the server too", { timeout: 10_000 }, async () => {
  server.isSilent = true;
  for (const balances of [pulsa.watchBalance("acme"), pulsa.credits.watchBalance(REQUEST)]) {
    for await (const _ of balances) {
      break;
    }
  }
  while (server.requests.length < 2) {
    await sleep(10);
  }
});

test("money is written exactly", () => {
  const money = (currencyCode: string, units: bigint, nanos = 0) => ({ currencyCode, units, nanos }) as never;
  assert.equal(formatMoney(money("USD", 12n, 340_000_000)), "$12.34");
  assert.equal(formatMoney(money("USD", -12n, -340_000_000)), "-$12.34");
  assert.equal(formatMoney(money("USD", 0n, -340_000_000)), "-$0.34");
  assert.equal(formatMoney(money("USD", 0n, 1)), "$0.000000001");
  assert.equal(formatMoney(money("IDR", 150_000n), "id").replace(/\s/, " "), "Rp 150.000");
  assert.equal(formatMoney(money("USD", 2n ** 63n - 1n)), "$9,223,372,036,854,775,807.00");
  assert.throws(() => formatMoney(money("USD", 1n, -1)), RangeError);
  assert.throws(() => formatMoney(money("USD", 1n, 1_000_000_000)), RangeError);
});
