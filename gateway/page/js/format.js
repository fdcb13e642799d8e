// Formats numbers, times and sizes as readable text.

const COUNT = new Intl.NumberFormat("en-US");
const DAY_S = 86400;

/** Return whether a value is there: neither null, as in JSON, nor undefined. */
export function isGiven(value) {
  return value !== null && value !== undefined;
}

/** "a text that is long", 10 -> "a text th…" */
export function shortened(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** 1234567 -> "1,234,567" */
export function count(number) {
  return COUNT.format(number);
}

/** "running" -> "Running" */
export function capitalized(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** "1 line", "1,234 lines" */
export function counted(number, thing) {
  return `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
}

/** Format the value of a metric with four significant digits; "NaN" and "Infinity" remain as they are. */
export function value(given) {
  const number = Number(given);
  if (!isGiven(given)) return "–";
  if (!Number.isFinite(number)) return String(given);
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e6 || size < 1e-4) return number.toExponential(2).replace(/\.?0*e\+?/, "e");
  if (Number.isInteger(number)) return count(number);
  return size >= 1000 ? count(Number(number.toPrecision(6))) : String(Number(number.toPrecision(4)));
}

/** Seconds -> "4.2 s", "3 min 10 s", "2 h 14 min", "3 d 4 h" */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < DAY_S) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / DAY_S)} d ${Math.floor((whole % DAY_S) / 3600)} h`;
}

/** Seconds as an estimate: "40 s", "12 min", "3 h", "2 d" */
export function about(seconds) {
  const [size, unit] = [
    [DAY_S, "d"],
    [3600, "h"],
    [60, "min"],
  ].find(([least]) => seconds >= 1.5 * least) ?? [1, "s"];
  return `${Math.max(1, Math.round(seconds / size))} ${unit}`;
}

/** Bytes -> "97.7 MB" (decimal units, as object stores bill them) */
export function bytes(size) {
  if (!isGiven(size)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  let amount = size;
  for (; amount >= 1000 && index < units.length - 1; index += 1) amount /= 1000;
  return `${index === 0 ? amount : amount.toFixed(amount < 10 ? 2 : 1)} ${units[index]}`;
}

/** Milliseconds since 1970 -> local "14:03:11", with milliseconds if `withThousandths` */
export function clock(ms, withThousandths = false) {
  const at = new Date(ms);
  const parts = [at.getHours(), at.getMinutes(), at.getSeconds()].map((part) => String(part).padStart(2, "0"));
  const rest = withThousandths ? `.${String(at.getMilliseconds()).padStart(3, "0")}` : "";
  return parts.join(":") + rest;
}

/** Milliseconds since 1970 -> local "2026-11-24 14:03:11" */
export function dateTime(ms) {
  const at = new Date(ms);
  const date = [at.getFullYear(), at.getMonth() + 1, at.getDate()].map((part) => String(part).padStart(2, "0"));
  return `${date.join("-")} ${clock(ms)}`;
}

/** Milliseconds since 1970 -> local time of day if it is today, else date and time */
export function moment(ms) {
  return new Date(ms).toDateString() === new Date().toDateString() ? clock(ms) : dateTime(ms).slice(0, 16);
}

/** Milliseconds since 1970 -> "just now", "3 min ago", "2 h ago", "2026-11-24" */
export function ago(ms) {
  const seconds = (Date.now() - ms) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < DAY_S) return `${Math.round(seconds / 3600)} h ago`;
  if (seconds < 7 * DAY_S) return `${Math.round(seconds / DAY_S)} d ago`;
  return dateTime(ms).slice(0, 10);
}

/** Nanoseconds since 1970 -> milliseconds. */
export function fromNs(ns) {
  return Number(ns) / 1e6;
}

/** An RFC 3339 time -> milliseconds since 1970, null for an empty or missing text. */
export function fromText(text) {
  return text ? Date.parse(text) : null;
}
