// The runs and ranks that charts draw, and the note beside a chart's title.

import { counted } from "../format.js";
import { jobName } from "../words.js";
import { chartColors } from "./colors.js";
import { earlierParts, rolledBackAfter } from "./lineage.js";
import { failureWords } from "./loader.js";
import { ranksOf, rankStyle, runsOf } from "./runs.js";

export const MOST_TOGETHER = 20; // metrics in one chart

/**
 * Return the runs and ranks to draw: `{all, runs, isSeveral, ranks, palette, settings, styleOf, startOf, pointsOf}`.
 * `all` are all runs with `isShown`, `runs` those that are shown; `styleOf(rank)` is null if lines of a rank have no
 * common style; the other fields are used by lines.js.
 */
export function drawnRuns(data, settings) {
  const { lines: palette } = chartColors();
  const found = runsOf(data.store, { jobs: data.jobIds, documentOf: (id) => data.documentOf(id), palette });
  const isOne = found.length === 1;
  const all = found.map((run) => ({ ...run, isShown: isOne || !settings.hiddenRuns.has(run.key) }));
  const ranks = ranksOf(all);
  const startOf = (run) => data.startOf(run);
  return {
    all,
    runs: all.filter((run) => run.isShown),
    isSeveral: all.length > 1,
    ranks,
    palette,
    settings,
    styleOf: (rank) =>
      isOne && !settings.isMean ? rankStyle(all[0], rank, { isSeveral: false, ranks, palette }) : null,
    startOf,
    earlierParts: (run) => earlierParts(run, (id) => data.documentOf(id)),
    rolledBackAfter: (run) => rolledBackAfter(run, (id) => data.documentOf(id)),
    nameOf: (id) => jobName(data.documentOf(id) ?? { id }),
    pointsOf: (entry) => data.detail.of(entry, settings.axis === "relative" ? startOf(entry) : 0),
  };
}

/**
 * Return a note on a chart of the metrics `names`: an error, loading, values that cannot be drawn, or that its solid
 * lines are averages although no smoothing was chosen; "" if there is nothing to note.
 */
export function chartNote(data, names, lines, { axis, isTogether, total, smoothing }) {
  const problem = data.problemOf(names);
  if (problem) return failureWords(problem);
  const isComing = names.some((name) => data.jobIds.some((id) => data.isMissing(id, name)));
  if (isComing) return lines.length ? "" : "Loading…";
  const odd = lines.reduce((sum, line) => sum + line.odd, 0);
  const notes = [
    isTogether && total > MOST_TOGETHER && `first ${MOST_TOGETHER} of ${counted(total, "metric")}`,
    odd > 0 && counted(odd, "NaN or Inf value"),
    !lines.length && `no ${axis} values`,
    !smoothing && lines.some(({ strong }) => strong) && "solid: local average",
  ];
  return notes.filter(Boolean).join(" · ");
}
