// The two axes of a chart, with labels as short as they can be.

import { clock, count, dateTime, duration, value } from "../format.js";

const CHARACTER_PX = 6.3;
export const MIN_AXIS_PX = 30;
const DAY_S = 86400;

/** Return the uPlot options of both axes; `axis` is step, epoch, time (seconds since 1970) or relative (seconds). */
export function axes(axis, colors) {
  const common = {
    stroke: colors.axis,
    font: colors.font,
    grid: { stroke: colors.grid, width: 1 },
    ticks: { show: false },
    gap: 4,
  };
  const labels = {
    time: (_, ticks, __, ___, step) => times(ticks, step),
    relative: (_, ticks) => ticks.map(elapsed),
  };
  const below = labels[axis] ?? ((_, ticks) => ticks.map(shortNumber));
  return [
    { ...common, size: 24, space: 60, values: below },
    {
      ...common,
      size: (_, labels) => axisWidth(labels),
      space: 28,
      values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : value(tick))),
    },
  ];
}

/** Return the labels of time ticks: local times, or dates if ticks are days apart or a day begins at the tick. */
function times(ticks, step) {
  return ticks.map((tick) => {
    const time = clock(tick * 1000);
    if (step >= DAY_S || time === "00:00:00") return dateTime(tick * 1000).slice(5, 10);
    return step >= 60 ? time.slice(0, 5) : time;
  });
}

/** Format seconds since the start as short as possible: "40 s", "1 h 30 min". */
export function elapsed(seconds) {
  const words =
    Math.abs(seconds) < 60 ? `${Number(Math.abs(seconds).toPrecision(4))} s` : duration(Math.abs(seconds));
  return (seconds < 0 ? "−" : "") + words.replace(/ 0 (s|min|h)$/, "");
}

function axisWidth(labels) {
  const longest = Math.max(0, ...(labels ?? []).map((label) => label.length));
  return Math.max(MIN_AXIS_PX, Math.ceil(longest * CHARACTER_PX) + 8);
}

function shortNumber(tick) {
  const size = Math.abs(tick);
  if (size >= 1e6) return `${Number((tick / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((tick / 1e3).toPrecision(4))}k`;
  return Number.isInteger(tick) ? count(tick) : String(tick);
}
