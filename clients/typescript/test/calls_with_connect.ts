// The calls of tests/stacks.py with this client. Prints what came of each as JSON.

import { randomUUID } from "node:crypto";
import { PulsaClient, PulsaError } from "pulsa-client";

const [baseUrl = "", token = ""] = process.argv.slice(2);
const pulsa = new PulsaClient({ baseUrl: `http://${baseUrl}`, token });
const organizationId = "acme";

async function reason(call: Promise<unknown>): Promise<string> {
  const error = await call.catch((error: unknown) => error);
  return error instanceof PulsaError ? error.reason : "";
}

const { balance } = await pulsa.credits.getBalance({ organizationId });
const error = await reason(pulsa.otps.sendOtp({ organizationId }));
const large = await reason(pulsa.otps.sendOtp({ organizationId, context: "x".repeat(1_000_000) }));
const adjustment = { organizationId, requestId: randomUUID(), adjustCredits: 1n, reason: "one more" };
const shown: (bigint | undefined)[] = [];
for await (const { balance } of pulsa.watchBalance(organizationId)) {
  shown.push(balance?.availableCredits);
  if (shown.length === 2) {
    break;
  }
  await pulsa.credits.adjustCredits(adjustment);
}
pulsa.close();
const stream = Number((shown[1] ?? 0n) - (shown[0] ?? 0n));
console.log(JSON.stringify({ unary: balance?.organizationId, error, large, stream }));
