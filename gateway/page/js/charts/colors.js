// Colours of lines, from the stylesheet, so that both themes have their own.

const PALETTE = 8;

/** Return the colours and the font of charts in the current theme. */
export function chartColors() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    lines: Array.from({ length: PALETTE }, (_, index) => read(`--line-${index}`)),
    grid: read("--grid"),
    axis: read("--quiet"),
    surface: read("--surface"),
    font: `11px ${read("--sans")}`,
  };
}

/** Return the colour `#rrggbb` with an opacity from 0 to 1, as `#rrggbbaa`. */
export function faint(color, opacity) {
  return (
    color +
    Math.round(opacity * 255)
      .toString(16)
      .padStart(2, "0")
  );
}
