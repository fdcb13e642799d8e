// Selection of a job in a plot, by pointer or by keys.

const NEAR_PX = 24;

/** Return the index of the mark nearest to a point; -1 if none is within 24 pixels. */
export function nearest(marks, x, y) {
  let [found, least] = [-1, NEAR_PX];
  marks.forEach(({ points }, index) => {
    const distance = points.length === 1 ? Math.hypot(points[0][0] - x, points[0][1] - y) : fromLine(points, x, y);
    if (distance <= least) [found, least] = [index, distance];
  });
  return found;
}

function fromLine(points, x, y) {
  let least = Infinity;
  for (let index = 1; index < points.length; index += 1) {
    const [[x1, y1], [x2, y2]] = [points[index - 1], points[index]];
    const [dx, dy] = [x2 - x1, y2 - y1];
    const along = Math.min(1, Math.max(0, ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy || 1)));
    least = Math.min(least, Math.hypot(x1 + along * dx - x, y1 + along * dy - y));
  }
  return least;
}

/** Return the index to which a key moves the selection, of `count` marks; null for other keys. */
export function moved(key, now, count) {
  const to = { ArrowLeft: now < 0 ? count - 1 : now - 1, ArrowRight: now + 1, Home: 0, End: count - 1 }[key];
  return to === undefined || count === 0 ? null : Math.min(count - 1, Math.max(0, to));
}
