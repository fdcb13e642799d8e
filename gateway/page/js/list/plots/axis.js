// An axis of a plot: the position of each value between its ends, and the labels of ticks.

import { dateTime, duration, isGiven, value } from "../../format.js";
import { columnOf } from "../columns.js";

const TIMES = ["created", "started", "ended", "seen"];
const LOG_RATIO = 100;
const TICKS = 5;

/**
 * Return the axis of a field with the values of all jobs: `{title, place(given), ticks, shown(given)}`. `place` returns
 * a position from 0 to 1, null for a missing value. Texts are sorted alphabetically, at equal distances. A positive
 * field with a large range has a logarithmic axis by default; `isLog` true or false overrides that.
 */
export function axisOf(field, values, isLog = undefined) {
  const present = values.filter(isPresent);
  const numbers = present.map((given) => numberOf(field, given));
  const axis = numbers.every((number) => number !== null) ? numeric(field, numbers, isLog) : textual(present);
  return { field, title: columnOf(field).title + (axis.isLog ? " (log)" : ""), shown: (given) => shown(field, given), ...axis };
}

/** Return the ticks, in ascending order, of which each is at least `least` pixels after the one before. */
export function spaced(ticks, length, least) {
  let last = -Infinity;
  return ticks.filter(({ at }) => {
    if ((at - last) * length < least) return false;
    last = at;
    return true;
  });
}

/** Return whether a value can be drawn: it is given, and a number is finite. */
export function isPresent(given) {
  return isGiven(given) && !["NaN", "Infinity", "-Infinity"].includes(given);
}

function numberOf(field, given) {
  if (TIMES.includes(field)) return Date.parse(given);
  const number = typeof given === "number" || (typeof given === "string" && given.trim()) ? Number(given) : NaN;
  return Number.isFinite(number) ? number : null;
}

function numeric(field, numbers, isLogWanted) {
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const mayBeLog = low > 0 && !TIMES.includes(field);
  const isLog = mayBeLog && (isLogWanted ?? high / low >= LOG_RATIO);
  const scaled = isLog ? Math.log10 : (number) => number;
  const [from, until] = [scaled(low), scaled(high)];
  const at = (number) => (until > from ? (scaled(number) - from) / (until - from) : 0.5);
  const distinct = [...new Set(numbers)].sort((one, other) => one - other);
  const found = distinct.length <= TICKS ? distinct : isLog ? powers(low, high) : steps(low, high);
  return {
    isLog,
    mayBeLog,
    low: shown(field, low),
    high: shown(field, high),
    place: (given) => (isPresent(given) ? at(numberOf(field, given)) : null),
    ticks: found.map((number) => ({ at: at(number), label: shown(field, number) })),
  };
}

function textual(present) {
  const texts = [...new Set(present.map(textOf))].sort((one, other) => one.localeCompare(other, undefined, { numeric: true }));
  const at = (index) => (texts.length > 1 ? index / (texts.length - 1) : 0.5);
  const places = new Map(texts.map((text, index) => [text, at(index)]));
  return {
    isText: true,
    place: (given) => (isPresent(given) ? places.get(textOf(given)) : null),
    ticks: texts.map((label, index) => ({ at: at(index), label })),
  };
}

function textOf(given) {
  return typeof given === "string" ? given : JSON.stringify(given);
}

/** Return round numbers from `low` to `high`, for ticks. */
function steps(low, high) {
  if (!(high > low)) return Number.isFinite(low) ? [low] : [];
  const rough = (high - low) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

function powers(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  if (last - first < 1) return steps(low, high);
  const every = Math.ceil((last - first + 1) / (TICKS + 1));
  return Array.from({ length: Math.floor((last - first) / every) + 1 }, (_, index) => 10 ** (first + index * every));
}

function shown(field, given) {
  if (!isPresent(given)) return isGiven(given) ? given : "–";
  const number = numberOf(field, given);
  if (number === null) return textOf(given);
  if (TIMES.includes(field)) return dateTime(number).slice(5, 16);
  return field === "duration" ? duration(number) : value(number);
}
