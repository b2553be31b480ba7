// Everything about one span.

// An event with one of these attributes is a record of a log.
const LEVEL_KEYS = ["level", "log.level", "severity", "log.severity", "severity_text"];
const MESSAGE_KEYS = ["msg", "message", "log.message", "body"];
const MAX_CHILDREN = 12;

class Details {
  /** `actions`: select(span), zoomTo(span), search(text), close(). */
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.panel = $("details");
  }

  show(span) {
    this.panel.replaceChildren(...this.content(span));
    this.panel.style.setProperty("--ink", laneColour(span.lane));
    this.panel.hidden = false;
    this.panel.scrollTop = 0;
  }

  hide() {
    this.panel.hidden = true;
  }

  content(span) {
    const { model, actions } = this;
    const logs = span.events.filter((event) => levelOf(event)), events = span.events.filter((event) => !levelOf(event));
    const stage = span.stage < 0 ? null : model.stages[span.stage];
    return [
      el("div", { class: "details-head" },
        el("h2", {}, span.name),
        el("button", { type: "button", class: "close", "aria-label": "Close details", onclick: () => actions.close() }, "\u00d7")),
      el("p", { class: "chips" },
        el("span", { class: "chip lane" }, model.lanes[span.lane]),
        el("span", { class: "chip" }, span.service),
        stage ? el("span", { class: "chip" }, `stage ${stage}`) : null,
        span.kind > 1 ? el("span", { class: "chip" }, KINDS[span.kind] || `kind ${span.kind}`) : null,
        span.open ? el("span", { class: "chip" }, "not ended") : null),
      span.failed ? el("p", { class: "error", role: "note" }, span.message || "failed, without a message") : null,
      this.figures(span),
      el("p", { class: "actions" },
        el("button", { type: "button", onclick: () => actions.zoomTo(span) }, "Zoom to it"),
        span.parent ? el("button", { type: "button", onclick: () => actions.select(span.parent) }, "Parent") : null,
        el("button", { type: "button", onclick: () => actions.search(`name:"${span.name}"`) }, "Same name")),
      this.times(span),
      section("Attributes", span.attributes.length, table(span.attributes, (key, value) =>
        el("button", {
          type: "button", class: "filter", title: "Show only spans with this tag",
          onclick: () => actions.search(`"${key}=${value}"`),
        }, "filter"))),
      section("Events", events.length, ...events.map((event) => this.event(span, event))),
      span.dropped ? el("p", { class: "faint" }, `${count(span.dropped, "event was", "events were")} dropped`) : null,
      section("Logs", logs.length, ...logs.map((event) => this.log(span, event))),
      this.children(span),
      el("p", { class: "faint ids" }, `span ${span.id}`, el("br"), `trace ${model.trace_id}`,
        span.missingParent ? ` (its parent ${span.missingParent} is not in this trace)` : ""),
    ].filter(Boolean);
  }

  figures(span) {
    const whole = this.model.root.duration;
    const figure = (name, value, note) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, note) : null));
    const share = Math.min(Math.max(span.duration / Math.max(whole, 1), 0), 1);
    const self = Math.min(span.self / Math.max(span.duration, 1), 1);
    return el("div", {},
      el("dl", { class: "figures" },
        figure("Duration", duration(span.duration) + (span.open ? "+" : ""), percent(share, 1)),
        figure("Self", duration(span.self), `${percent(self, 1)} of it`),
        figure("Critical path", span.criticalTime ? duration(span.criticalTime) : "\u2013",
          span.criticalTime ? percent(span.criticalTime, whole) : "nobody waited"),
        figure("Start", duration(span.start), "after the beginning")),
      el("div", { class: "meter", "aria-hidden": true },
        el("i", { style: { left: `${(100 * span.start) / this.model.end}%`, width: `${Math.max(100 * (span.duration / this.model.end), 0.6)}%` } })));
  }

  times(span) {
    const { model } = this;
    const rows = [["Start, host", clockTime(model.host(span.start))], ["End, host", clockTime(model.host(span.end))]];
    const notes = [];
    if (model.isGuest(span)) {
      const { bound, wall } = model.reading(span.start);
      rows.push(["Start, raw guest", `${model.guest(span.start)} ns`], ["End, raw guest", `${model.guest(span.end)} ns`]);
      notes.push(`Raw is the guest's monotonic clock; corrected by its offset, known to \u00b1${duration(bound)}.`);
      if (typeof wall === "number") {
        notes.push(`By the guest's wall clock it would stand ${duration(Math.abs(wall))} too ${wall < 0 ? "early" : "late"}.`);
      }
    }
    const misfit = model.misfits.find(([index]) => index === span.index);
    if (misfit) {
      const [, before, after] = misfit;
      if (before) notes.push(`Starts ${duration(before)} before its parent.`);
      if (after) notes.push(`Ends ${duration(after)} after its parent.`);
    }
    return section("Time", null, table(rows), ...notes.map((note) => el("p", { class: "faint" }, note)));
  }

  event(span, event) {
    return el("div", { class: "event-row" },
      el("div", {}, el("time", {}, `+${duration(event.time - span.start)}`), el("b", {}, event.name)),
      event.attributes.length ? table(event.attributes) : null);
  }

  log(span, event) {
    const level = levelOf(event).toLowerCase();
    const said = event.attributes.find(([key]) => MESSAGE_KEYS.includes(key));
    const rest = event.attributes.filter((pair) => pair !== said && !LEVEL_KEYS.includes(pair[0]));
    return el("div", { class: `event-row log ${/err|crit|fatal/.test(level) ? "bad" : /warn/.test(level) ? "warn" : ""}` },
      el("div", {}, el("time", {}, `+${duration(event.time - span.start)}`), el("span", { class: "level" }, level),
        el("b", {}, said ? String(said[1]) : event.name)),
      rest.length ? table(rest) : null);
  }

  children(span) {
    const longest = [...span.children].sort((a, b) => b.duration - a.duration).slice(0, MAX_CHILDREN);
    const left = span.children.length - longest.length;
    return section("Children", span.children.length,
      el("ul", { class: "children" }, ...longest.map((child) => el("li", { style: { "--ink": laneColour(child.lane) } },
        el("button", { type: "button", onclick: () => this.actions.select(child) },
          el("span", { class: "dot" }), el("span", { class: "text" }, child.name), el("span", { class: "took" }, duration(child.duration)))))),
      left ? el("p", { class: "faint" }, `and ${left} shorter`) : null);
  }
}

function levelOf(event) {
  const found = event.attributes.find(([key]) => LEVEL_KEYS.includes(key));
  return found ? String(found[1]) : event.name === "log" ? "log" : "";
}

function section(title, size, ...children) {
  if (size === 0) return null;
  return el("section", {}, el("h3", {}, title, size === null ? null : el("span", { class: "size" }, String(size))), ...children);
}

function table(pairs, action) {
  return el("table", { class: "pairs" }, el("tbody", {}, ...pairs.map(([key, value]) =>
    el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, attribute(key, value), action ? action(key, value) : null)))));
}
