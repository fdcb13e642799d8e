// Converts terminal colours to text spans with CSS classes; all other escape sequences are removed.

// A sequence of ECMA-48: CSI, OSC with its end, or any other escape with its one character.
// eslint-disable-next-line no-control-regex
const ESCAPE =
  /\x1b\[([0-9;:]*)([ -/]*[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[PX^_][^\x1b]*(?:\x1b\\)?|\x1b[ -/]*[0-~]?/g;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f]/g;
const FLAGS = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "struck" };
const ENDS = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["struck"] };
// The 16 colours as xterm shows them: 256 and true colours become the nearest of them, so that both themes stay readable.
const BASIC = [
  [0, 0, 0], [205, 0, 0], [0, 205, 0], [205, 205, 0], [0, 0, 238], [205, 0, 205], [0, 205, 205], [229, 229, 229],
  [127, 127, 127], [255, 0, 0], [0, 255, 0], [255, 255, 0], [92, 92, 255], [255, 0, 255], [0, 255, 255], [255, 255, 255],
]; // prettier-ignore

/** Split a line into `{text, classes}` by its ANSI colours; `classes` is empty for unstyled text. */
export function runs(line) {
  if (!line.includes("\x1b")) return [{ text: visible(line), classes: "" }];
  const found = [];
  const state = { fg: null, bg: null, flags: new Set() };
  let from = 0;
  const put = (text) => text && found.push({ text: visible(text), classes: classesOf(state) });
  for (const match of line.matchAll(ESCAPE)) {
    put(line.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] === "m") style(state, match[1]);
  }
  put(line.slice(from));
  return found;
}

/** Return a line without its escape sequences. */
export function plain(line) {
  return visible(line.replace(ESCAPE, ""));
}

/** Replace control characters with their visible symbols (U+2400). */
function visible(text) {
  return text.replace(CONTROL, (character) =>
    String.fromCodePoint(0x2400 + (character === "\x7f" ? 0x21 : character.charCodeAt(0))),
  );
}

function classesOf({ fg, bg, flags }) {
  const names = [...flags].map((flag) => `a-${flag}`);
  if (fg !== null) names.push(`a-fg${fg}`);
  if (bg !== null) names.push(`a-bg${bg}`);
  return names.join(" ");
}

function style(state, parameters) {
  const codes = parameters.split(/[;:]/).map(Number);
  for (let index = 0; index < codes.length; index += 1) {
    const code = codes[index];
    if (code === 38 || code === 48) index += extended(state, code === 38 ? "fg" : "bg", codes.slice(index + 1));
    else basic(state, code);
  }
}

function basic(state, code) {
  if (code === 0) Object.assign(state, { fg: null, bg: null, flags: new Set() });
  else if (FLAGS[code]) state.flags.add(FLAGS[code]);
  else if (ENDS[code]) for (const flag of ENDS[code]) state.flags.delete(flag);
  else if (code === 39) state.fg = null;
  else if (code === 49) state.bg = null;
  else if (code >= 30 && code <= 37) state.fg = code - 30;
  else if (code >= 90 && code <= 97) state.fg = code - 82;
  else if (code >= 40 && code <= 47) state.bg = code - 40;
  else if (code >= 100 && code <= 107) state.bg = code - 92;
}

/** Apply a colour `5;n` or `2;r;g;b` to `state`; return the number of codes used. */
function extended(state, plane, codes) {
  if (codes[0] === 5) {
    state[plane] = of256(codes[1] ?? 0);
    return 2;
  }
  if (codes[0] === 2) {
    state[plane] = nearest(codes.slice(1, 4));
    return 4;
  }
  return 1;
}

function of256(index) {
  if (index < 16) return index;
  if (index > 231) return nearest(Array(3).fill(8 + (index - 232) * 10));
  const level = (part) => (part ? 55 + part * 40 : 0);
  const cube = index - 16;
  return nearest([level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6)]);
}

function nearest([red = 0, green = 0, blue = 0]) {
  const distance = (color) => (color[0] - red) ** 2 + (color[1] - green) ** 2 + (color[2] - blue) ** 2;
  return BASIC.reduce((best, color, index) => (distance(color) < distance(BASIC[best]) ? index : best), 0);
}
