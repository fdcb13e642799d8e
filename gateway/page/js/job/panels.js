// The panels of a job's page. To add one: write its module, and add an entry here.
//
// A panel has a `root`, and of these methods those that it needs: `begin(snapshot, isFirst)` when a connection begins,
// `take(event)`, `setJob(job)` with every change of the job, `opened()` when its tab is chosen, `close()`.

import { ChartPanel } from "../charts/panel.js";
import { LogPanel } from "../log/panel.js";
import { Checkpoints } from "./checkpoints.js";
import { Delivery } from "./delivery.js";
import { Differences } from "./differences.js";
import { Facts } from "./facts.js";

/**
 * The panels in the order of their tabs; `key` is the keyboard shortcut, `note(job)` returns the number beside the
 * title.
 */
export const PANELS = [
  {
    id: "charts",
    title: "Charts",
    key: "1",
    make: (page) =>
      new ChartPanel(page.id, {
        address: page.address,
        onPick: (ms) => page.showTime(ms),
        hasLog: () => page.hasLog(),
      }),
  },
  {
    id: "log",
    title: "Log",
    key: "6",
    make: (page) => new LogPanel(page.id, page.address),
    note: (job) => job.rows.logs,
  },
  {
    id: "checkpoints",
    title: "Checkpoints",
    key: "2",
    make: (page) => new Checkpoints(page.id),
    note: (job) => job.rows.checkpoints,
  },
  { id: "facts", title: "Parameters", key: "3", make: (page) => new Facts(page.id) },
  { id: "compare", title: "Compare", key: "4", make: (page) => new Differences(page.id, page.address) },
  {
    id: "delivery",
    title: "Delivery",
    key: "5",
    make: (page) =>
      new Delivery(page.id, {
        isNeeded: () => page.needsDelivery(),
        onState: (state) => page.noteDelivery(state),
      }),
  },
];
