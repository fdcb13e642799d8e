// The splitter between charts and log, moved by pointer or keys.

import { h, remembered } from "../dom.js";

const LEAST = 25;
const MOST = 75;
const STEP = 3;

/** Create the splitter of `frame`; its position is the CSS property `--split` of the frame, in per cent. */
export function splitter(frame) {
  const bar = h("div", {
    class: "splitter",
    role: "separator",
    tabindex: "0",
    "aria-orientation": "vertical",
    "aria-label": "Width of the charts",
    "aria-valuemin": String(LEAST),
    "aria-valuemax": String(MOST),
  });
  let place = Number(remembered.get("split") ?? 50);
  const put = (wanted) => {
    place = Math.min(MOST, Math.max(LEAST, Number.isFinite(wanted) ? wanted : 50));
    frame.style.setProperty("--split", `${place}%`);
    bar.setAttribute("aria-valuenow", String(Math.round(place)));
    remembered.set("split", String(place));
  };
  const move = (event) => {
    const box = frame.getBoundingClientRect();
    put((100 * (event.clientX - box.left)) / box.width);
  };
  bar.addEventListener("pointerdown", (event) => {
    bar.setPointerCapture(event.pointerId);
    bar.addEventListener("pointermove", move);
  });
  bar.addEventListener("pointerup", () => bar.removeEventListener("pointermove", move));
  bar.addEventListener("dblclick", () => put(50));
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -STEP, ArrowRight: STEP }[event.key];
    if (by) put(place + by);
  });
  put(place);
  return bar;
}
