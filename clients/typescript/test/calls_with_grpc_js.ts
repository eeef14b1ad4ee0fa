// The calls of tests/stacks/matrix.py with @grpc/grpc-js and stubs loaded at run time:
// node calls_with_grpc_js.js ADDRESS TOKEN ORGANIZATION MODE

import { fromBinary } from "@bufbuild/protobuf";
import { type Any, anyUnpack, AnySchema } from "@bufbuild/protobuf/wkt";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { credentials, loadPackageDefinition, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { BadRequestSchema, ErrorInfoSchema } from "pulsa-client/google/rpc/error_details_pb";
import { CHECKOUT } from "./dev_server.js";

const [address = "", token = "", organization_id = "", mode = ""] = process.argv.slice(2);
const files = ["pulsa/credit/v1/credit_service.proto", "pulsa/otp/v1/otp_service.proto"];
const protos = loadSync(files, { includeDirs: [`${CHECKOUT}/protos`], keepCase: true, longs: String });
const { pulsa } = loadPackageDefinition(protos) as any;
const credits = new pulsa.credit.v1.CreditService(address, credentials.createInsecure());
const otps = new pulsa.otp.v1.OtpService(address, credentials.createInsecure());
const metadata = new Metadata();
metadata.set("authorization", `Bearer ${token}`);
const REPEATED = [status.UNAVAILABLE, status.CANCELLED, status.DEADLINE_EXCEEDED];
const REOPENED = [status.UNAVAILABLE, status.CANCELLED, status.INTERNAL, status.UNKNOWN];

function call(stub: any, rpc: string, request: object): Promise<any> {
  return new Promise((answered, failed) =>
    stub[rpc](request, metadata, { deadline: Date.now() + 5_000 }, (error: ServiceError | null, answer: unknown) =>
      error ? failed(error) : answered(answer),
    ),
  );
}

/** The details of a google.rpc.Status, which are its third field. */
function details(status: Uint8Array): Any[] {
  const reader = new BinaryReader(status);
  const found: Any[] = [];
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === 3) {
      found.push(fromBinary(AnySchema, reader.bytes()));
    } else {
      reader.skip(type, field);
    }
  }
  return found;
}

async function refusal(context: string): Promise<string> {
  const error = await call(otps, "SendOtp", { organization_id, context }).catch((error: ServiceError) => error);
  const found = details(error.metadata.get("grpc-status-details-bin")[0]);
  const [info] = found.flatMap((detail) => anyUnpack(detail, ErrorInfoSchema) ?? []);
  const [request] = found.flatMap((detail) => anyUnpack(detail, BadRequestSchema) ?? []);
  return `${info?.reason} ${request?.fieldViolations.map(({ field }) => field)}`;
}

async function calls(): Promise<void> {
  const { balance } = await call(credits, "GetBalance", { organization_id });
  console.log(`unary ${balance.organization_id}`);
  console.log(`error ${await refusal("")}`);
  console.log(`large ${await refusal("x".repeat(1024 * 1024 - 6 - organization_id.length))}`);
}

async function send(): Promise<void> {
  let ended = false;
  process.stdin.resume().once("end", () => (ended = true));
  while (!ended) {
    const request_id = randomUUID();
    const destination = { email: `${request_id}@example.com` };
    await until(REPEATED, () => call(otps, "SendOtp", { organization_id, request_id, destination, purpose: "login" }));
    console.log("sent");
    await sleep(50);
  }
}

async function watch(): Promise<void> {
  for (;;) {
    console.log("open");
    const balances = credits.WatchBalance({ organization_id }, metadata);
    await until(REOPENED, async () => {
      for await (const { balance } of balances) {
        console.log(balance.available_credits);
      }
    }, 1);
    await sleep(200);
  }
}

/** Make a call, and again, in at most so many attempts, when it ends with one of these codes. */
async function until(codes: status[], attempt: () => Promise<unknown>, attempts = Infinity): Promise<void> {
  for (let made = 1; made <= attempts; made++) {
    try {
      await attempt();
      return;
    } catch (error) {
      if (!codes.includes((error as ServiceError).code)) {
        throw error;
      }
      await sleep(100);
    }
  }
}

await ({ calls, send, watch } as Record<string, () => Promise<void>>)[mode]?.();
credits.close();
otps.close();
