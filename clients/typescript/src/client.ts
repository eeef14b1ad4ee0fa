// A thin client: the generated stubs with a token, a deadline, safe repeats and typed errors.

import { create, type DescMethod, type DescService, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type CallOptions, type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, type GrpcTransportOptions, Http2SessionManager } from "@connectrpc/connect-node";
import { setTimeout as sleep } from "node:timers/promises";
import { PulsaError } from "./errors.js";
import { CreditService, type WatchBalanceResponse } from "./gen/pulsa/credit/v1/credit_service_pb.js";
import { OtpService } from "./gen/pulsa/otp/v1/otp_service_pb.js";

/** A token, or a function that returns one for each call. */
export type Token = string | (() => string | Promise<string>);

export interface PulsaOptions {
  /** Such as `https://pulsa.internal:50051`; `http://` is not encrypted: use it only on one machine. */
  readonly baseUrl: string;
  readonly token: Token;
  /** The deadline of unary calls without one of their own, at most 24 days. 10,000 by default. */
  readonly timeoutMs?: number;
  /** Of node:https: certificates of the server's authority and of this client. */
  readonly nodeOptions?: GrpcTransportOptions["nodeOptions"];
}

const ATTEMPTS = 4;
const SHORTEST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
/** Node's timers take a longer time for 1 ms, and connect takes 0 for none. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;
/** Codes after which a stream is opened again. A proxy that cuts a silent one says INTERNAL, UNKNOWN or CANCELLED. */
const REOPENED = new Set([Code.Unavailable, Code.Internal, Code.Unknown, Code.Canceled]);

/**
 * Pulsa's services. A call throws PulsaError, or FieldError for a value that its field cannot hold.
 *
 * A unary call is repeated until its deadline, in at most 4 attempts, after UNAVAILABLE and OVERLOADED: all attempts
 * have the same request_id, so that they charge once. VerifyOtp is repeated only when the server did not look at the
 * code, because each guess counts.
 */
export class PulsaClient {
  readonly credits: Client<typeof CreditService>;
  readonly otps: Client<typeof OtpService>;
  readonly #session: Http2SessionManager;
  readonly #closed = new AbortController();
  readonly #timeoutMs: number;

  constructor({ baseUrl, token, timeoutMs = 10_000, nodeOptions }: PulsaOptions) {
    this.#timeoutMs = checkedTimeout(timeoutMs);
    this.#session = new Http2SessionManager(baseUrl, { pingIntervalMs: 30_000 }, nodeOptions);
    const transport = createGrpcTransport({
      baseUrl,
      sessionManager: this.#session,
      interceptors: [
        (next) => async (request) => {
          request.header.set("authorization", `Bearer ${typeof token === "string" ? token : await token()}`);
          return next(request);
        },
      ],
    });
    this.credits = this.#service(CreditService, transport);
    this.otps = this.#service(OtpService, transport);
  }

  /**
   * Yield the balance now and on each change, until `signal` is aborted or the client is closed.
   *
   * Opens the stream again, after a pause, when the server drains or is away, when a proxy has cut it, and when a token
   * expires under it. Throws PulsaError when the server refuses.
   */
  async *watchBalance(organizationId: string, signal?: AbortSignal): AsyncGenerator<WatchBalanceResponse, void> {
    const end = signal ? AbortSignal.any([signal, this.#closed.signal]) : this.#closed.signal;
    let pauseMs = SHORTEST_PAUSE_MS;
    while (!end.aborted) {
      let received = false;
      try {
        for await (const response of this.credits.watchBalance({ organizationId }, { signal: end })) {
          [received, pauseMs] = [true, SHORTEST_PAUSE_MS];
          yield response;
        }
      } catch (error) {
        if (end.aborted) {
          return;
        }
        const expired = received && error instanceof PulsaError && error.code === Code.Unauthenticated;
        if (!(error instanceof PulsaError) || error.reason === "INTERNAL" || !(REOPENED.has(error.code) || expired)) {
          throw error;
        }
      }
      await sleep(pauseMs, undefined, { signal: end }).catch(() => undefined);
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
  }

  /** Close the connection and cancel calls in progress. */
  close(): void {
    this.#closed.abort();
    this.#session.abort();
  }

  /** The stubs of a service, whose calls have a deadline, repeats and PulsaErrors. */
  #service<S extends DescService>(service: S, transport: Transport): Client<S> {
    const stubs = createClient(service, transport) as unknown as Record<string, Stub>;
    const methods = service.methods.map((method) => {
      const stub = stubs[method.localName] as Stub;
      return [method.localName, method.methodKind === "unary" ? this.#unary(method, stub) : streaming(stub)];
    });
    return Object.fromEntries(methods) as Client<S>;
  }

  #unary(method: DescMethod, stub: Stub): Stub<Promise<unknown>> {
    return async (init, options = {}) => {
      const request = create(method.input, init);
      toBinary(method.input, request); // throws here, and not as an error of the call
      const end = performance.now() + checkedTimeout(options.timeoutMs ?? this.#timeoutMs);
      for (let attempt = 1; ; attempt++) {
        try {
          return await stub(request, { ...options, timeoutMs: Math.max(1, Math.ceil(end - performance.now())) });
        } catch (error) {
          const explained = explain(error);
          const leastMs = explained.retryAfterMs ?? SHORTEST_PAUSE_MS * 2 ** (attempt - 1);
          const pauseMs = leastMs * (1 + Math.random() / 2); // calls refused together do not come back together
          const repeats = attempt < ATTEMPTS && isRepeated(method, explained) && performance.now() + pauseMs < end;
          if (!repeats || options.signal?.aborted || this.#closed.signal.aborted) {
            throw explained;
          }
          await sleep(pauseMs, undefined, options.signal ? { signal: options.signal } : {}).catch(() => {
            throw explained;
          });
        }
      }
    };
  }
}

type Stub<Result = unknown> = (request: MessageInitShape<DescMethod["input"]>, options?: CallOptions) => Result;

function streaming(stub: Stub): Stub<AsyncIterable<unknown>> {
  return async function* (request, options) {
    try {
      yield* stub(request, options) as AsyncIterable<unknown>;
    } catch (error) {
      throw explain(error);
    }
  };
}

function explain(error: unknown): PulsaError {
  return error instanceof PulsaError ? error : new PulsaError(ConnectError.from(error));
}

/** Whether a repeat can neither charge twice nor count a wrong code twice. */
function isRepeated(method: DescMethod, { code, reason, cause }: PulsaError): boolean {
  if (code === Code.ResourceExhausted) {
    return reason === "OVERLOADED";
  }
  const unsent = (cause.cause as { code?: unknown } | undefined)?.code === "ECONNREFUSED";
  return code === Code.Unavailable && (method !== OtpService.method.verifyOtp || unsent);
}

function checkedTimeout(timeoutMs: number): number {
  if (!(timeoutMs > 0 && timeoutMs <= LONGEST_TIMEOUT_MS)) {
    throw new RangeError(`timeoutMs: ${timeoutMs} is not above 0 and at most ${LONGEST_TIMEOUT_MS}`);
  }
  return timeoutMs;
}
