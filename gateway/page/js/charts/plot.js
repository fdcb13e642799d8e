// Converts lines to the data and options of uPlot: columns, series, and bands between lowest and highest value.

import uPlot from "../../vendor/uplot/uPlot.esm.js";
import { axes, MIN_AXIS_PX } from "./axes.js";
import { chartColors, faint } from "./colors.js";
import { isGiven } from "../format.js";

const GAPS_KEPT = 1; // uPlot.join: a null stays a gap, a missing x is drawn through
const SYNC = "trainwire";
const RANGE_OPACITY = 0.16;
const OUTLIERS = 0.02; // of the values, at both ends
const SAMPLED = 4000;

/**
 * Return the uPlot columns of lines, `[{x, y, series, fill}]`; `fill` is the colour of the band between a column and
 * the next. The first line comes last and is thus drawn over the others: it is the newest attempt of the page's job.
 */
function columnsOf(lines) {
  return [...lines].reverse().flatMap((line) => {
    const common = { spanGaps: false, points: { size: 4 }, dash: line.dash };
    const edge = { ...common, width: 0, points: { show: false } };
    const columns = [];
    if (line.low)
      columns.push(
        { y: line.high, series: edge, fill: faint(line.color, RANGE_OPACITY) },
        { y: line.low, series: edge },
      );
    const under = line.strong || line.isDim ? { stroke: faint(line.color, line.isDim ? 0.4 : 0.28), width: 1 } : { stroke: line.color, width: 1.5 };
    columns.push({ y: line.y, series: { ...common, ...under } });
    if (line.strong)
      columns.push({
        y: line.strong,
        series: { ...common, stroke: line.color, width: 1.8, points: { show: false } },
      });
    return columns.map((column) => ({ ...column, x: line.x }));
  });
}

/** Return the data of uPlot: the x of all lines, and the values of each column at these x. */
export function plotData(lines) {
  const tables = columnsOf(lines).map(({ x, y }) => [x, y]);
  if (!tables.length) return [[]];
  return uPlot.join(
    tables,
    tables.map(() => [0, GAPS_KEPT]),
  );
}

/**
 * Return a key of the properties that uPlot cannot change: if it differs, a new plot is needed. Data is not part of it.
 */
export function plotKey(lines, { axis, isLog, isOutlierFree, themeRevision }) {
  const styles = lines.map((line) => [line.label, line.color, line.dash, Boolean(line.strong), Boolean(line.low), line.isDim]);
  return JSON.stringify([axis, isLog, isOutlierFree, themeRevision, styles]);
}

/** Return the options of a plot, except its size and hooks. */
export function plotOptions(lines, { axis, isLog, isOutlierFree }) {
  const isTime = axis === "time";
  const columns = columnsOf(lines);
  const y = { distr: isLog ? 3 : 1 };
  if (isOutlierFree) y.range = (plot) => rangeWithoutOutliers(plot, isLog);
  return {
    // Without a finite value there is no vertical axis; the first label below still needs room at the left.
    // At the right half of the last label below needs room.
    padding: [8, 18, 0, (_, __, [, , , hasAxis]) => (hasAxis ? 0 : MIN_AXIS_PX)],
    legend: { show: false },
    scales: { x: { time: isTime }, y },
    axes: axes(axis, chartColors()),
    series: [{}, ...columns.map(({ series }) => series)],
    bands: columns.flatMap(({ fill }, index) => (fill ? [{ series: [index + 1, index + 2], fill }] : [])),
    cursor: {
      sync: { key: `${SYNC}.${axis}`, setSeries: false },
      points: { size: 6 },
      drag: { x: true, y: false },
      y: false,
    },
  };
}

/** Return the range of the values in view without the lowest and highest two percent. */
function rangeWithoutOutliers(plot, isLog) {
  const [xs, ...columns] = plot.data;
  const { min, max } = plot.scales.x;
  const every = Math.max(1, Math.ceil((xs.length * columns.length) / SAMPLED));
  const values = [];
  xs.forEach((x, index) => {
    if (index % every || x < (min ?? x) || x > (max ?? x)) return;
    for (const column of columns)
      if (isGiven(column[index])) values.push(column[index]);
  });
  if (!values.length) return isLog ? [1, 10] : [0, 1];
  values.sort((a, b) => a - b);
  const low = values[Math.floor((values.length - 1) * OUTLIERS)];
  const high = values[Math.ceil((values.length - 1) * (1 - OUTLIERS))];
  return isLog
    ? uPlot.rangeLog(low, high, 10, true)
    : uPlot.rangeNum(low, high === low ? low + 1 : high, 0.1, true);
}

/** Return the last index whose x is at or before `x`, by bisection; -1 if there is none. */
export function indexAt(xs, x) {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Return whether `x` is more than one interval after the last of `xs`, where the line has no value yet. */
export function isBeyond(xs, x) {
  return xs.length > 1 && x > 2 * xs.at(-1) - xs.at(-2);
}
