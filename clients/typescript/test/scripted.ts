// A gRPC server that answers as a test scripts it.

import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { createServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { CreditService, OtpService } from "pulsa-client";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "pulsa-client/google/rpc/error_details_pb";

export interface Refusal {
  readonly code: Code;
  readonly reason?: string;
  readonly metadata?: Record<string, string>;
  readonly retryAfterMs?: number;
  readonly violations?: { field: string; description: string }[];
}

export interface ScriptedServer {
  readonly baseUrl: string;
  readonly requests: { method: string; token: string | null; message: unknown }[];
  /** Each call ends with the next of these, or with OK if there is none. */
  readonly refusals: Refusal[];
  close(): void;
}

export async function scriptedServer(): Promise<ScriptedServer> {
  const requests: ScriptedServer["requests"] = [];
  const refusals: Refusal[] = [];
  const answer = (message: unknown, context: HandlerContext) => {
    requests.push({ method: context.method.name, token: context.requestHeader.get("authorization"), message });
    const refusal = refusals.shift();
    if (refusal) {
      throw statusOf(refusal);
    }
    return {};
  };
  const http2 = createServer(
    connectNodeAdapter({
      routes: (router) => {
        router.service(CreditService, {
          getBalance: answer,
          async *watchBalance(message, context) {
            yield {};
            answer(message, context);
          },
        });
        router.service(OtpService, { sendOtp: answer, verifyOtp: answer });
      },
    }),
  );
  await new Promise<void>((listening) => http2.listen(0, "127.0.0.1", listening));
  const { port } = http2.address() as AddressInfo;
  return { baseUrl: `http://127.0.0.1:${port}`, requests, refusals, close: () => http2.close() };
}

function statusOf({ code, reason, metadata = {}, retryAfterMs, violations }: Refusal): ConnectError {
  return new ConnectError("a message of the server", code, undefined, [
    ...(reason ? [{ desc: ErrorInfoSchema, value: { domain: "pulsa", reason, metadata } }] : []),
    ...(violations ? [{ desc: BadRequestSchema, value: { fieldViolations: violations } }] : []),
    ...(retryAfterMs ? [{ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(retryAfterMs) } }] : []),
  ]);
}
