// The lines of a chart: one for each run and rank, or for each run the mean of its ranks with their range.

import { bandOf, calmed, curve, positive, smoothed } from "./curves.js";
import { count, counted } from "../format.js";
import { afterStep, upToStep } from "./lineage.js";
import { hasRanks, rankName, rankStyle, runDash } from "./runs.js";

/**
 * Return the lines of the metrics `names` as `[{label, color, dash, x, y, ts, odd, strong, low, high, isMain, isDim}]`.
 *
 * The line of a resumed attempt begins with the attempts before it; rolled-back points, and the parents of a fork, are
 * dim. `view` comes from `drawnRuns` in view.js.
 */
export function linesOf(store, names, view) {
  const isMixed = names.length > 1;
  const lines = names.flatMap((name, nth) =>
    view.runs.flatMap((run, index) => {
      const own = isMixed ? { color: view.palette[nth % view.palette.length], dash: runDash(index) } : null;
      const isFirst = view.runs.findIndex(({ jobId }) => jobId === run.jobId) === index;
      const parents = isFirst ? ofParents(store, name, run, view, own) : [];
      return [...ofRun(store, name, run, view, own), ...parents].map((line) => ({
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
  const isFollowed = store.of(run.jobId, name).some(({ attempt }) => attempt > run.attempt);
  const cut = isFollowed ? view.rolledBackAfter(run) : null;
  if (cut !== null) return entries.map((entry) => rolledBack(entry, cut, run, view, own));
  const parts = view.earlierParts(run).filter(({ jobId }) => jobId === run.jobId);
  const start = view.startOf(parts[0] ?? run);
  const curveOf = (entry) =>
    curve([...pointsOfParts(store, name, parts, entry.rank, view), ...view.pointsOf(entry)], settings.axis ?? "step", start);
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
        who: `mean of ${counted(entries.length, "rank")}`,
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

/** The points of the earlier parts of a line, of one rank. */
function pointsOfParts(store, name, parts, rank, view) {
  return parts.flatMap(({ jobId, attempt, upTo }) => {
    const entry = store.of(jobId, name).find((each) => each.attempt === attempt && each.rank === rank);
    return entry ? upToStep(view.pointsOf(entry), upTo) : [];
  });
}

function rolledBack(entry, cut, run, view, own) {
  const rank = hasRanks(run) ? `${rankName(entry.rank)}, ` : "";
  const style = { ...(own ?? rankStyle(run, entry.rank, view)), who: `${rank}rolled back after step ${count(cut)}` };
  return dim(afterStep(view.pointsOf(entry), cut), view.startOf(run), style, view);
}

/** The lines of the jobs that a run was forked from, up to the fork. */
function ofParents(store, name, run, view, own) {
  const parts = view.earlierParts(run).filter(({ jobId }) => jobId !== run.jobId);
  const parent = parts.at(-1);
  if (!parent) return [];
  const ranks = new Set(store.of(parent.jobId, name).map(({ rank }) => rank));
  return [...ranks].map((rank) => {
    const of = ranks.size > 1 ? `${rankName(rank)} of ` : "";
    const who = `${of}${view.nameOf(parent.jobId)} up to step ${count(parent.upTo)}`;
    const style = { ...(own ?? rankStyle(run, rank, view)), who };
    return dim(pointsOfParts(store, name, parts, rank, view), view.startOf(parts[0]), style, view);
  });
}

function dim(points, start, style, { settings }) {
  const found = curve(points, settings.axis ?? "step", start);
  return { ...found, ...style, y: settings.isLog ? positive(found.y) : found.y, strong: null, isDim: true };
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
