// The rows of the tree with their bars. Only the rows that are seen exist in the page, so the number of spans is free.

const ROW = 26, OVERSCAN = 8, MAX_INDENT = 14;
// Of one row: more segments than this are one anyway at the width of a screen.
const MAX_SEGMENTS = 400;

class Waterfall {
  /** `actions`: select(span), toggle(span), zoom(from, to), reset(). */
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.scroller = $("scroller");
    this.rows = $("rows");
    this.ticks = $("ticks");
    this.grid = $("grid");
    this.cursor = $("cursor");
    this.list = [];
    this.pool = new Map();
    this.from = 0;
    this.to = model.end;
    this.pending = false;
    this.scroller.addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(this.scroller);
    this.rows.addEventListener("click", (event) => this.click(event));
    this.rows.addEventListener("dblclick", (event) => this.dblclick(event));
    this.rows.addEventListener("pointerdown", (event) => this.press(event));
    const view = $("view-waterfall");
    view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    view.addEventListener("pointermove", (event) => this.hover(event));
    view.addEventListener("pointerleave", () => { this.cursor.hidden = true; });
  }

  /** `list`: the spans to show; `context`: those among them that are there only for their descendants. */
  show(list, context) {
    this.list = list;
    this.context = context;
    this.rows.setAttribute("aria-rowcount", list.length);
    this.rows.style.height = `${list.length * ROW}px`;
    this.position = new Map(list.map((span, index) => [span, index]));
    this.schedule();
  }

  /** Rows of spans that are no more. */
  forget() {
    for (const row of this.pool.values()) row.remove();
    this.pool.clear();
  }

  setWindow(from, to) {
    [this.from, this.to] = [from, to];
    this.schedule();
  }

  /** Draw in the next frame, once however often it is asked for. */
  schedule() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  draw() {
    // The axis has no scrollbar, the rows may have one; times must stand in line.
    this.ticks.style.marginRight = `${14 + this.scroller.offsetWidth - this.scroller.clientWidth}px`;
    const box = this.ticks.getBoundingClientRect();
    this.trackWidth = Math.max(box.width, 1);
    this.trackLeft = box.left;
    this.drawAxis();
    const top = this.scroller.scrollTop, height = this.scroller.clientHeight;
    const first = Math.max(Math.floor(top / ROW) - OVERSCAN, 0);
    const last = Math.min(Math.ceil((top + height) / ROW) + OVERSCAN, this.list.length);
    const wanted = new Set();
    for (let index = first; index < last; index++) wanted.add(this.list[index]);
    for (const [span, row] of this.pool) {
      if (!wanted.has(span)) {
        row.remove();
        this.pool.delete(span);
      }
    }
    for (let index = first; index < last; index++) this.drawRow(this.list[index], index);
    const { selected } = this;
    const shown = selected && this.pool.has(selected);
    if (shown) this.rows.setAttribute("aria-activedescendant", `row-${selected.index}`);
    else this.rows.removeAttribute("aria-activedescendant");
    document.documentElement.dataset.drawn = `${this.from} ${this.to} ${this.list.length}`;
  }

  x(time) {
    return ((time - this.from) / (this.to - this.from)) * this.trackWidth;
  }

  time(x) {
    return this.from + (x / this.trackWidth) * (this.to - this.from);
  }

  drawAxis() {
    const length = this.to - this.from;
    const step = niceStep(length / Math.max(Math.floor(this.trackWidth / 88), 2));
    const labels = [], lines = [];
    for (let at = Math.ceil(this.from / step) * step; at <= this.to; at += step) {
      const left = `${this.x(at)}px`;
      lines.push(el("i", { style: { left } }));
      if (this.x(at) < this.trackWidth - 24) {
        labels.push(el("span", { style: { left } }, at ? tickLabel(at, step) : "0"));
      }
    }
    this.ticks.replaceChildren(...labels);
    this.grid.replaceChildren(...lines);
    this.grid.style.left = `${this.trackLeft - this.scroller.getBoundingClientRect().left}px`;
    this.grid.style.width = `${this.trackWidth}px`;
  }

  drawRow(span, index) {
    let row = this.pool.get(span);
    if (!row) {
      row = this.makeRow(span);
      this.pool.set(span, row);
      this.rows.append(row);
    }
    row.style.transform = `translateY(${index * ROW}px)`;
    row.setAttribute("aria-rowindex", index + 1);
    row.setAttribute("aria-selected", span === this.selected);
    if (span.children.length) row.setAttribute("aria-expanded", !this.collapsed.has(span));
    row.classList.toggle("context", this.context.has(span));
    const outside = span.end < this.from ? "before" : span.start > this.to ? "after" : "";
    row.classList.toggle("outside", outside !== "");
    row.lastChild.replaceChildren(...(outside ? [el("i", { class: outside })] : this.bars(span)));
  }

  makeRow(span) {
    const twisty = span.children.length
      ? el("span", { class: "twisty", "aria-hidden": true })
      : el("span", { class: "leaf", "aria-hidden": true });
    const name = el("span", { class: "text" }, span.name);
    const children = [twisty, el("span", { class: "dot", title: this.model.lanes[span.lane] }), name];
    if (span.children.length) children.push(el("span", { class: "below" }, String(span.after - span.index - 1)));
    if (span.failed) children.push(el("span", { class: "badge bad", title: span.message }, "failed"));
    if (span.open) children.push(el("span", { class: "badge" }, "open"));
    if (span.missingParent) children.push(el("span", { class: "badge", title: "its parent is not in this trace" }, "orphan"));
    const indent = Math.min(span.depth, MAX_INDENT) * 14;
    const took = duration(span.duration) + (span.open ? "+" : "");
    return el("div", {
      class: `row${span.criticalTime > this.model.root.duration * NOTABLE ? " critical" : ""}${span.failed ? " failed" : ""}`,
      id: `row-${span.index}`, role: "row", "aria-level": span.depth + 1, "data-index": span.index,
      style: { "--ink": laneColour(span.lane), "--indent": `${indent}px` },
    },
    el("div", { class: "name", role: "gridcell", title: span.name }, ...children),
    el("div", { class: "took", role: "gridcell" }, took),
    el("div", { class: "track", role: "gridcell", "aria-label": `starts at ${duration(span.start)}` }));
  }

  bars(span) {
    const bars = [];
    const shift = this.raw && this.model.isGuest(span) ? this.model.reading(span.start).wall : null;
    if (typeof shift === "number") bars.push(this.bar("ghost", span.start + shift, span.end + shift));
    bars.push(this.bar(`extent${span.open ? " open" : ""}`, span.start, span.end, 2));
    const all = span.critical;
    let merged = null;
    for (let i = firstAfter(all, this.from), made = 0; i < all.length && all[i][0] < this.to && made < MAX_SEGMENTS; i++) {
      const [start, end] = all[i];
      // What lies closer together than half a pixel is drawn as one.
      if (merged && this.x(start) - this.x(merged[1]) < 0.5) merged[1] = end;
      else {
        if (merged) bars.push(this.bar("solid", ...merged));
        merged = [start, end];
        made++;
      }
    }
    if (merged) bars.push(this.bar("solid", ...merged));
    for (const [, time] of span.rawEvents.slice(0, 128)) {
      const x = this.x(time);
      if (x >= 0 && x <= this.trackWidth) bars.push(el("i", { class: "event", style: { left: `${x}px` } }));
    }
    return bars.filter(Boolean);
  }

  /** As far as it is seen: a bar of a million pixels would cost, and round. */
  bar(kind, start, end, least = 0) {
    const left = Math.max(this.x(start), -4), right = Math.min(this.x(end), this.trackWidth + 4);
    if (right < 0 || left > this.trackWidth || right < left) return null;
    const width = Math.max(right - left, least);
    return width < 0.3 ? null : el("i", { class: kind, style: { left: `${left}px`, width: `${width}px` } });
  }

  spanAt(event) {
    const row = event.target.closest(".row");
    return row ? this.model.spans[Number(row.dataset.index)] : null;
  }

  click(event) {
    const span = this.spanAt(event);
    if (!span || this.dragged) return;
    if (event.target.classList.contains("twisty")) this.actions.toggle(span);
    else this.actions.select(span, true);
  }

  dblclick(event) {
    const span = this.spanAt(event);
    if (span && !event.target.classList.contains("twisty")) this.actions.zoomTo(span);
  }

  /** Dragging over bars chooses the part to zoom to. */
  press(event) {
    this.dragged = false;
    if (event.button !== 0 || event.pointerType === "touch" || !event.target.closest(".track")) return;
    const left = this.trackLeft, from = event.clientX - left;
    const mark = el("div", { class: "mark" });
    let to = from;
    const move = (e) => {
      to = Math.min(Math.max(e.clientX - left, 0), this.trackWidth);
      if (!this.dragged && Math.abs(to - from) < 4) return;
      if (!this.dragged) this.grid.append(mark);
      this.dragged = true;
      e.preventDefault();
      mark.style.left = `${Math.min(from, to)}px`;
      mark.style.width = `${Math.abs(to - from)}px`;
    };
    const release = (e) => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", release);
      window.removeEventListener("pointercancel", release);
      mark.remove();
      if (this.dragged && e.type === "pointerup") {
        this.actions.zoom(this.time(Math.min(from, to)), this.time(Math.max(from, to)));
      }
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", release);
    window.addEventListener("pointercancel", release);
  }

  wheel(event) {
    const length = this.to - this.from;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const at = this.time(Math.min(Math.max(event.clientX - this.trackLeft, 0), this.trackWidth));
      const factor = Math.exp(Math.min(Math.max(event.deltaY, -100), 100) / 250);
      this.actions.zoom(at - (at - this.from) * factor, at + (this.to - at) * factor);
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const shift = ((event.deltaX || event.deltaY) / this.trackWidth) * length;
      this.actions.pan(shift);
    }
  }

  hover(event) {
    const x = event.clientX - this.trackLeft;
    const inside = x >= 0 && x <= this.trackWidth && event.pointerType !== "touch";
    this.cursor.hidden = !inside;
    if (!inside) return;
    this.cursor.style.left = `${event.clientX - $("view-waterfall").getBoundingClientRect().left}px`;
    this.cursor.classList.toggle("late", x > this.trackWidth - 90);
    this.cursor.firstElementChild.textContent = duration(this.time(x));
  }

  /** Scroll to the first row of a span that begins in what is zoomed to and that `wanted` takes. */
  scrollToWindow(wanted = () => true) {
    const index = this.list.findIndex((span) => span.start >= this.from && span.start <= this.to && wanted(span));
    if (index >= 0) this.scroller.scrollTop = Math.max(index - 2, 0) * ROW;
    this.schedule();
  }

  /** Bring the row of `span` into view. */
  reveal(span) {
    const index = this.position.get(span);
    if (index === undefined) return;
    const { scroller } = this;
    const top = index * ROW, bottom = top + ROW;
    if (top < scroller.scrollTop + ROW) scroller.scrollTop = Math.max(top - ROW, 0);
    else if (bottom > scroller.scrollTop + scroller.clientHeight - ROW) {
      scroller.scrollTop = bottom + ROW - scroller.clientHeight;
    }
    this.schedule();
  }
}

/** The index of the first of `segments`, which are in order, that ends after `time`. */
function firstAfter(segments, time) {
  let low = 0, high = segments.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (segments[middle][1] > time) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The smallest of 1, 2, 5, 10, 20, 50… that is not below `least`. */
function niceStep(least) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return [1, 2, 5, 10].map((factor) => factor * unit).find((step) => step >= least * 0.999);
}

/** As exact as the distance of two ticks, and no more. */
function tickLabel(ns, step) {
  if (ns >= 99.95e9) return longDuration(Math.round(ns / 1e9)) + (step < 1e9 ? ` ${((ns % 1e9) / 1e6).toFixed(0)} ms` : "");
  const [unit, size] = ns >= 1e9 ? ["s", 1e9] : ns >= 1e6 ? ["ms", 1e6] : ns >= 1e3 ? ["µs", 1e3] : ["ns", 1];
  const digits = Math.max(0, Math.min(9, Math.ceil(Math.log10(size / step))));
  return `${(ns / size).toFixed(digits)} ${unit}`;
}
