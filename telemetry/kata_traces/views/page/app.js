// What is shown, and what people do about it.

const MIN_WINDOW = 1000; // ns
const TABS = ["waterfall", "slowest", "stages", "flame", "events", "clock"];

class App {
  constructor(model) {
    this.model = model;
    this.from = 0;
    this.to = model.end;
    this.collapsed = new Set();
    this.lanes = new Set(model.lanes.keys());
    this.selected = null;
    this.tab = "waterfall";
    const actions = {
      select: (span) => this.select(span),
      toggle: (span) => this.toggle(span),
      zoom: (from, to) => this.zoom(from, to),
      zoomTo: (span) => this.zoomTo(span),
      pan: (shift) => this.pan(shift),
      search: (text) => this.search(text),
      close: () => this.close(),
      raw: () => { this.openTab("waterfall"); this.setRaw(true); },
    };
    this.overview = new Overview(model, actions.zoom, () => this.waterfall.scrollToWindow());
    this.waterfall = new Waterfall(model, actions);
    this.waterfall.collapsed = this.collapsed;
    this.details = new Details(model, actions);
    this.tables = new Tables(model, actions);
    this.flame = new Flame(model, actions);
    this.head();
    this.legend();
    this.controls();
    this.filter();
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.fromHash());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.overview.draw());
    this.fromHash();
  }

  /** Show a newer state of the same trace: what is chosen, folded and zoomed to stays. */
  replace(model) {
    const whole = this.from <= 0 && this.to >= this.model.end, folded = new Set([...this.collapsed].map((span) => span.id));
    const chosen = this.selected && this.selected.id;
    this.model = model;
    for (const part of [this.overview, this.waterfall, this.details, this.tables, this.flame]) part.model = model;
    this.collapsed.clear();
    for (const span of model.spans) if (folded.has(span.id)) this.collapsed.add(span);
    this.waterfall.forget();
    this.head();
    this.legend();
    this.selected = this.waterfall.selected = chosen ? model.spans.find((span) => span.id === chosen) || null : null;
    this.filter();
    if (this.selected) this.details.show(this.selected);
    if (whole) this.zoom(0, model.end);
    this.overview.draw();
    if (this.tab !== "waterfall") this.openTab(this.tab);
  }

  /** The address of this view: the span, the tab, what is searched for and zoomed to. */
  link() {
    const parts = new URLSearchParams();
    if (this.selected) parts.set("span", this.selected.id);
    if (this.tab !== "waterfall") parts.set("tab", this.tab);
    if ($("search").value) parts.set("q", $("search").value);
    if (this.from > 0 || this.to < this.model.end) parts.set("at", `${Math.round(this.from)}-${Math.round(this.to)}`);
    return `${location.href.split("#")[0]}#${parts}`;
  }

  head() {
    const { model } = this;
    const name = model.name && model.name !== model.sandbox ? model.name : "";
    $("title").replaceChildren(...[
      el("span", {}, model.sandbox || "trace"),
      name ? el("span", { class: "faint" }, name) : null,
      model.command ? el("code", {}, model.command) : null,
      this.state(),
    ].filter(Boolean));
    const facts = [clockTime(model.host(model.root.start)).slice(0, 19), count(model.spans.length, "span"),
      model.services.join(" + "), model.errors ? `${model.errors} failed` : ""];
    $("facts").replaceChildren(...facts.filter(Boolean).map((fact) => el("span", {}, fact)),
      el("span", { class: "id", title: "trace id" }, model.trace_id));
    $("total").textContent = duration(model.root.duration) + (model.root.open ? "+" : "");
    $("total-note").textContent = `${percent(model.unaccounted, model.root.duration)} unaccounted`;
    if (model.failure) {
      const { span, lines } = model.failure;
      $("failure").hidden = false;
      $("failure").replaceChildren(...lines.map((line) => el("p", {}, line)),
        el("button", { type: "button", onclick: () => this.select(model.spans[span]) }, "Show it"));
    }
    if (model.advice.length) {
      $("advice").hidden = false;
      // One line each, until somebody wants to know: the picture is below it.
      const more = el("button", { type: "button", onclick: () => { $("advice").classList.toggle("open"); tell(); } });
      const tell = () => {
        const open = $("advice").classList.contains("open");
        more.setAttribute("aria-expanded", open);
        more.textContent = open ? "Less" : "More";
      };
      tell();
      $("advice").replaceChildren(...model.advice.map((line) => el("p", { title: line }, line)), more);
    }
    $("tab-events").hidden = !model.spans.some((span) => span.events.length);
    if (model.remarks.length) {
      $("remarks").hidden = false;
      $("remarks").replaceChildren(...model.remarks.map((remark) => el("p", {}, remark)));
    }
  }

  state() {
    const { live, outcome, root, errors } = this.model;
    if (live) return el("span", { class: "pill live" }, "running");
    const failed = root.failed || (errors && !outcome);
    // A file of OTLP has no outcome; a root that has ended tells that it did.
    const silent = root.open ? "ended without a word" : "ended";
    return el("span", { class: `pill${failed || (!outcome && root.open) ? " bad" : ""}` }, outcome || silent);
  }

  legend() {
    const { model } = this;
    const entries = model.stages.map((name, stage) => [name, stage, model.stageTimes[stage]]).filter(([, , took]) => took);
    entries.push(["unaccounted", -1, model.unaccounted]);
    $("legend").replaceChildren(...entries.map(([name, stage, took]) => el("button", {
      type: "button", style: { "--ink": stageColour(stage) }, title: `${percent(took, model.root.duration)}; zoom to it`,
      onclick: () => this.zoomToStage(stage),
    }, el("i", { class: stage < 0 ? "hatched" : "" }), name, el("b", {}, duration(took)))));
    const used = new Set(model.spans.map((span) => span.lane));
    $("lane-labels").replaceChildren(el("span", { class: "stage-label" }, "stages"), ...model.lanes.map((name, lane) => el("button", {
      type: "button", style: { "--ink": laneColour(lane) }, "aria-pressed": true, disabled: !used.has(lane), title: `Only ${name}`,
      onclick: () => this.onlyLane(lane),
    }, name)));
  }

  controls() {
    const on = (id, what, action) => $(id).addEventListener(what, action);
    for (const service of this.model.services) $("service").append(el("option", { value: service }, service));
    on("search", "input", () => this.filter());
    on("service", "change", () => this.filter());
    on("min", "input", () => this.filter());
    for (const id of ["only-critical", "only-errors"]) on(id, "click", () => { press($(id)); this.filter(); });
    $("only-errors").disabled = !this.model.errors;
    if (this.model.errors) $("only-errors").textContent = `Errors ${this.model.errors}`;
    on("clear", "click", () => this.clearFilters());
    on("raw", "click", () => this.setRaw(!pressed($("raw"))));
    $("raw").hidden = !this.model.clock || typeof this.model.clock.readings[0].wall !== "number";
    on("zoom-in", "click", () => this.scale(0.5));
    on("zoom-out", "click", () => this.scale(2));
    on("zoom-all", "click", () => this.zoom(0, this.model.end));
    on("collapse", "click", () => this.collapseAll());
    on("expand", "click", () => this.expandAll());
    on("help", "click", () => $("keys").showModal());
    on("link", "click", () => this.copyLink());
    on("theme", "click", () => this.switchTheme());
    for (const tab of TABS) on(`tab-${tab}`, "click", () => this.openTab(tab));
  }

  async copyLink() {
    const address = this.link();
    try {
      history.replaceState(null, "", address);
      await navigator.clipboard.writeText(address);
      $("link").textContent = "Copied";
    } catch {
      $("link").textContent = "In the address";
    }
    setTimeout(() => { $("link").textContent = "Link"; }, 1500);
  }

  switchTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    this.overview.draw();
  }

  // --- which spans

  filter() {
    const { model } = this;
    const query = parseQuery($("search").value, model);
    const service = $("service").value;
    const least = parseDuration($("min").value);
    $("min").setAttribute("aria-invalid", $("min").value.trim() !== "" && least === null);
    const critical = pressed($("only-critical")), errors = pressed($("only-errors"));
    const allLanes = this.lanes.size === model.lanes.length;
    const active = Boolean(query || service || least || critical || errors || !allLanes);
    const matches = active ? model.spans.filter((span) =>
      (!query || query(span)) && (!service || span.service === service) && (!least || span.duration >= least)
      && (!critical || notable(span, model)) && (!errors || span.failed) && this.lanes.has(span.lane)) : model.spans;
    this.matches = matches;
    // Ancestors keep the tree together.
    const kept = active ? new Set(matches) : null;
    const context = new Set(), climbed = new Set();
    if (active) {
      for (const span of matches) {
        for (let above = span.parent; above && !climbed.has(above); above = above.parent) {
          climbed.add(above);
          this.collapsed.delete(above);
          if (kept.has(above)) continue;
          kept.add(above);
          context.add(above);
        }
      }
    }
    [this.kept, this.context] = [kept, context];
    $("count").textContent = active
      ? `${matches.length.toLocaleString("en")} of ${count(model.spans.length, "span")}` : count(model.spans.length, "span");
    $("empty").hidden = matches.length > 0;
    this.list();
    if (this.tab === "slowest" || this.tab === "events") this.openTab(this.tab);
  }

  /** The rows of the tree: what the filter kept and nobody collapsed. */
  list() {
    const { spans } = this.model;
    const rows = [];
    for (let index = 0; index < spans.length;) {
      const span = spans[index];
      if (this.kept && !this.kept.has(span)) {
        index += 1;
        continue;
      }
      rows.push(span);
      index = this.collapsed.has(span) ? span.after : index + 1;
    }
    this.rows = rows;
    this.waterfall.show(rows, this.context);
  }

  search(text) {
    $("search").value = text;
    this.openTab("waterfall");
    this.filter();
  }

  onlyLane(lane) {
    const only = this.lanes.size === 1 && this.lanes.has(lane);
    this.setLanes(only ? this.model.lanes.keys() : [lane]);
  }

  setLanes(lanes) {
    this.lanes = new Set(lanes);
    [...$("lane-labels").querySelectorAll("button")].forEach((button, index) =>
      button.setAttribute("aria-pressed", this.lanes.has(index)));
    this.filter();
  }

  clearFilters() {
    $("search").value = $("min").value = $("service").value = "";
    for (const id of ["only-critical", "only-errors"]) $(id).setAttribute("aria-pressed", false);
    this.setLanes(this.model.lanes.keys());
  }

  // --- the tree

  toggle(span) {
    if (!this.collapsed.delete(span)) this.collapsed.add(span);
    this.list();
  }

  collapseAll() {
    for (const span of this.model.spans) if (span.children.length && span.depth) this.collapsed.add(span);
    this.list();
  }

  expandAll() {
    this.collapsed.clear();
    this.list();
  }

  select(span, keepTab = false) {
    if (!keepTab && this.tab !== "waterfall") this.openTab("waterfall");
    if (this.kept && !this.kept.has(span)) this.clearFilters();
    let folded = false;
    for (let above = span.parent; above; above = above.parent) folded = this.collapsed.delete(above) || folded;
    if (folded) this.list();
    this.selected = this.waterfall.selected = span;
    this.details.show(span);
    // It may be outside of what is zoomed to.
    if (span.end < this.from || span.start > this.to) this.zoomTo(span);
    this.waterfall.reveal(span);
    this.toHash(span);
  }

  close() {
    this.details.hide();
    this.selected = this.waterfall.selected = null;
    this.waterfall.schedule();
    this.toHash(null);
    $("rows").focus({ preventScroll: true });
  }

  step(amount) {
    const now = this.rows.indexOf(this.selected);
    const next = this.rows[Math.min(Math.max(now < 0 ? 0 : now + amount, 0), this.rows.length - 1)];
    if (next) this.select(next);
  }

  stepCritical(direction) {
    const path = this.rows.filter((span) => span.criticalTime > this.model.root.duration / 1000);
    const now = this.selected ? this.selected.index : -1;
    const next = direction > 0 ? path.find((span) => span.index > now) : [...path].reverse().find((span) => span.index < now);
    if (next) this.select(next);
  }

  // --- time

  zoom(from, to) {
    const { end } = this.model;
    const length = Math.min(Math.max(to - from, MIN_WINDOW), Math.max(end, MIN_WINDOW));
    const begin = Math.min(Math.max(from, 0), Math.max(end - length, 0));
    [this.from, this.to] = [begin, begin + length];
    this.waterfall.setWindow(this.from, this.to);
    this.overview.showWindow(this.from, this.to);
  }

  scale(factor) {
    // Around the selected span, if it is seen.
    const { selected, from, to } = this;
    const middle = selected && selected.start >= from && selected.end <= to ? (selected.start + selected.end) / 2 : (from + to) / 2;
    this.zoom(middle - (middle - from) * factor, middle + (to - middle) * factor);
  }

  pan(shift) {
    const { end } = this.model;
    const moved = Math.min(Math.max(shift, -this.from), end - this.to);
    this.zoom(this.from + moved, this.to + moved);
  }

  zoomTo(span) {
    const margin = Math.max(span.end - span.start, MIN_WINDOW) * 0.08;
    this.zoom(span.start - margin, span.end + margin);
  }

  zoomToStage(stage) {
    this.openTab("waterfall");
    const slices = this.model.slices.filter(([which]) => which === stage);
    if (!slices.length) return;
    const from = slices[0][1], to = slices[slices.length - 1][2], margin = (to - from) * 0.04;
    this.zoom(from - margin, to + margin);
    this.waterfall.scrollToWindow((span) => span.stage === stage || stage < 0);
  }

  setRaw(on) {
    $("raw").setAttribute("aria-pressed", on);
    this.waterfall.raw = on;
    this.waterfall.schedule();
  }

  // --- the page

  openTab(tab) {
    this.tab = tab;
    for (const name of TABS) {
      $(`tab-${name}`).setAttribute("aria-selected", name === tab);
      $(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
      $(`view-${name}`).hidden = name !== tab;
    }
    if (tab === "slowest") this.tables.slowest([...this.matches]);
    if (tab === "stages") this.tables.stages();
    if (tab === "flame") this.flame.show();
    if (tab === "events") $("view-events").replaceChildren(eventsView([...this.matches], (span) => this.select(span)));
    if (tab === "clock") this.tables.clock();
    if (tab === "waterfall") this.waterfall.schedule();
  }

  toHash(span) {
    // A page from a file may not always rewrite its address; the link is a convenience.
    try {
      history.replaceState(null, "", span ? `#span=${span.id}` : "#");
    } catch {
      return;
    }
  }

  fromHash() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const span = this.model.spans.find((one) => one.id === parts.get("span"));
    if (parts.has("q")) this.search(parts.get("q"));
    if (span && span !== this.selected) this.select(span);
    const window = /^(\d+)-(\d+)$/.exec(parts.get("at") || "");
    if (window) this.zoom(Number(window[1]), Number(window[2]));
    if (TABS.includes(parts.get("tab"))) this.openTab(parts.get("tab"));
  }

  key(event) {
    const { target } = event;
    if ($("keys").open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return this.escape(event);
    if (target.matches("input, select, textarea")) return;
    if (target.matches("[role=tab]") && /^Arrow(Left|Right)$/.test(event.key)) return this.stepTab(event.key === "ArrowRight" ? 1 : -1);
    // Buttons keep their own keys.
    if (target.matches("button") && (event.key === "Enter" || event.key === " ")) return;
    const action = this.keys()[event.key];
    if (!action) return;
    event.preventDefault();
    action(event);
  }

  keys() {
    const { selected } = this;
    const page = Math.max(Math.floor($("scroller").clientHeight / ROW) - 2, 1);
    return {
      "/": () => { $("search").focus(); $("search").select(); },
      "?": () => $("keys").showModal(),
      ArrowDown: () => this.step(1),
      ArrowUp: () => this.step(-1),
      PageDown: () => this.step(page),
      PageUp: () => this.step(-page),
      Home: () => this.step(-Infinity),
      End: () => this.step(this.rows.length),
      ArrowLeft: (event) => (event.shiftKey ? this.collapseAll() : this.goLeft()),
      ArrowRight: (event) => (event.shiftKey ? this.expandAll() : this.goRight()),
      Enter: () => this.select(selected || this.rows[0]),
      f: () => selected && this.zoomTo(selected),
      "+": () => this.scale(0.5),
      "=": () => this.scale(0.5),
      "-": () => this.scale(2),
      "0": () => this.zoom(0, this.model.end),
      a: () => this.pan((this.from - this.to) / 4),
      d: () => this.pan((this.to - this.from) / 4),
      n: () => this.stepCritical(1),
      p: () => this.stepCritical(-1),
      c: () => $("only-critical").click(),
      e: () => $("only-errors").click(),
    };
  }

  goLeft() {
    const { selected } = this;
    if (!selected) return;
    if (selected.children.length && !this.collapsed.has(selected)) this.toggle(selected);
    else if (selected.parent) this.select(selected.parent);
  }

  goRight() {
    const { selected } = this;
    if (!selected || !selected.children.length) return;
    if (this.collapsed.has(selected)) this.toggle(selected);
    else this.step(1);
  }

  stepTab(amount) {
    const tabs = TABS.filter((name) => !$(`tab-${name}`).hidden);
    const tab = tabs[(tabs.indexOf(this.tab) + amount + tabs.length) % tabs.length];
    this.openTab(tab);
    $(`tab-${tab}`).focus();
  }

  escape(event) {
    if (event.target === $("search") && $("search").value) this.search("");
    else if (event.target.matches("input")) event.target.blur();
    else if (this.selected) this.close();
    else if ($("search").value) this.search("");
    else this.zoom(0, this.model.end);
    event.preventDefault();
  }
}

const pressed = (button) => button.getAttribute("aria-pressed") === "true";
const press = (button) => button.setAttribute("aria-pressed", !pressed(button));
