// A virtual list of any length: all rows have the same height, and only those in view are elements.
// Browsers limit the height of an element; beyond MOST_PX short scrolls are exact and long ones are scaled.

const MOST_PX = 8_000_000;
const OVERSCAN = 12;
const SETTLE_MS = 160;

/**
 * The virtual list. `makeRow(index, before)` returns the row, or `before` if that is still right. `onRange(first, last,
 * top)` is called with the indexes of the drawn rows and of the topmost visible one, `onFollow(isFollowing)` on a
 * change.
 */
export class Scroller {
  constructor(root, { rowHeight, makeRow, onRange, onFollow }) {
    Object.assign(this, { root, rowHeight, makeRow, onRange, onFollow });
    this.count = 0;
    this.top = 0;
    this.isFollowing = true;
    this.lastScrollTop = 0;
    this.first = 0;
    this.spacer = document.createElement("div");
    this.spacer.className = "scroll-spacer";
    this.layer = document.createElement("div");
    this.layer.className = "scroll-layer";
    root.append(this.spacer, this.layer);
    root.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.resizing = new ResizeObserver(() => this.#resized());
    this.resizing.observe(root);
  }

  close() {
    this.resizing.disconnect();
    clearTimeout(this.settling);
  }

  get mostTop() {
    return Math.max(0, this.count * this.rowHeight - this.root.clientHeight);
  }

  /** Set the number of rows; `shift` rows have been added in front of the rows in view. */
  setCount(count, shift = 0) {
    this.count = count;
    this.spacer.style.height = `${Math.min(MOST_PX, count * this.rowHeight)}px`;
    if (this.isFollowing) this.#moveTo(this.mostTop);
    else this.#moveTo(this.top + shift * this.rowHeight, shift !== 0);
  }

  /** Scroll a row to the upper third of the view, and stop following. */
  show(index) {
    this.setFollowing(false);
    this.#moveTo(index * this.rowHeight - this.root.clientHeight / 3, true);
  }

  /** Scroll a row to the top of the view, and stop following. */
  showAtTop(index) {
    this.setFollowing(false);
    this.#moveTo(index * this.rowHeight, true);
  }

  /** Scroll by a number of rows, for keys. */
  moveBy(rows) {
    const to = this.top + rows * this.rowHeight;
    if (rows < 0) this.setFollowing(false);
    this.#moveTo(to, true);
    if (this.top >= this.mostTop - 2) this.setFollowing(true);
  }

  setFollowing(isFollowing) {
    if (isFollowing) this.#moveTo(this.mostTop, true);
    if (isFollowing === this.isFollowing) return;
    this.isFollowing = isFollowing;
    this.onFollow(isFollowing);
  }

  /** Draw the rows in view; with `anew` all rows are created again. */
  draw(anew = false) {
    if (anew) this.layer.replaceChildren();
    const first = Math.max(0, Math.floor(this.top / this.rowHeight) - OVERSCAN);
    const inView = Math.ceil(this.root.clientHeight / this.rowHeight);
    const last = Math.min(this.count - 1, Math.floor(this.top / this.rowHeight) + inView + OVERSCAN);
    this.onRange(first, last, Math.floor(this.top / this.rowHeight));
    this.#place(first, last);
    this.first = first;
    this.layer.style.transform = `translateY(${first * this.rowHeight + this.lastScrollTop - this.top}px)`;
  }

  // Rows that stay are left where they are: a selection of text outlives the scrolling.
  #place(first, last) {
    const rows = this.layer.children;
    if (this.first + rows.length <= first || this.first > last) this.layer.replaceChildren();
    if (rows.length === 0) this.first = first;
    for (; this.first < first && rows.length; this.first += 1) rows[0].remove();
    for (; this.first > first; this.first -= 1) this.layer.prepend(this.makeRow(this.first - 1, null));
    while (rows.length > last - first + 1) this.layer.lastElementChild.remove();
    for (let index = 0; index < rows.length; index += 1) {
      const row = this.makeRow(first + index, rows[index]);
      if (row !== rows[index]) rows[index].replaceWith(row);
    }
    for (let index = first + rows.length; index <= last; index += 1) this.layer.append(this.makeRow(index, null));
  }

  #scrolled() {
    const scrollTop = this.root.scrollTop;
    const moved = scrollTop - this.lastScrollTop;
    this.lastScrollTop = scrollTop;
    if (moved === 0) return this.draw();
    const most = this.root.scrollHeight - this.root.clientHeight;
    if (Math.abs(moved) > 2 * this.root.clientHeight) this.top = (scrollTop / Math.max(1, most)) * this.mostTop;
    else this.top = Math.min(this.mostTop, Math.max(0, this.top + moved));
    if (scrollTop <= 0) this.top = 0;
    if (scrollTop >= most - 1) this.top = this.mostTop;
    if (moved < 0) this.#follow(false);
    else if (this.top >= this.mostTop - 2) this.#follow(true);
    this.#settleLater();
    this.draw();
  }

  #follow(isFollowing) {
    if (isFollowing === this.isFollowing) return;
    this.isFollowing = isFollowing;
    this.onFollow(isFollowing);
  }

  #resized() {
    this.#moveTo(this.isFollowing ? this.mostTop : this.top, true);
  }

  #moveTo(top, always = false) {
    const before = this.top;
    this.top = Math.min(this.mostTop, Math.max(0, top));
    if (always || this.top !== before) this.#settle();
    this.draw();
  }

  // Where heights are scaled, the scrollbar is put where the view is, once it rests.
  #settleLater() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.#settle();
      this.draw();
    }, SETTLE_MS);
  }

  #settle() {
    const most = this.root.scrollHeight - this.root.clientHeight;
    const wanted = this.mostTop <= most ? this.top : (this.top / this.mostTop) * most;
    if (Math.abs(this.root.scrollTop - wanted) > 0.5) this.root.scrollTop = wanted;
    this.lastScrollTop = this.root.scrollTop;
  }
}
