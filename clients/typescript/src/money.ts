import type { Money } from "./gen/pulsa/credit/v1/money_pb.js";

/** Write an amount as people of the locale do, exactly: "Rp 150.000" or "$12.34". Throws RangeError for no amount. */
export function formatMoney({ currencyCode, units, nanos }: Money, locale = "en"): string {
  if (Math.abs(nanos) > 999_999_999 || (units > 0n && nanos < 0) || (units < 0n && nanos > 0)) {
    throw new RangeError(`money: nanos ${nanos} of ${units} units`);
  }
  const sign = units < 0n || nanos < 0 ? "-" : "";
  const whole = units < 0n ? -units : units;
  const amount = `${sign}${whole}.${String(Math.abs(nanos)).padStart(9, "0")}` as Intl.StringNumericLiteral;
  const format = new Intl.NumberFormat(locale, { style: "currency", currency: currencyCode, maximumFractionDigits: 9 });
  return format.format(amount);
}
