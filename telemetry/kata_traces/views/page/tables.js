// The views beside the waterfall: slowest spans, stages with the critical path, and the guest's clock.

const MAX_SLOWEST = 200, MAX_PATH = 40, MAX_MISFITS = 50;

class Tables {
  /** `actions`: select(span), search(text), zoom(from, to). */
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.sort = "self";
    this.rising = false;
    this.grouped = false;
  }

  /** The slowest of `spans`. */
  slowest(spans) {
    const rows = this.grouped ? groups(spans) : spans.map((span) => ({
      span, name: span.name, lane: span.lane, count: 1, start: span.start,
      duration: span.duration, self: span.self, critical: span.criticalTime, most: span.duration,
    }));
    const falling = (a, b) => b[this.sort] - a[this.sort] || b.duration - a.duration;
    rows.sort(this.rising ? (a, b) => falling(b, a) : falling);
    const shown = rows.slice(0, MAX_SLOWEST);
    const most = Math.max(...shown.map((row) => row[this.sort]), 1);
    const head = (key, text) => el("th", { scope: "col", class: "number", "aria-sort": this.sort === key ? (this.rising ? "ascending" : "descending") : undefined },
      el("button", { type: "button", onclick: () => { this.rising = this.sort === key && !this.rising; this.sort = key; this.slowest(spans); } }, text));
    const choose = (grouped, text) => el("button", {
      type: "button", "aria-pressed": this.grouped === grouped, onclick: () => { this.grouped = grouped; this.slowest(spans); },
    }, text);
    $("view-slowest").replaceChildren(el("div", { class: "page" },
      el("div", { class: "page-head" }, el("h2", {}, this.grouped ? "Slowest names" : "Slowest spans"),
        el("span", { class: "group", role: "group", "aria-label": "What a row is" }, choose(false, "Spans"), choose(true, "By name"))),
      el("div", { class: "table-box" }, el("table", { class: "data" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, this.grouped ? "Name" : "Span"), el("th", { scope: "col" }, "Lane"),
          this.grouped ? head("count", "Spans") : head("start", "Start"),
          head("duration", "Duration"), head("self", "Self"), head("critical", "Critical"), el("th", { class: "wide" }))),
        el("tbody", {}, ...shown.map((row) => this.slowRow(row, most))))),
      rows.length > shown.length ? el("p", { class: "faint" }, `and ${count(rows.length - shown.length, "more row")}`) : ""));
  }

  slowRow(row, most) {
    const open = () => (row.span ? this.actions.select(row.span) : this.actions.search(`name:"${row.name}"`));
    return el("tr", { style: { "--ink": laneColour(row.lane) } },
      el("td", {}, el("button", { type: "button", class: "link", title: row.name, onclick: open },
        el("span", { class: "dot" }), el("span", { class: "text" }, row.name))),
      el("td", { class: "faint" }, this.model.lanes[row.lane]),
      el("td", { class: "number" }, this.grouped ? String(row.count) : duration(row.start)),
      el("td", { class: "number" }, duration(row.duration)),
      el("td", { class: "number" }, duration(row.self)),
      el("td", { class: "number" }, row.critical ? duration(row.critical) : "\u2013"),
      el("td", { class: "wide" }, this.amount(row, most)));
  }

  /** As in the waterfall: in full colour what everybody waited for, so that one that only waits for others does not stand out. */
  amount(row, most) {
    const whole = Math.max(row[this.sort], 0);
    const times = this.sort === "duration" || this.sort === "self" || this.sort === "critical";
    const solid = times ? Math.min(row.critical, whole) : whole;
    const part = (kind, took) => (took > 0 ? el("span", { class: `amount${kind}`, style: { width: `${(100 * took) / most}%` } }) : null);
    return el("span", { class: "amounts" }, ...[part("", solid), part(" shade", whole - solid)].filter(Boolean));
  }

  stages() {
    const { model, actions } = this;
    const whole = model.root.duration;
    const rows = model.stages.map((name, stage) => [name, stage, model.stageTimes[stage]]).filter(([, , took]) => took);
    rows.push(["unaccounted", -1, model.unaccounted]);
    const most = Math.max(...rows.map(([, , took]) => took), 1);
    const gaps = model.slices.filter(([stage]) => stage < 0).sort((a, b) => b[2] - b[1] - (a[2] - a[1])).slice(0, 5);
    const path = model.spans.filter((span) => span.criticalTime && span.index).sort((a, b) => b.criticalTime - a.criticalTime);
    $("view-stages").replaceChildren(el("div", { class: "page columns" },
      el("div", {}, el("h2", {}, "Where the time went"),
        el("p", { class: "faint" }, `Every instant of ${duration(whole)} belongs to one stage, or to none.`),
        el("table", { class: "data" }, el("tbody", {}, ...rows.map(([name, stage, took]) =>
          el("tr", { style: { "--ink": stageColour(stage) } },
            el("th", { scope: "row" }, el("span", { class: `dot${stage < 0 ? " hatched" : ""}` }), name),
            el("td", { class: "number" }, duration(took)), el("td", { class: "number faint" }, percent(took, whole)),
            el("td", { class: "wide" }, el("span", { class: `amount${stage < 0 ? " hatched" : ""}`, style: { width: `${(100 * took) / most}%` } })))))),
        gaps.length ? el("h3", {}, "Longest unaccounted stretches") : "",
        el("ul", { class: "children" }, ...gaps.map(([, start, end]) => el("li", {},
          el("button", { type: "button", onclick: () => actions.zoom(start - (end - start), end + (end - start)) },
            el("span", { class: "text" }, `at ${duration(start)}`), el("span", { class: "took" }, duration(end - start))))))),
      el("div", {}, el("h2", {}, "Critical path"),
        el("p", { class: "faint" }, "Time in which everything waited for this span itself, none of its children; it adds up to the whole."),
        el("ol", { class: "children numbered" }, ...path.slice(0, MAX_PATH).map((span) =>
          el("li", { style: { "--ink": laneColour(span.lane) } }, el("button", { type: "button", onclick: () => actions.select(span) },
            el("span", { class: "dot" }), el("span", { class: "text" }, span.name),
            el("span", { class: "faint share" }, percent(span.criticalTime, whole)),
            el("span", { class: "took" }, duration(span.criticalTime)))))),
        path.length > MAX_PATH ? el("p", { class: "faint" }, `and ${path.length - MAX_PATH} shorter`) : "")));
  }

  clock() {
    const { model, actions } = this;
    const card = (name, value, note) => el("div", { class: "card" }, el("dt", {}, name), el("dd", {}, value), el("p", {}, note));
    const content = [el("h2", {}, "The guest's clock")];
    if (model.clock) {
      const { readings, spans } = model.clock;
      const { offset, bound, wall } = readings[readings.length - 1];
      content.push(el("dl", { class: "cards" },
        card("Offset", clockTime(BigInt(offset)),
          `host time when the guest's monotonic clock stood at zero, measured by the runtime (${offset} ns)`),
        card("Known to", `\u00b1${duration(bound)}`, "half of the shortest round trip to the guest"),
        typeof wall === "number"
          ? card("Guest's wall clock", `${wall < 0 ? "\u2212" : "+"}${duration(Math.abs(wall))}`,
            `so far it is ${wall < 0 ? "behind" : "ahead of"} the host's: uncorrected, that is by how much guest spans would be misplaced`)
          : null,
        card("Corrected", count(spans, "span"), "recorded in the guest and shown in host time")));
      content.push(el("p", {}, "Raw guest time of a span = corrected time \u2212 offset; the details of a span show both. ",
        el("button", { type: "button", onclick: () => actions.raw() }, "Show raw guest time in the waterfall")));
      if (readings.length > 1) content.push(el("p", { class: "faint" }, `Measured ${readings.length} times; this is the last.`));
    } else {
      content.push(el("p", {}, "No offset was measured in this trace: spans of the guest, if there are any, stand as the guest stamped them."));
    }
    content.push(el("h3", {}, "Spans outside their parent"));
    if (!model.misfits.length) content.push(el("p", { class: "faint" }, "None."));
    const worst = [...model.misfits].sort((a, b) => Math.max(b[1], b[2]) - Math.max(a[1], a[2])).slice(0, MAX_MISFITS);
    if (worst.length) {
      content.push(el("p", { class: "faint" }, "Ending later is meant where a task outlives the span that began it; starting earlier never is."),
        el("div", { class: "table-box" }, el("table", { class: "data" },
          el("thead", {}, el("tr", {}, ...["Span", "Parent"].map((text) => el("th", { scope: "col" }, text)),
            ...["Earlier by", "Later by"].map((text) => el("th", { scope: "col", class: "number" }, text)))),
          el("tbody", {}, ...worst.map(([index, before, after]) => {
            const span = model.spans[index];
            return el("tr", { style: { "--ink": laneColour(span.lane) } },
              el("td", {}, el("button", { type: "button", class: "link", onclick: () => actions.select(span) },
                el("span", { class: "dot" }), el("span", { class: "text" }, span.name))),
              el("td", { class: "faint" }, span.parent ? span.parent.name : ""),
              el("td", { class: "number" }, before ? duration(before) : "\u2013"),
              el("td", { class: "number" }, after ? duration(after) : "\u2013"));
          })))));
    }
    $("view-clock").replaceChildren(el("div", { class: "page" }, ...content.filter(Boolean)));
  }
}

function groups(spans) {
  const found = new Map();
  for (const span of spans) {
    const key = `${span.lane} ${span.name}`;
    const row = found.get(key) || { span: null, name: span.name, lane: span.lane, count: 0, start: span.start, duration: 0, self: 0, critical: 0 };
    row.count += 1;
    row.duration += Math.max(span.duration, 0);
    row.self += span.self;
    row.critical += span.criticalTime;
    found.set(key, row);
  }
  return [...found.values()];
}
