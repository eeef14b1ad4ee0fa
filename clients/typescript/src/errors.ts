// Errors of Pulsa as one typed error.

import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** One invalid field of a request. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** A call failed; pulsa.error.v1.ErrorReason documents each reason and its metadata. */
export class PulsaError extends Error {
  override readonly name = "PulsaError";
  readonly code: Code;
  /** Such as INSUFFICIENT_CREDITS; empty when the server was not reached or gave none. */
  readonly reason: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** With INVALID_FIELDS: every invalid field. */
  readonly violations: readonly FieldViolation[];
  /** Milliseconds to wait before a repeat; undefined when the server gave none. */
  readonly retryAfterMs: number | undefined;
  override readonly cause: ConnectError;

  constructor(error: ConnectError) {
    const [info] = error.findDetails(ErrorInfoSchema);
    super(`${info?.reason ?? Code[error.code]}: ${error.rawMessage}`);
    this.code = error.code;
    this.reason = info?.reason ?? "";
    this.metadata = info?.metadata ?? {};
    this.violations = error
      .findDetails(BadRequestSchema)
      .flatMap((detail) => detail.fieldViolations.map(({ field, description }) => ({ field, description })));
    const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
    this.retryAfterMs = delay && durationMs(delay);
    this.cause = error;
  }
}
