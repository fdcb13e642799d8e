// The columns of the list: the default ones, and any field of the filter language.

import { showDialog } from "../dialog.js";
import { h } from "../dom.js";
import { capitalized } from "../format.js";

/** Columns with special cells: their title, and the sort order of the first click (`-` for descending). */
const KNOWN = {
  status: { title: "Status", sort: "status" },
  id: { title: "ID", sort: "-id" },
  name: { title: "Name", sort: "name" },
  progress: { title: "Progress", sort: "-progress" },
  metrics: { title: "Latest metrics" },
  chart: { title: "Chart" },
  duration: { title: "Duration", sort: "-duration" },
  started: { title: "Started", sort: "-started" },
};
export const USUAL = ["status", "id", "name", "progress", "metrics", "chart", "duration", "started"];
const FROM_HIGH = /^(metrics\.|lines$|points$|ranks$|checkpoints$|created$|ended$|seen$|epoch|attempt$)/;

/** Return the title of a column and the sort order of the first click on it. */
export function columnOf(key) {
  return KNOWN[key] ?? { title: titleOf(key), sort: FROM_HIGH.test(key) ? `-${key}` : key, isField: true };
}

/** "params.lr" -> "lr", "metrics.loss.best" -> "best loss", "exit_code" -> "Exit code" */
function titleOf(key) {
  const [, space, name] = /^(params|tags|metrics)\.(.+)$/s.exec(key) ?? [];
  if (!space) return capitalized(key).replaceAll("_", " ");
  const [, start, of] = (space === "metrics" && /^(.+)\.(last|best|min|max)$/s.exec(name)) || [null, name, ""];
  const plain = start.replace(/"((?:[^"\\]|\\.)*)"/g, (_, text) => text.replace(/\\(.)/g, "$1"));
  return ["best", "min", "max"].includes(of) ? `${of} ${plain}` : plain;
}

/** Return those of the columns whose values the gateway must return: all without special cells. */
export function fieldsOf(columns) {
  return columns.filter((key) => !KNOWN[key]);
}

/** Split the keys of columns in a text like `status,params."a, b"`. */
export function split(text) {
  return (text.match(/(?:"(?:[^"\\]|\\.)*"|[^,])+/g) ?? []).map((key) => key.trim()).filter(Boolean);
}

/** Return a field in the filter language, for example `params.lr`; names with special characters are quoted. */
export function fieldText(space, name) {
  const isPlain = /^[\p{L}\p{N}_/@:.-]+$/u.test(name) && !(space === "metrics" && /\.(last|best|min|max)$/.test(name));
  return `${space}.${isPlain ? name : `"${name.replace(/["\\]/g, "\\$&")}"`}`;
}

/** Return all fields that can be columns, as [title of the group, fields]. */
export function offered(names) {
  return [
    ["Job", [...USUAL, ...names.jobs.filter((name) => !USUAL.includes(name) && name !== "archived")]],
    ["Parameters", names.params.map((name) => fieldText("params", name))],
    ["Metrics", names.metrics.flatMap((name) => ["", ".best", ".min", ".max"].map((of) => fieldText("metrics", name) + of))],
    ["Tags", names.tags.map((name) => fieldText("tags", name))],
  ];
}

const GROUPED = ["project", "group", "status", "user", "machine", "attempt", "ranks", "name"];

/** Return the fields by which jobs can be grouped. */
export function groupings(names) {
  const fields = offered(names);
  const [, params] = fields.find(([title]) => title === "Parameters");
  const [, tags] = fields.find(([title]) => title === "Tags");
  return [...GROUPED, ...params, ...tags.filter((tag) => !["tags.project", "tags.group"].includes(tag))];
}

/** Return the fields that a plot can show. */
export function fieldsToPlot(names) {
  return offered(names)
    .flatMap(([, keys]) => keys)
    .filter((key) => !["metrics", "chart", "note", "error"].includes(key));
}

/** Show a dialog to choose columns, only among `keys` if given; `onChange(columns)` is called after each choice. */
export function chooseColumns(names, columns, onChange, { title: heading = "Columns", usual = USUAL, keys: allowed } = {}) {
  let chosen = [...columns];
  const search = h("input", {
    type: "search",
    placeholder: "Search columns",
    "aria-label": "Search columns",
    on: { input: () => draw() },
  });
  const lists = h("div", { class: "column-lists" });
  const box = (key) =>
    h(
      "label",
      null,
      h("input", {
        type: "checkbox",
        checked: chosen.includes(key),
        on: {
          change: (event) => {
            chosen = event.target.checked ? [...chosen, key] : chosen.filter((other) => other !== key);
            onChange(chosen);
          },
        },
      }),
      h("span", { dir: "auto", title: columnOf(key).title }, columnOf(key).title),
    );
  const draw = () => {
    const wanted = search.value.trim().toLowerCase();
    const groups = offered(names).map(([title, keys]) => {
      const all = allowed ? keys.filter((key) => allowed.includes(key)) : [...new Set([...keys, ...(title === "Job" ? [] : chosen.filter((key) => keys.includes(key)))])];
      const found = all.filter((key) => columnOf(key).title.toLowerCase().includes(wanted));
      if (!found.length) return null;
      return h("fieldset", null, h("legend", null, title), found.slice(0, 300).map(box));
    });
    lists.replaceChildren(...groups.filter(Boolean));
    if (!lists.children.length) lists.replaceChildren(h("p", { class: "quiet" }, "No matching columns."));
  };
  const reset = () => {
    chosen = [...usual];
    onChange(chosen);
    draw();
  };
  const buttons = h(
    "div",
    { class: "buttons" },
    h("button", { on: { click: reset } }, "Reset"),
    h("button", { class: "primary", on: { click: () => dialog.close() } }, "Done"),
  );
  draw();
  const dialog = showDialog({ name: "columns", title: heading, content: [search, lists, buttons], isLight: true });
}
