// Batches against a scripted server: how many calls, which are made again, and what they return.

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import { Code, PulsaClient, PulsaError, type SendOtp } from "pulsa-client";
import { ErrorReason } from "pulsa-client/pulsa/error/v1/error_reason_pb";
import type { BatchSendOtpsRequest } from "pulsa-client/pulsa/otp/v1/otp_service_pb";
import { type Refusal, type ScriptedServer, scriptedServer } from "./scripted.js";

let server: ScriptedServer;
let pulsa: PulsaClient;

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
  server.undecided.clear();
});

function sends(count: number, context = ""): SendOtp[] {
  return Array.from({ length: count }, (_, number) => ({ requestId: String(number), context }));
}

/** The request_ids of each call. */
function calls(): string[][] {
  return server.requests.map(({ message }) => (message as BatchSendOtpsRequest).requests.map(({ requestId }) => requestId));
}

test("a batch is split by number, has a result for each request in its place, and tells its progress", async () => {
  const progress: number[] = [];
  const results = await pulsa.sendBatch("acme", sends(5), { largest: 2, progress: (decided) => progress.push(decided) });
  assert.deepEqual(calls(), [["0", "1"], ["2", "3"], ["4"]]);
  assert.deepEqual(progress, [2, 4, 5]);
  assert.deepEqual(
    results.map(({ result }) => result.case === "compact" && result.value.otpId),
    ["otp of 0", "otp of 1", "otp of 2", "otp of 3", "otp of 4"],
  );
  assert.deepEqual(await pulsa.sendBatch("acme", []), []);
});

test("a batch is split by size", async () => {
  await pulsa.sendBatch("acme", sends(4, "x".repeat(400_000)));
  assert.deepEqual(calls(), [["0", "1"], ["2", "3"]]);
});

for (const reason of [ErrorReason.ACCOUNT_BUSY, ErrorReason.DATABASE_UNAVAILABLE, ErrorReason.SERVER_DRAINING]) {
  test(`a request that ended ${ErrorReason[reason]} is sent again with the same id, before the others`, async () => {
    server.undecided.set("1", reason);
    const results = await pulsa.sendBatch("acme", sends(4), { largest: 2 });
    assert.deepEqual(calls(), [["0", "1"], ["1", "2"], ["3"]]);
    assert.deepEqual(results.map(({ result }) => result.case), Array(4).fill("compact"));
  });
}

test("what is refused for good is not sent again", async () => {
  server.undecided.set("1", ErrorReason.INSUFFICIENT_CREDITS);
  const [, refused] = await pulsa.sendBatch("acme", sends(2));
  assert.equal(refused?.result.case, "error");
  assert.equal(server.requests.length, 1);
});

test("a call without an answer is made again, with the same ids, beyond the attempts of one call", async () => {
  server.refusals.push(...Array(5).fill({ code: Code.Unavailable }), { code: Code.DeadlineExceeded });
  await pulsa.sendBatch("acme", sends(1));
  assert.deepEqual(calls(), Array(7).fill(["0"]));
});

for (const refusal of [
  { code: Code.Unknown },
  { code: Code.Internal },
  ...["DATABASE_UNAVAILABLE", "ACCOUNT_BUSY", "SERVER_DRAINING"].map((reason) => ({ code: Code.FailedPrecondition, reason })),
] as Refusal[]) {
  test(`a call that ended ${Code[refusal.code]} ${refusal.reason ?? ""} is made again`, async () => {
    server.refusals.push(refusal);
    await pulsa.sendBatch("acme", sends(1));
    assert.deepEqual(calls(), [["0"], ["0"]]);
  });
}

test("when nothing is decided for long, the errors are the results, and each request was tried", async () => {
  server.undecided.set("0", ErrorReason.ACCOUNT_BUSY);
  const results = await pulsa.sendBatch("acme", sends(2), { largest: 1, patienceMs: 0 });
  assert.deepEqual(results.map(({ result }) => result.case), ["error", "compact"]);
  server.refusals.push(...Array(4).fill({ code: Code.Unavailable }));
  await assert.rejects(pulsa.sendBatch("acme", sends(1), { patienceMs: 0 }), PulsaError);
});

test("a refusal of the whole call is thrown", async () => {
  server.refusals.push({ code: Code.PermissionDenied, reason: "PERMISSION_MISSING" });
  await assert.rejects(pulsa.sendBatch("acme", sends(1)), /PERMISSION_MISSING/);
  server.refusals.push({ code: Code.Unimplemented });
  await assert.rejects(pulsa.sendBatch("acme", sends(1)), PulsaError);
  assert.equal(server.requests.length, 2);
});

test("an aborted batch ends", async () => {
  server.undecided.set("0", ErrorReason.ACCOUNT_BUSY);
  const abort = new AbortController();
  await assert.rejects(pulsa.sendBatch("acme", sends(1), { signal: abort.signal, progress: () => abort.abort() }));
  assert.equal(server.requests.length, 1);
});
