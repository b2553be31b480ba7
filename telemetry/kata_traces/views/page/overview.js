// The whole trace at a glance: stages in their order, and a lane for each who did the work. Dragging over it zooms.

const STAGE_HEIGHT = 22, LANE_HEIGHT = 13, LANE_GAP = 4;

class Overview {
  /** `zoom(from, to)` is called with times of the trace while the pointer moves, `settled()` when it has. */
  constructor(model, zoom, settled) {
    this.settled = settled;
    this.model = model;
    this.zoom = zoom;
    this.canvas = $("overview-canvas");
    this.brush = $("brush");
    this.height = STAGE_HEIGHT + 6 + model.lanes.length * (LANE_HEIGHT + LANE_GAP);
    this.canvas.style.height = `${this.height}px`;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("dblclick", () => zoom(0, this.model.end));
  }

  get width() {
    return this.canvas.clientWidth;
  }

  draw() {
    const { canvas, model, width } = this;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(this.height * ratio);
    const context = canvas.getContext("2d");
    // Asked for once: each question may make the browser compute styles anew.
    this.palette = {
      bad: colour("--bad"), track: colour("--lane-track"),
      stages: model.stages.map((_, stage) => colour(`--stage-${stage}`)),
      inks: model.stages.map((_, stage) => inkOn(colour(`--stage-${stage}`))),
      lanes: model.lanes.map((_, lane) => colour(`--lane-${lane}`)),
    };
    context.scale(ratio, ratio);
    this.drawStages(context, width);
    model.lanes.forEach((_, lane) => this.drawLane(context, lane, width));
    this.showWindow(this.from ?? 0, this.to ?? model.end);
  }

  drawStages(context, width) {
    const { model } = this;
    const scale = width / model.end;
    context.font = '600 11px system-ui, "Segoe UI", sans-serif';
    context.textBaseline = "middle";
    for (const [stage, start, end] of model.slices) {
      const x = start * scale, w = Math.max((end - start) * scale, 0.5);
      if (stage < 0) {
        hatch(context, x, 0, w, STAGE_HEIGHT, this.palette.bad);
        continue;
      }
      context.fillStyle = this.palette.stages[stage];
      context.fillRect(x, 0, Math.max(w - (w > 3 ? 1 : 0), 0.5), STAGE_HEIGHT);
      const label = model.stages[stage];
      if (w > context.measureText(label).width + 10) {
        context.fillStyle = this.palette.inks[stage];
        context.fillText(label, x + 5, STAGE_HEIGHT / 2 + 0.5);
      }
    }
  }

  /** Faint where the lane had a span, solid as far as the critical path runs through it. */
  drawLane(context, lane, width) {
    const { model } = this;
    const top = STAGE_HEIGHT + 6 + lane * (LANE_HEIGHT + LANE_GAP);
    const columns = Math.ceil(width), scale = width / model.end;
    const faint = new Uint8Array(columns), solid = new Float32Array(columns);
    for (const span of model.spans) {
      // The root covers everything and says nothing.
      if (span.lane !== lane || span.index === 0) continue;
      const first = Math.floor(span.start * scale);
      faint.fill(1, Math.max(first, 0), Math.max(Math.ceil(span.end * scale), first + 1));
      for (const [start, end] of span.critical) cover(solid, start * scale, end * scale);
    }
    context.fillStyle = this.palette.track;
    context.fillRect(0, top, width, LANE_HEIGHT);
    context.fillStyle = this.palette.lanes[lane];
    for (let x = 0; x < columns; x++) {
      const alpha = Math.max(faint[x] * 0.22, Math.min(solid[x], 1));
      if (!alpha) continue;
      context.globalAlpha = alpha;
      context.fillRect(x, top, 1, LANE_HEIGHT);
    }
    context.globalAlpha = 1;
    for (const span of model.spans) {
      if (span.lane !== lane || !span.failed) continue;
      context.fillStyle = this.palette.bad;
      context.fillRect(Math.min(Math.max(span.end * scale - 1, 0), width - 2), top - 2, 2, LANE_HEIGHT + 4);
    }
  }

  /** Show which part the views below are zoomed to. */
  showWindow(from, to) {
    [this.from, this.to] = [from, to];
    const { brush, width, model } = this;
    const whole = from <= 0 && to >= model.end;
    brush.hidden = whole;
    brush.style.left = `${(from / model.end) * width}px`;
    brush.style.width = `${Math.max(((to - from) / model.end) * width, 2)}px`;
    brush.style.height = `${this.height}px`;
  }

  press(event) {
    if (event.button !== 0) return;
    const { canvas, model } = this;
    const box = canvas.getBoundingClientRect();
    const timeAt = (e) => (Math.min(Math.max(e.clientX - box.left, 0), box.width) / box.width) * model.end;
    const begin = timeAt(event);
    const [from, to] = [this.from, this.to];
    // Inside the window: move it. Elsewhere: begin a new one.
    const moves = to - from < model.end * 0.999 && begin > from && begin < to;
    canvas.setPointerCapture(event.pointerId);
    const move = (e) => {
      const now = timeAt(e);
      if (moves) {
        const shift = Math.min(Math.max(now - begin, -from), model.end - to);
        this.zoom(from + shift, to + shift);
      } else if (Math.abs(e.clientX - event.clientX) > 3) {
        this.zoom(Math.min(begin, now), Math.max(begin, now));
      }
    };
    const release = (e) => {
      if (e.type === "pointerup" && Math.abs(e.clientX - event.clientX) > 3) this.settled();
      canvas.removeEventListener("pointermove", move);
      canvas.removeEventListener("pointerup", release);
      canvas.removeEventListener("pointercancel", release);
    };
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
  }
}

/** Add to each cell of `cells` how much of it lies between `start` and `end`. */
function cover(cells, start, end) {
  const last = Math.min(Math.floor(end), cells.length - 1);
  for (let x = Math.max(Math.floor(start), 0); x <= last; x++) cells[x] += Math.min(end, x + 1) - Math.max(start, x);
}

function hatch(context, x, y, width, height, ink) {
  context.save();
  context.beginPath();
  context.rect(x, y, Math.max(width, 1), height);
  context.clip();
  context.strokeStyle = ink;
  context.lineWidth = 1.5;
  context.beginPath();
  for (let at = Math.floor((x - height) / 5) * 5; at < x + width; at += 5) {
    context.moveTo(at, y + height);
    context.lineTo(at + height, y);
  }
  context.stroke();
  context.restore();
}
