// Parses the input of "Go to line or time".

const TIME = /^(?:(\d{4}-\d{2}-\d{2})[ T])?(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?$/;

/**
 * Return `{seq}` for the number of a line, `{at}` (ms since 1970) for a local time, null for other text. A time without
 * a date is on the day of `nearMs`.
 */
export function destination(text, nearMs) {
  const number = /^[#\d][\d,]*$/.test(text) ? Number(text.replace(/[#,]/g, "")) : NaN;
  if (Number.isSafeInteger(number)) return { seq: Math.max(1, number) };
  const [, date, hours, minutes, seconds = "0"] = TIME.exec(text) ?? [];
  if (hours === undefined) return null;
  const at = date ? new Date(`${date}T00:00:00`) : new Date(nearMs);
  at.setHours(
    Number(hours),
    Number(minutes),
    Math.floor(Number(seconds)),
    Math.round((Number(seconds) % 1) * 1000),
  );
  return Number.isNaN(at.getTime()) ? null : { at: at.getTime() };
}
