// The calls of tests/stacks/matrix.py with this client: node calls_with_connect.js ADDRESS TOKEN ORGANIZATION MODE [CALLERS]

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, PulsaClient, PulsaError } from "pulsa-client";

const [address = "", token = "", organizationId = "", mode = "", callers = "1"] = process.argv.slice(2);
const pulsa = new PulsaClient({ baseUrl: `http://${address}`, token });
const REPEATED = new Set([Code.Unavailable, Code.Canceled, Code.DeadlineExceeded]);

async function calls(): Promise<void> {
  const { balance } = await pulsa.credits.getBalance({ organizationId });
  console.log(`unary ${balance?.organizationId}`);
  console.log(`error ${await refusal("")}`);
  console.log(`large ${await refusal("x".repeat(1024 * 1024 - 6 - organizationId.length))}`);
}

async function refusal(context: string): Promise<string> {
  const error = await pulsa.otps.sendOtp({ organizationId, context }).catch((error: unknown) => error);
  return error instanceof PulsaError ? `${error.reason} ${error.violations.map(({ field }) => field)}` : "";
}

async function send(): Promise<void> {
  let ended = false;
  process.stdin.resume().once("end", () => (ended = true));
  const caller = async () => {
    while (!ended) {
      await sendUntilAnswered(randomUUID());
      console.log("sent");
      await sleep(50);
    }
  };
  await Promise.all(Array.from({ length: Number(callers) }, caller));
}

async function sendUntilAnswered(requestId: string): Promise<void> {
  const destination = { channel: { case: "email", value: `${requestId}@example.com` } } as const;
  for (;;) {
    try {
      await pulsa.otps.sendOtp({ organizationId, requestId, destination, purpose: "login" }, { timeoutMs: 5_000 });
      return;
    } catch (error) {
      if (!(error instanceof PulsaError && (error.reason === "OVERLOADED" || REPEATED.has(error.code)))) {
        throw error;
      }
      await sleep(100);
    }
  }
}

/** The client opens the stream again itself. */
async function watch(): Promise<void> {
  console.log("open");
  for await (const { balance } of pulsa.watchBalance(organizationId)) {
    console.log(String(balance?.availableCredits));
  }
}

await ({ calls, send, watch } as Record<string, () => Promise<void>>)[mode]?.();
pulsa.close();
