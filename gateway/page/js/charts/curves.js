// Converts points to curves by step, epoch or time, with gaps at values that are not finite; smooths curves.

const STEP = 0;
const TS = 1;
const VALUE = 2;
const EPOCH = 3;
export const SEQ = 4;

export const AXES = ["step", "epoch", "time", "relative"];

/** Return the axis for which most points have a value: step, else epoch, else time; null without points. */
export function suitableAxis(allPoints) {
  let steps = 0;
  let epochs = 0;
  let all = 0;
  for (const points of allPoints) {
    all += points.length;
    for (const point of points) {
      if (point[STEP] !== null) steps += 1;
      if (point[EPOCH] !== null) epochs += 1;
    }
  }
  if (all === 0) return null;
  if (steps * 2 > all) return "step";
  return epochs * 2 > all ? "epoch" : "time";
}

/**
 * Convert points to a curve `{x, y, ts, odd}` in order of x; of points with equal x the last one counts. A y of null is
 * a gap, `ts` are milliseconds since 1970, and `odd` is the number of NaN and infinities.
 */
export function curve(points, axis, start = 0) {
  const byX = new Map();
  for (const point of points) {
    const x = place(point, axis, start);
    if (x !== null) byX.set(x, point);
  }
  const xs = [...byX.keys()].sort((a, b) => a - b);
  const numbers = xs.map((x) => Number(byX.get(x)[VALUE]));
  const y = numbers.map((number) => (Number.isFinite(number) ? number : null));
  return {
    x: xs,
    y,
    ts: xs.map((x) => Number(byX.get(x)[TS]) / 1e6),
    odd: y.filter((number) => number === null).length,
  };
}

/**
 * Return the x of a point, null if it has none; for the time axis seconds since 1970, for the relative axis seconds
 * since `start` (in ns).
 */
export function place(point, axis, start = 0) {
  if (axis === "time") return Number(point[TS]) / 1e9;
  if (axis === "relative") return (Number(point[TS]) - start) / 1e9;
  return axis === "step" ? point[STEP] : point[EPOCH];
}

/**
 * Return the exponential moving average of `y`, bias-corrected at the start; gaps remain. `weight` is 0 (none) to 0.99.
 */
export function smoothed(y, weight) {
  let average = 0;
  let known = 0;
  return y.map((number) => {
    if (number === null) return null;
    average = average * weight + (1 - weight) * number;
    known = known * weight + (1 - weight);
    return average / known;
  });
}

/** Replace zero and negative values, which a logarithmic axis cannot show, with gaps. */
export function positive(y) {
  return y.map((number) => (number !== null && number > 0 ? number : null));
}

/**
 * Return the mean, lowest and highest value of several curves at each of their x: `{x, y, low, high, ts, odd}`. Between
 * two points of a curve its value is interpolated, because downsampled ranks have points at different x.
 */
export function bandOf(curves) {
  const times = new Map(curves.flatMap(({ x, ts }) => x.map((at, index) => [at, ts[index]])));
  const xs = [...times.keys()].sort((a, b) => a - b);
  const rows = curves.map((each) => valuesAt(each, xs));
  const found = { x: xs, y: [], low: [], high: [], ts: xs.map((x) => times.get(x)) };
  xs.forEach((_, index) => {
    const values = rows.map((row) => row[index]).filter((number) => number !== null);
    const has = values.length > 0;
    found.y.push(has ? values.reduce((sum, number) => sum + number, 0) / values.length : null);
    found.low.push(has ? Math.min(...values) : null);
    found.high.push(has ? Math.max(...values) : null);
  });
  return { ...found, odd: curves.reduce((sum, each) => sum + each.odd, 0) };
}

function valuesAt({ x, y }, xs) {
  let next = 0;
  return xs.map((at) => {
    while (next < x.length && x[next] < at) next += 1;
    if (x[next] === at) return y[next];
    if (next === 0 || next === x.length || y[next] === null || y[next - 1] === null) return null;
    return y[next - 1] + ((y[next] - y[next - 1]) * (at - x[next - 1])) / (x[next] - x[next - 1]);
  });
}

const NOISY_POINTS = 400;
const NOISY_TURNS = 25; // sum of all steps up and down, in heights of the chart
const WINDOWS = 80;

/**
 * Return the local average of a series that is so noisy that it would be drawn as a solid area; null for other series.
 */
export function calmed(y) {
  const numbers = y.filter((number) => number !== null);
  if (numbers.length < NOISY_POINTS) return null;
  const sorted = [...numbers].sort((a, b) => a - b);
  const height = sorted[Math.floor(sorted.length * 0.98)] - sorted[Math.floor(sorted.length * 0.02)];
  let moved = 0;
  for (let index = 1; index < numbers.length; index += 1)
    moved += Math.min(height, Math.abs(numbers[index] - numbers[index - 1]));
  if (height === 0 || moved / height < NOISY_TURNS) return null;
  return averaged(y, Math.ceil(y.length / WINDOWS));
}

/** Return the moving average over `2 * reach + 1` points; gaps remain. */
function averaged(y, reach) {
  const sums = [0];
  const counts = [0];
  y.forEach((number, index) => {
    sums.push(sums[index] + (number ?? 0));
    counts.push(counts[index] + (number === null ? 0 : 1));
  });
  return y.map((number, index) => {
    if (number === null) return null;
    const [from, to] = [Math.max(0, index - reach), Math.min(y.length, index + reach + 1)];
    return (sums[to] - sums[from]) / (counts[to] - counts[from]);
  });
}
