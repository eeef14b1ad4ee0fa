// A thin client: the generated stubs with a token, a deadline, safe repeats and typed errors.

import { create, type DescMethod, type DescService, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type CallOptions, type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, type GrpcTransportOptions, Http2SessionManager } from "@connectrpc/connect-node";
import { setMaxListeners } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { type BatchOptions, sendBatch, type SendOtp } from "./batch.js";
import { PulsaError } from "./errors.js";
import { CreditService, type WatchBalanceResponse } from "./gen/pulsa/credit/v1/credit_service_pb.js";
import { EventService, type WatchEventsResponse } from "./gen/pulsa/event/v1/event_service_pb.js";
import { type BatchSendOtpsResult, OtpService } from "./gen/pulsa/otp/v1/otp_service_pb.js";
import { Pause, SHORTEST_PAUSE_MS } from "./pause.js";

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
/** Node's timers take a longer time for 1 ms, and connect takes 0 for none. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;
/** Codes of calls that no server has answered. Canceled is of one that has no room to look at it, or that is stopped. */
const UNANSWERED = new Set([Code.Unavailable, Code.Canceled]);
/** What Node says of a connection that broke. */
const BROKEN = new Set(["ECONNRESET", "EPIPE"]);
/** Codes after which a stream is opened again. A proxy that cuts a silent one says INTERNAL, UNKNOWN or CANCELLED. */
const REOPENED = new Set([Code.Unavailable, Code.Internal, Code.Unknown, Code.Canceled]);

/**
 * Pulsa's services. A call throws PulsaError, or FieldError for a value that its field cannot hold.
 *
 * A unary call is repeated until its deadline, in at most 4 attempts, after UNAVAILABLE, OVERLOADED, and CANCELLED that
 * nobody here asked for: all attempts have the same request_id, so that they charge once. VerifyOtp is repeated only when
 * the server did not look at the code, because each guess counts.
 */
export class PulsaClient {
  readonly credits: Client<typeof CreditService>;
  readonly events: Client<typeof EventService>;
  readonly otps: Client<typeof OtpService>;
  readonly #session: Http2SessionManager;
  readonly #closed = new AbortController();
  readonly #timeoutMs: number;

  constructor({ baseUrl, token, timeoutMs = 10_000, nodeOptions }: PulsaOptions) {
    this.#timeoutMs = checkedTimeout(timeoutMs);
    setMaxListeners(0, this.#closed.signal); // one for each stream, and for each call that waits for its repeat
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
    this.events = this.#service(EventService, transport);
    this.otps = this.#service(OtpService, transport);
  }

  /**
   * Yield the balance now and on each change, until `signal` is aborted or the client is closed.
   *
   * Opens the stream again, after a pause, when the server drains, is away or has no room, when a proxy has cut it, and
   * when a token expires under it. Throws PulsaError when the server refuses.
   */
  watchBalance(organizationId: string, signal?: AbortSignal): AsyncGenerator<WatchBalanceResponse, void> {
    return this.#reopened((options) => this.credits.watchBalance({ organizationId }, options), signal);
  }

  /**
   * Yield the organization's events after the cursor, until `signal` is aborted or the client is closed.
   *
   * Opens the stream again, as `watchBalance` does, after the last message that was yielded. Store its cursor once its
   * events are handled.
   */
  watchEvents(
    organizationId: string,
    { cursor = "", fromOldest = false }: { cursor?: string; fromOldest?: boolean } = {},
    signal?: AbortSignal,
  ): AsyncGenerator<WatchEventsResponse, void> {
    let last = cursor;
    const events = this.events;
    return this.#reopened(async function* (options) {
      for await (const response of events.watchEvents({ organizationId, cursor: last, fromOldest }, options)) {
        last = response.cursor;
        yield response;
      }
    }, signal);
  }

  /** Yield the messages of a stream, and of those that are opened after it. */
  async *#reopened<Response>(
    open: (options: CallOptions) => AsyncIterable<Response>,
    signal?: AbortSignal,
  ): AsyncGenerator<Response, void> {
    const end = this.#ends(signal);
    let pause = new Pause();
    while (!end.aborted) {
      let received = false;
      try {
        for await (const response of open({ signal: end })) {
          [received, pause] = [true, new Pause()];
          yield response;
        }
      } catch (error) {
        if (end.aborted) {
          return;
        }
        if (!(error instanceof PulsaError && isReopened(error, received))) {
          throw error;
        }
      }
      await sleep(pause.takeMs(), undefined, { signal: end }).catch(() => undefined);
    }
  }

  /**
   * Send any number of OTPs in calls of at most `largest`; returns a result for each, in order.
   *
   * Every request needs a requestId. Calls that the server had no room for, or that did not answer, are repeated with the
   * same ids, and so are requests that could not be decided, until nothing was decided for `patienceMs`: then their errors
   * are the results, and the error of a whole call is thrown. To send the same batch again charges nothing twice.
   */
  sendBatch(
    organizationId: string,
    requests: Iterable<SendOtp>,
    options: BatchOptions = {},
  ): Promise<BatchSendOtpsResult[]> {
    return sendBatch(this.otps, organizationId, requests, this.#ends(options.signal), options);
  }

  /** Close the connection and cancel calls in progress. */
  close(): void {
    this.#closed.abort();
    this.#session.abort();
  }

  /** Aborted with the caller's signal, or when the client is closed. */
  #ends(signal: AbortSignal | undefined): AbortSignal {
    return signal ? AbortSignal.any([signal, this.#closed.signal]) : this.#closed.signal;
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
          if (!repeats) {
            throw explained;
          }
          await sleep(pauseMs, undefined, { signal: this.#ends(options.signal) }).catch(() => {
            throw explained;
          });
        }
      }
    };
  }
}

type Stub<Result = unknown> = (request: MessageInitShape<DescMethod["input"]>, options?: CallOptions) => Result;

function streaming(stub: Stub): Stub<AsyncIterable<unknown>> {
  return async function* (request, options = {}) {
    const { signal } = options;
    const ended = new AbortController();
    const end = () => ended.abort(signal?.reason);
    if (signal?.aborted) {
      end();
    }
    signal?.addEventListener("abort", end);
    try {
      yield* stub(request, { ...options, signal: ended.signal }) as AsyncIterable<unknown>;
    } catch (error) {
      throw explain(error);
    } finally {
      signal?.removeEventListener("abort", end);
      end(); // a caller that leaves the loop leaves the stream open otherwise
    }
  };
}

function explain(error: unknown): PulsaError {
  if (error instanceof PulsaError) {
    return error;
  }
  const known = ConnectError.from(error);
  // For connect-node a connection that broke is Aborted, and a call that was not looked at Internal.
  const isUnavailable = isUnseen(known) || BROKEN.has(nodeErrorOf(known)?.code ?? "");
  return new PulsaError(
    isUnavailable ? new ConnectError(known.rawMessage, Code.Unavailable, known.metadata, [], known.cause) : known,
  );
}

/** Whether no server has looked at the call: there was no connection, or the server refused the stream. */
function isUnseen(error: ConnectError): boolean {
  const { code, message } = nodeErrorOf(error) ?? {};
  return code === "ECONNREFUSED" || (code === "ERR_HTTP2_STREAM_ERROR" && !!message?.endsWith("NGHTTP2_REFUSED_STREAM"));
}

function nodeErrorOf({ cause }: ConnectError): NodeJS.ErrnoException | undefined {
  return cause instanceof Error ? cause : undefined;
}

/** Whether a repeat can neither charge twice nor count a wrong code twice. */
function isRepeated(method: DescMethod, { code, reason, cause }: PulsaError): boolean {
  if (code === Code.ResourceExhausted) {
    return reason === "OVERLOADED";
  }
  return UNANSWERED.has(code) && (method !== OtpService.method.verifyOtp || isUnseen(cause));
}

/** Whether a stream that ended so, after a message or before, is opened again. */
function isReopened({ code, reason }: PulsaError, received: boolean): boolean {
  if (code === Code.Unauthenticated) {
    return received; // the token expired under it
  }
  return reason === "OVERLOADED" || (REOPENED.has(code) && reason !== "INTERNAL");
}

function checkedTimeout(timeoutMs: number): number {
  if (!(timeoutMs > 0 && timeoutMs <= LONGEST_TIMEOUT_MS)) {
    throw new RangeError(`timeoutMs: ${timeoutMs} is not above 0 and at most ${LONGEST_TIMEOUT_MS}`);
  }
  return timeoutMs;
}
