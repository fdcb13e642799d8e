// The settings of the charts, stored in the page's URL.

import { remembered } from "../dom.js";
import { AXES } from "./curves.js";

const FLAGS = { isLog: "log", isTogether: "overlay", isMean: "mean", isOutlierFree: "no-outliers" };
const SETS = { hidden: "hide", pinned: "pin", folded: "fold", hiddenRuns: "hide-run", hiddenRanks: "hide-rank" };

/** Read the settings from an `AddressState`. */
export function readSettings(address) {
  const axis = address.get("axis");
  const settings = {
    axis: AXES.includes(axis) ? axis : null,
    smoothing: smoothingOf(address.get("smooth") ?? remembered.get("smoothing")),
    filter: address.get("filter") ?? "",
    full: address.get("full"),
    zoom: zoomOf(address.get("zoom")),
    isMeanChosen: address.get("mean") !== null,
  };
  for (const [name, parameter] of Object.entries(FLAGS)) settings[name] = address.get(parameter) === "1";
  for (const [name, parameter] of Object.entries(SETS)) settings[name] = new Set(address.all(parameter));
  return settings;
}

/** Write the settings to an `AddressState`. */
export function writeSettings(address, settings) {
  address.set("axis", settings.isAxisChosen || address.get("axis") ? settings.axis : null);
  address.set("smooth", settings.smoothing || address.get("smooth") ? String(settings.smoothing) : null);
  address.set("filter", settings.filter);
  address.set("full", settings.full);
  address.set("zoom", settings.zoom && `${short(settings.zoom.min)}~${short(settings.zoom.max)}`);
  for (const [name, parameter] of Object.entries(FLAGS)) {
    const isKept = name === "isMean" && settings.isMeanChosen;
    address.set(parameter, settings[name] ? "1" : isKept ? "0" : null);
  }
  for (const [name, parameter] of Object.entries(SETS)) address.set(parameter, [...settings[name]]);
}

/** Parse a smoothing weight from 0 to 0.99; return 0 for text that is not a number. */
export function smoothingOf(text) {
  const weight = Number(text ?? 0);
  return Number.isFinite(weight) ? Math.min(0.99, Math.max(0, weight)) : 0;
}

function zoomOf(text) {
  const [min, max] = (text ?? "").split("~").map((part) => (part === "" ? NaN : Number(part)));
  return min < max ? { min, max } : null;
}

function short(number) {
  return String(Number(number.toPrecision(15)));
}
