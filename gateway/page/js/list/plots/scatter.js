// Scatter plot: a point for each job at its values of two fields.

import { svg } from "../../dom.js";
import { shortened } from "../../format.js";
import { axisOf, isPresent, spaced } from "./axis.js";
import { colorOf } from "./color.js";

const MARGIN = { left: 64, right: 18, top: 26, bottom: 44 };
const RADIUS = 5;
const LABEL_PX = { x: 64, y: 16 };

/** Return the fields that a scatter plot of `{x, y, color}` needs. */
export function scatterFields({ x, y, color }) {
  return [x, y, ...(color ? [color] : [])];
}

/** Draw jobs as `{root, marks, axes, tint}`; marks are `{job, points, element}`, sorted by the horizontal axis. */
export function scatter(jobs, { x, y, color, log }, { width, height }) {
  const drawn = jobs.filter((job) => isPresent(job.columns[x]) && isPresent(job.columns[y]));
  const [across, up] = [axis(drawn, x, logOf(log, "x")), axis(drawn, y, logOf(log, "y"))];
  const tint = color ? axis(drawn, color) : null;
  const area = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const px = (place) => MARGIN.left + place * area.width;
  const py = (place) => MARGIN.top + (1 - place) * area.height;
  const marks = [];
  for (const job of drawn) {
    const [cx, cy] = [px(across.place(job.columns[x])), py(up.place(job.columns[y]))];
    const element = svg("circle", { class: "mark", cx, cy, r: RADIUS });
    element.style.fill = colorOf(tint, job.columns[color]);
    marks.push({ job, points: [[cx, cy]], element });
  }
  marks.sort((a, b) => a.points[0][0] - b.points[0][0]);
  const root = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    spaced(up.ticks, area.height, LABEL_PX.y).flatMap(({ at, label }) => [
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: py(at), y2: py(at) }),
      svg("text", { class: "tick", x: MARGIN.left - 7, y: py(at) + 4, "text-anchor": "end" }, shortened(label, 9)),
    ]),
    spaced(across.ticks, area.width, LABEL_PX.x).flatMap(({ at, label }) => [
      svg("line", { class: "grid", x1: px(at), x2: px(at), y1: MARGIN.top, y2: height - MARGIN.bottom }),
      svg("text", { class: "tick", x: px(at), y: height - MARGIN.bottom + 16, "text-anchor": "middle" }, shortened(label, 14)),
    ]),
    svg("text", { class: "axis-title", x: width - MARGIN.right, y: height - 6, "text-anchor": "end" }, across.title),
    svg("text", { class: "axis-title", x: MARGIN.left, y: 12 }, up.title),
    marks.map(({ element }) => element),
  );
  return { root, marks, axes: [across, up, ...(tint ? [tint] : [])], tint };
}

/**
 * Return whether the parameter `log` makes an axis logarithmic (`x`) or linear (`x-linear`); undefined if it does
 * neither.
 */
function logOf(chosen, name) {
  const words = chosen.split(",");
  return words.includes(name) || (words.includes(`${name}-linear`) ? false : undefined);
}

function axis(jobs, field, isLog) {
  return axisOf(field, jobs.map((job) => job.columns[field]), isLog);
}
