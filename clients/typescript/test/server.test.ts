// The client against the real server: a purchase, sends, a code, an overload and a restart.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Code, formatMoney, PulsaClient, PulsaError } from "pulsa-client";
import { OtpStatus } from "pulsa-client/pulsa/otp/v1/otp_pb";
import { CHECKOUT, DevServer } from "./dev_server.js";

const organizationId = "demo";
const PRICE = 1n; // of a mail
let server: DevServer;
let pulsa: PulsaClient;

before(async () => {
  server = await DevServer.create();
  await server.start();
  pulsa = new PulsaClient({ baseUrl: server.baseUrl, token: () => server.token, timeoutMs: 30_000 });
});
after(async () => {
  pulsa.close();
  await server.remove();
});

async function balance(): Promise<bigint> {
  return (await pulsa.credits.getBalance({ organizationId })).balance?.availableCredits ?? 0n;
}

function send(requestId: string, email: string) {
  const destination = { channel: { case: "email", value: email } } as const;
  return pulsa.otps.sendOtp({ organizationId, requestId, destination, purpose: "login" });
}

test("credits are bought, and a watched balance shows them", async () => {
  const { total } = await pulsa.credits.quoteTopUp({ organizationId, credits: 1000n, currencyCode: "IDR" });
  assert(total);
  assert.equal(formatMoney(total, "id").replace(/\s/, " "), "Rp 150.000");
  const { topUp } = await pulsa.credits.createTopUp({
    organizationId,
    requestId: randomUUID(),
    credits: 1000n,
    currencyCode: "IDR",
    billingEmail: "billing@example.com",
  });
  await fetch(`${topUp?.hostedInvoiceUrl}/pay`, { method: "POST" });
  await showsBalance(1000n);
});

test("a wrong code is an error and is counted once, and the right one verifies", async () => {
  const { otp } = await send(randomUUID(), "ann@example.com");
  assert(otp);
  const guess = (code: string) =>
    pulsa.otps.verifyOtp({ organizationId, requestId: randomUUID(), otpId: otp.otpId, code });
  const [code] = await until(
    () => server.codes("ann@example.com"),
    (codes) => codes.length > 0,
  );
  assert(code);
  const wrong = await guess(code === "000000" ? "000001" : "000000").catch((error: unknown) => error);
  assert(wrong instanceof PulsaError);
  assert.deepEqual([wrong.reason, wrong.metadata], ["WRONG_CODE", { attempts_remaining: "4" }]);
  assert.equal((await guess(code)).otp?.status, OtpStatus.VERIFIED);
});

test("the example of the documents does what it says", async () => {
  const [, example] = /```ts\n(.*?)```/s.exec(readFileSync(`${CHECKOUT}/docs/api.md`, "utf8")) ?? [];
  assert(example);
  const file = new URL("example.mjs", import.meta.url);
  writeFileSync(file, example.replace("http://127.0.0.1:50051", server.baseUrl));
  const node = spawn(process.execPath, [fileURLToPath(file)], { env: { ...process.env, TOKEN: server.token } });
  node.stderr.pipe(process.stderr);
  const printed = (await node.stdout.toArray()).join("");
  assert.match(printed, /^999n false\nRp\s150\.000\nWRONG_CODE 4\n998n\n$/);
});

test("an invalid request names every field", async () => {
  const error = await send("no uuid", "no address").catch((error: unknown) => error);
  assert(error instanceof PulsaError);
  assert.deepEqual(
    [error.code, error.violations.map(({ field }) => field)],
    [Code.InvalidArgument, ["request_id"]],
  );
});

test("sends in an overload and a restart are all answered, and each is charged once", async () => {
  const left = (await balance()) - PRICE * 100n;
  const shown = showsBalance(left);
  const addresses = Array.from({ length: 100 }, (_, number) => `person-${number}@example.com`);
  const sends = addresses.map((address) => sendUntilAnswered(randomUUID(), address));
  await Promise.race(sends);
  await server.stop();
  await server.start();
  await Promise.all(sends);
  assert.equal(await balance(), left);
  await shown;
});

/** A caller that repeats its call for as long as the server is away or full. */
async function sendUntilAnswered(requestId: string, email: string): Promise<void> {
  for (;;) {
    try {
      await send(requestId, email);
      return;
    } catch (error) {
      assert(error instanceof PulsaError, String(error));
      const passes = error.reason === "OVERLOADED" || [Code.Unavailable, Code.Canceled].includes(error.code);
      assert(passes, String(error));
      await sleep(200);
    }
  }
}

/** Watch the balance until it is so many credits. */
async function showsBalance(credits: bigint): Promise<void> {
  for await (const { balance } of pulsa.watchBalance(organizationId)) {
    if (balance?.availableCredits === credits) {
      return;
    }
  }
}

async function until<Value>(value: () => Promise<Value>, holds: (value: Value) => boolean): Promise<Value> {
  for (;;) {
    const found = await value();
    if (holds(found)) {
      return found;
    }
    await sleep(50);
  }
}
