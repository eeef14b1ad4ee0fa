// Any number of sends, in calls that Pulsa takes.

import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type Client, Code } from "@connectrpc/connect";
import { setTimeout as sleep } from "node:timers/promises";
import { PulsaError } from "./errors.js";
import { ErrorReason } from "./gen/pulsa/error/v1/error_reason_pb.js";
import { type BatchSendOtpsResult, type OtpService, SendOtpRequestSchema } from "./gen/pulsa/otp/v1/otp_service_pb.js";
import { Pause } from "./pause.js";

export type SendOtp = MessageInitShape<typeof SendOtpRequestSchema>;

export interface BatchOptions {
  /** Results of accepted sends have only the ids and the charge, which takes the server half as long. True by default. */
  readonly compact?: boolean;
  /** Called after each call with the number of results so far. */
  readonly progress?: (decided: number) => void;
  /** The most requests of one call: 1 to 1000, by default 1000. */
  readonly largest?: number;
  /** How long to repeat calls of which nothing is decided, in milliseconds: 60,000 by default. */
  readonly patienceMs?: number;
  /** Ends the batch; the call in progress is cancelled. */
  readonly signal?: AbortSignal;
}

/** A call has at most 1 MiB. */
const LARGEST_BYTES = 1_000_000;
/** Errors of a request after which it is sent again. */
const UNDECIDED = new Set([
  ErrorReason.DATABASE_UNAVAILABLE,
  ErrorReason.ACCOUNT_BUSY,
  ErrorReason.SERVER_DRAINING,
]);
/** Reasons and, where no server has given one, codes of a whole call after which it is made again. */
const REPEATED_REASONS = new Set(["OVERLOADED", "DATABASE_UNAVAILABLE", "ACCOUNT_BUSY", "SERVER_DRAINING"]);
const REPEATED_CODES = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Canceled, Code.Unknown, Code.Internal]);

/** See PulsaClient.sendBatch. */
export async function sendBatch(
  otps: Client<typeof OtpService>,
  organizationId: string,
  requests: Iterable<SendOtp>,
  signal: AbortSignal,
  { compact = true, progress, largest = 1000, patienceMs = 60_000 }: BatchOptions,
): Promise<BatchSendOtpsResult[]> {
  const messages = Array.from(requests, (request) => create(SendOtpRequestSchema, request));
  const sizes = messages.map((message) => toBinary(SendOtpRequestSchema, message).length + 8);
  const results: BatchSendOtpsResult[] = [];
  let waiting = [...messages.keys()];
  let [pause, end] = [new Pause(), performance.now() + patienceMs];
  while (waiting.length > 0) {
    const chunk = firstChunk(waiting, sizes, largest);
    let undecided = chunk;
    try {
      const sends = chunk.map((number) => messages[number]!);
      const answer = await otps.batchSendOtps({ organizationId, requests: sends, compact }, { signal });
      chunk.forEach((number, place) => (results[number] = answer.results[place]!));
      undecided = chunk.filter((number) => isUndecided(results[number]!));
      if (undecided.length < chunk.length) {
        [pause, end] = [new Pause(), performance.now() + patienceMs];
      } else if (performance.now() >= end) {
        undecided = []; // their errors are their results
      }
    } catch (error) {
      if (!isRepeated(error) || signal.aborted || performance.now() >= end) {
        throw error;
      }
    }
    waiting = [...undecided, ...waiting.slice(chunk.length)];
    progress?.(messages.length - waiting.length);
    if (undecided.length > 0) {
      await sleep(pause.takeMs(), undefined, { signal });
    }
  }
  return results;
}

function firstChunk(waiting: readonly number[], sizes: readonly number[], largest: number): number[] {
  let bytes = 0;
  const fits = waiting.slice(0, largest).findIndex((number, place) => (bytes += sizes[number]!) > LARGEST_BYTES && place > 0);
  return waiting.slice(0, fits < 0 ? largest : fits);
}

function isUndecided({ result }: BatchSendOtpsResult): boolean {
  return result.case === "error" && UNDECIDED.has(result.value.reason);
}

function isRepeated(error: unknown): boolean {
  return error instanceof PulsaError && (error.reason ? REPEATED_REASONS.has(error.reason) : REPEATED_CODES.has(error.code));
}
