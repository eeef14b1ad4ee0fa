// A gRPC server that answers as a test scripts it.

import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { once } from "node:events";
import { constants, createServer, type Http2ServerRequest } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import { CreditService, EventService, OtpService } from "pulsa-client";
import type { ErrorReason } from "pulsa-client/pulsa/error/v1/error_reason_pb";
import type { BatchSendOtpsRequest, SendOtpRequest } from "pulsa-client/pulsa/otp/v1/otp_service_pb";
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
  /** `timeoutMs` is what was left of the caller's deadline. */
  readonly requests: { method: string; token: string | null; timeoutMs: number | undefined; message: unknown }[];
  /** Of a watched balance before its end; 1 by default. */
  messages: number;
  /** Whether a watched balance then waits until its caller has gone. */
  isSilent: boolean;
  /** Each call ends with the next of these, or with OK if there is none. */
  readonly refusals: Refusal[];
  /** Each call is first not looked at, loses its connection, or gets no answer, as the next of these says. */
  readonly cuts: ("refused" | "reset" | "silent")[];
  /** Errors of the requests of a batch by their request_id, each for one call. */
  readonly undecided: Map<string, ErrorReason>;
  close(): void;
}

export async function scriptedServer(): Promise<ScriptedServer> {
  const requests: ScriptedServer["requests"] = [];
  const refusals: Refusal[] = [];
  const cuts: ScriptedServer["cuts"] = [];
  const undecided: ScriptedServer["undecided"] = new Map();
  const answer = (message: unknown, context: HandlerContext) => {
    const [token, timeoutMs] = [context.requestHeader.get("authorization"), context.timeoutMs()];
    requests.push({ method: context.method.name, token, timeoutMs, message });
    const refusal = refusals.shift();
    if (refusal) {
      throw statusOf(refusal);
    }
    return {};
  };
  const resultOf = ({ requestId }: SendOtpRequest) => {
    const reason = undecided.get(requestId);
    undecided.delete(requestId);
    return reason
      ? { result: { case: "error" as const, value: { reason } } }
      : { result: { case: "compact" as const, value: { otpId: `otp of ${requestId}` } } };
  };
  const answers = connectNodeAdapter({
    routes: (router) => {
      router.service(CreditService, {
        getBalance: answer,
        async *watchBalance(message, context) {
          yield* Array(scripted.messages).fill({});
          if (scripted.isSilent) {
            await once(context.signal, "abort");
          }
          answer(message, context);
        },
      });
      router.service(EventService, {
        async *watchEvents(message, context) {
          yield { cursor: `${message.cursor}+` };
          answer(message, context);
        },
      });
      router.service(OtpService, {
        sendOtp: answer,
        verifyOtp: answer,
        batchSendOtps: (message: BatchSendOtpsRequest, context) => {
          answer(message, context);
          return { results: message.requests.map(resultOf) };
        },
      });
    },
  });
  let socket: Socket;
  const cut = (kind: ScriptedServer["cuts"][number], { stream }: Http2ServerRequest) => {
    if (kind === "refused") {
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
    } else if (kind === "reset") {
      socket.resetAndDestroy();
    }
  };
  const http2 = createServer((request, response) => {
    const kind = cuts.shift();
    return kind ? cut(kind, request) : answers(request, response);
  });
  http2.on("connection", (opened: Socket) => {
    socket = opened.on("error", () => undefined);
  });
  await new Promise<void>((listening) => http2.listen(0, "127.0.0.1", listening));
  const { port } = http2.address() as AddressInfo;
  const scripted: ScriptedServer = {
    baseUrl: `http://127.0.0.1:${port}`,
    requests,
    messages: 1,
    isSilent: false,
    refusals,
    cuts,
    undecided,
    close: () => http2.close(),
  };
  return scripted;
}

function statusOf({ code, reason, metadata = {}, retryAfterMs, violations }: Refusal): ConnectError {
  return new ConnectError("a message of the server", code, undefined, [
    ...(reason ? [{ desc: ErrorInfoSchema, value: { domain: "pulsa", reason, metadata } }] : []),
    ...(violations ? [{ desc: BadRequestSchema, value: { fieldViolations: violations } }] : []),
    ...(retryAfterMs ? [{ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(retryAfterMs) } }] : []),
  ]);
}
