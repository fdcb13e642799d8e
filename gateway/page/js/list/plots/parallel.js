// Parallel coordinates: a line for each job through its values on parallel axes, coloured by the last axis.

import { svg } from "../../dom.js";
import { shortened } from "../../format.js";
import { axisOf, spaced } from "./axis.js";
import { colorOf } from "./color.js";

const MARGIN = { left: 46, right: 66, top: 34, bottom: 14 };
const LABEL_PX = 16;

/** Draw jobs as `{root, marks, axes, tint}`; marks are `{job, points, element}`, sorted by the last axis. */
export function parallel(jobs, { axes: fields }, { width, height }) {
  const axes = fields.map((field) => axisOf(field, jobs.map((job) => job.columns[field])));
  const last = axes.at(-1);
  const x = (index) => MARGIN.left + (index * (width - MARGIN.left - MARGIN.right)) / Math.max(1, axes.length - 1);
  const y = (place) => MARGIN.top + (1 - place) * (height - MARGIN.top - MARGIN.bottom);
  const marks = jobs.flatMap((job) => {
    const places = axes.map((axis) => axis.place(job.columns[axis.field]) ?? null);
    const points = places.flatMap((place, index) => (place === null ? [] : [[x(index), y(place)]]));
    if (points.length < 2) return [];
    const element = svg("path", { class: "mark", d: path(places, x, y) });
    element.style.stroke = colorOf(last, job.columns[last.field]);
    return [{ job, points, place: places.at(-1), element }];
  });
  marks.sort((a, b) => (a.place ?? -1) - (b.place ?? -1));
  const root = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    marks.map(({ element }) => element),
    axes.flatMap((axis, index) => drawnAxis(axis, x(index), y, { index, height, room: x(1) - x(0) })),
  );
  return { root, marks, axes, tint: last };
}

/** Return the SVG path of a job; it has gaps at axes for which the job has no value. */
function path(places, x, y) {
  return places
    .map((place, index) => {
      if (place === null) return "";
      const isJoined = index > 0 && places[index - 1] !== null;
      return `${isJoined ? "L" : "M"}${x(index).toFixed(1)} ${y(place).toFixed(1)}`;
    })
    .join("");
}

function drawnAxis(axis, x, y, { index, height, room }) {
  const most = Math.max(6, Math.floor(room / 7));
  const title = shortened(axis.title, most);
  return [
    svg("line", { class: "axis", x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom }),
    svg("text", { class: "axis-title", x, y: index % 2 && room < 110 ? 26 : 12, "text-anchor": "middle" }, title),
    ...spaced(axis.ticks, height - MARGIN.top - MARGIN.bottom, LABEL_PX).map(({ at, label }) =>
      svg("text", { class: "tick", x: x + 6, y: y(at) + 4 }, shortened(label, 12)),
    ),
  ];
}
