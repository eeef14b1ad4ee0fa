export { type BatchOptions, type SendOtp } from "./batch.js";
export { Code } from "@connectrpc/connect";
export { PulsaClient, type PulsaOptions, type Token } from "./client.js";
export { type FieldViolation, PulsaError } from "./errors.js";
export { CreditService } from "./gen/pulsa/credit/v1/credit_service_pb.js";
export { EventService } from "./gen/pulsa/event/v1/event_service_pb.js";
export { OtpService } from "./gen/pulsa/otp/v1/otp_service_pb.js";
export { formatMoney } from "./money.js";
