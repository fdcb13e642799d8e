// The lines of a chart: one for each run and rank, or for each run the mean of its ranks with their range.

import { bandOf, calmed, curve, positive, smoothed } from "./curves.js";
import { hasRanks, rankName, rankStyle, runDash } from "./runs.js";

/**
 * Return the lines of the metrics `names` as `[{label, color, dash, x, y, ts, odd, strong, low, high, isMain}]`; `view`
 * comes from `drawnRuns` in view.js.
 */
export function linesOf(store, names, view) {
  const isMixed = names.length > 1;
  const lines = names.flatMap((name, nth) =>
    view.runs.flatMap((run, index) => {
      const own = isMixed ? { color: view.palette[nth % view.palette.length], dash: runDash(index) } : null;
      return ofRun(store, name, run, view, own).map((line) => ({
        ...line,
        isMain: run.isMain,
        label: [isMixed && name, view.isSeveral && run.label, line.who].filter(Boolean).join(" · "),
      }));
    }),
  );
  return lines.filter((line) => line.x.length);
}

function ofRun(store, name, run, view, own) {
  const { settings } = view;
  const entries = store
    .of(run.jobId, name)
    .filter(({ attempt, rank }) => attempt === run.attempt && !settings.hiddenRanks.has(String(rank)));
  const curveOf = (entry) => curve(view.pointsOf(entry), settings.axis ?? "step", view.startOf(run));
  if (settings.isMean && entries.length > 1) {
    const band = bandOf(entries.map(curveOf));
    const shown = settings.isLog
      ? { ...band, low: positive(band.low), high: positive(band.high), y: positive(band.y) }
      : band;
    return [
      {
        ...shown,
        ...(own ?? { color: run.color }),
        ...shaped(shown.y, settings, false),
        who: `mean of ${entries.length} ranks`,
      },
    ];
  }
  return entries.map((entry) => {
    const found = curveOf(entry);
    const y = settings.isLog ? positive(found.y) : found.y;
    return {
      ...found,
      ...(own ?? rankStyle(run, entry.rank, view)),
      ...shaped(y, settings, true),
      who: hasRanks(run) ? rankName(entry.rank) : "",
    };
  });
}

/**
 * Return the values `y`, and as `strong` the smoothed values: with the chosen weight, or if `mayCalm` for very noisy
 * lines.
 */
function shaped(y, { smoothing }, mayCalm) {
  return {
    y,
    strong: smoothing > 0 ? smoothed(y, smoothing) : mayCalm ? calmed(y) : null,
  };
}
