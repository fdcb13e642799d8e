// From points to what a chart draws: by step, epoch or time, with gaps where a value is no number, and smoothed.

const STEP = 0;
const TS = 1;
const VALUE = 2;
const EPOCH = 3;
export const SEQ = 4;

export const AXES = ["step", "epoch", "time"];

/** The axis that suits the points: steps where they are said, else epochs, else the time. */
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
  if (steps * 2 > all) return "step";
  return epochs * 2 > all ? "epoch" : "time";
}

/** `{x, y, ts, odd}` in order of x; equal x: the newest counts. A y of null is a gap; `odd` counts NaN and infinities. */
export function curve(points, axis) {
  const byX = new Map();
  for (const point of points) {
    const x = place(point, axis);
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

/** Where a point is on an axis, null where it is not; time in seconds since 1970. */
export function place(point, axis) {
  if (axis === "time") return Number(point[TS]) / 1e9;
  return axis === "step" ? point[STEP] : point[EPOCH];
}

/** Exponential moving average without the pull to zero at the start; gaps stay gaps. `weight` is 0 (none) to 0.99. */
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

/** What a logarithmic axis can show: zero and below become gaps. */
export function positive(y) {
  return y.map((number) => (number !== null && number > 0 ? number : null));
}
