// The calls of tests/stacks.py with @grpc/grpc-js and stubs loaded at run time. Prints what came of each as JSON.

import { credentials, loadPackageDefinition, Metadata, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { randomUUID } from "node:crypto";
import { CHECKOUT } from "./dev_server.js";

const [address = "", token = ""] = process.argv.slice(2);
const files = ["pulsa/credit/v1/credit_service.proto", "pulsa/otp/v1/otp_service.proto"];
const protos = loadSync(files, { includeDirs: [`${CHECKOUT}/protos`], keepCase: true, longs: String });
const { pulsa } = loadPackageDefinition(protos) as any;
const credits = new pulsa.credit.v1.CreditService(address, credentials.createInsecure());
const otps = new pulsa.otp.v1.OtpService(address, credentials.createInsecure());
const metadata = new Metadata();
metadata.set("authorization", `Bearer ${token}`);
const organization_id = "acme";

function call(stub: any, rpc: string, request: object): Promise<any> {
  return new Promise((answered, failed) =>
    stub[rpc](request, metadata, { deadline: Date.now() + 10_000 }, (error: ServiceError | null, answer: unknown) =>
      error ? failed(error) : answered(answer),
    ),
  );
}

async function reason(answer: Promise<unknown>): Promise<string> {
  const error = await answer.catch((error: unknown) => error);
  const details = String((error as ServiceError).metadata?.get("grpc-status-details-bin")[0] ?? "");
  return /INVALID_FIELDS/.exec(details)?.[0] ?? "";
}

const { balance } = await call(credits, "GetBalance", { organization_id });
const error = await reason(call(otps, "SendOtp", { organization_id }));
const large = await reason(call(otps, "SendOtp", { organization_id, context: "x".repeat(1_000_000) }));
const shown: number[] = [];
const balances = credits.WatchBalance({ organization_id }, metadata);
for await (const { balance } of balances) {
  shown.push(Number(balance.available_credits));
  if (shown.length === 2) {
    break;
  }
  const adjustment = { organization_id, request_id: randomUUID(), adjust_credits: "1", reason: "one more" };
  await call(credits, "AdjustCredits", adjustment);
}
balances.cancel();
console.log(JSON.stringify({ unary: balance.organization_id, error, large, stream: shown[1]! - shown[0]! }));
