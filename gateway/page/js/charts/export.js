// Downloads of charts: points as CSV, the image as PNG.

import { get } from "../api.js";
import { h } from "../dom.js";
import { chartColors } from "./colors.js";
import { namesParameter } from "./loader.js";

const POINTS = 20_000; // the most of a series in one answer
const BATCH = 10;
const COLUMNS = ["job", "metric", "attempt", "rank", "seq", "step", "epoch", "time", "value"];
const FORMULA = /^[=+\-@\t\r]/; // a spreadsheet would evaluate such a text
const PNG_HEAD = 26;
const PNG_LINE = 18;
const COLUMNS_OF_IMAGE = 2;

/**
 * Download all points of metrics of some jobs as one CSV file; calls `onProgress(done, all)`. Returns whether some
 * series were downsampled.
 */
export async function downloadCsv(name, jobIds, names, onProgress) {
  const parts = [`${COLUMNS.join(",")}\n`];
  let isSampled = false;
  for (const jobId of jobIds)
    for (let first = 0; first < names.length; first += BATCH) {
      onProgress(jobIds.indexOf(jobId) * names.length + first, jobIds.length * names.length);
      const wanted = namesParameter(names.slice(first, first + BATCH));
      const page = await get(`/jobs/${jobId}/metrics`, { names: wanted, points: POINTS });
      isSampled ||= page.downsampled;
      for (const series of page.series) parts.push(csvRows(jobId, series));
    }
  save(`${name}${isSampled ? ".sampled" : ""}.csv`, new Blob(parts, { type: "text/csv" }));
  return isSampled;
}

/** Return the CSV lines of a series. */
function csvRows(jobId, { name, attempt, rank, points }) {
  const head = [jobId, quoted(name), attempt, rank ?? ""].join(",");
  const rows = points.map(([step, ts, value, epoch, seq]) => {
    const time = new Date(Number(ts) / 1e6).toISOString();
    return `${head},${[seq, step ?? "", epoch ?? "", time, value].join(",")}\n`;
  });
  return rows.join("");
}

function quoted(text) {
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Download the images of charts as one PNG, in columns, each chart with its title and legend. */
export function downloadPng(name, charts) {
  const images = charts.map(imageOf);
  const columns = Math.min(COLUMNS_OF_IMAGE, images.length);
  const width = Math.max(...images.map((image) => image.width));
  const rows = images.filter((_, index) => index % columns === 0).map((_, row) => {
    const inRow = images.slice(row * columns, (row + 1) * columns);
    return { inRow, height: Math.max(...inRow.map((image) => image.height)) };
  });
  const canvas = h("canvas", { width: String(width * columns) });
  canvas.height = rows.reduce((sum, { height }) => sum + height, 0);
  const context = canvas.getContext("2d");
  context.fillStyle = chartColors().surface;
  context.fillRect(0, 0, canvas.width, canvas.height);
  let top = 0;
  for (const { inRow, height } of rows) {
    inRow.forEach((image, column) => context.drawImage(image, column * width, top));
    top += height;
  }
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(save(`${name}.png`, blob)), "image/png"));
}

/** Return a canvas with the image of a chart, its title and its legend. */
function imageOf({ title, plot, lines }) {
  const source = plot.ctx.canvas;
  const scale = source.width / plot.width;
  const entries = lines.filter((line) => line.label);
  const canvas = h("canvas", { width: String(source.width) });
  canvas.height = source.height + (PNG_HEAD + entries.length * PNG_LINE) * scale;
  const [context, colors, style] = [canvas.getContext("2d"), chartColors(), getComputedStyle(document.body)];
  context.fillStyle = colors.surface;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, PNG_HEAD * scale);
  context.scale(scale, scale);
  context.font = `600 13px ${style.fontFamily}`;
  context.fillStyle = style.color;
  context.fillText(title, 8, 17);
  context.font = `12px ${style.fontFamily}`;
  entries.forEach((line, index) => {
    const y = PNG_HEAD + source.height / scale + index * PNG_LINE;
    context.fillStyle = line.color;
    context.fillRect(8, y + 5, 14, 2.5);
    context.fillStyle = style.color;
    context.fillText(`${line.label} ${line.shown?.textContent ?? ""}`, 28, y + 10);
  });
  return canvas;
}

/** Join parts to a file name that is valid on all systems. */
export function fileName(...parts) {
  return parts
    .join(".")
    .replace(/[^\w.-]+/g, "_")
    .slice(0, 120);
}

function save(name, blob) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
