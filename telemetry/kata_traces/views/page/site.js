// The list of all traces: search, sort, chart, compare, open a file.

const STAGES = ["runtime start", "host setup", "QEMU", "restore", "hotplug", "firmware", "kernel", "initramfs", "agent", "sandbox", "container", "exec", "workload", "stop"];
// Rows that are in the page at once, and how long (ms) typing may pause before it is searched.
const MAX_SHOWN = 60, TYPING = 60, UNREAD_AGAIN = 700;
// Making one for each row would cost more than all the rest of it.
const CLOCK = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });
const COLUMNS = [
  ["", null, ""], ["Trace", "name", ""], ["Pod, image", "pod", "narrow-off"], ["State", "state", ""], ["Start", "start", "narrow-off"],
  ["First process", "started", "number narrow-off"], ["Whole", "duration", "number"], ["Stages of the start", null, "wide-strip narrow-off"], ["Spans", "spans", "number narrow-off"],
];

// Sorted from A on; all others are numbers, the largest first.
const TEXTS = ["name", "pod", "state"];

class Site {
  constructor() {
    this.sort = "start";
    this.turned = false;
    this.rows = [];
    this.at = -1;
    this.sides = { a: new Set(), b: new Set() };
    this.asked = 0;
    this.shown = MAX_SHOWN;
    this.heads();
    const on = (id, what, action) => $(id).addEventListener(what, action);
    on("search", "input", () => this.soon());
    on("clear", "click", () => this.query(""));
    on("compare", "click", () => this.compare());
    on("more", "click", () => this.more());
    on("help", "click", () => $("keys").showModal());
    on("theme", "click", () => this.switchTheme());
    on("file", "change", () => this.open($("file").files));
    on("stage", "change", () => this.chart());
    for (const button of $("quick").children) button.addEventListener("click", () => this.query(button.dataset.query));
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
    document.addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("dropping"); this.open(event.dataTransfer.files); });
    new ResizeObserver(() => this.chart()).observe($("chart"));
    window.addEventListener("hashchange", () => this.fromHash());
    $("stage").append(el("option", { value: "" }, "all of the start"), el("option", { value: "whole" }, "whole life"), ...STAGES.map((stage) => el("option", { value: stage }, stage)));
    $("legend").append(...STAGES.map((stage, index) => el("span", { class: "chip" }, el("i", { class: "dot", style: { "--ink": stageColour(index) } }), ` ${stage}`)),
      el("div", { class: "chart-key" }, el("span", {}, el("i", {}), "median"), el("span", {}, el("i", { class: "k95" }), "95th percentile"),
        el("span", {}, el("i", { class: "dot" }), "outlier"), el("span", {}, el("i", { class: "dot bad" }), "failed")));
    this.fromHash(true);
  }

  heads() {
    $("heads").replaceChildren(...COLUMNS.map(([text, key, kind]) => el("th", { scope: "col", class: kind, "aria-sort": key && this.sort === key ? (TEXTS.includes(key) !== this.turned ? "ascending" : "descending") : undefined },
      key ? el("button", { type: "button", onclick: () => { this.turned = this.sort === key && !this.turned; this.sort = key; this.heads(); this.list(); } }, text) : text)));
  }

  /** The view as an address: what is searched for, and the sides. */
  toHash() {
    const parts = new URLSearchParams();
    if ($("search").value) parts.set("q", $("search").value);
    for (const side of ["a", "b"]) if (this.sides[side].size) parts.set(side, [...this.sides[side]].join(","));
    history.replaceState(null, "", `#${parts}`);
  }

  fromHash(compare = false) {
    const parts = new URLSearchParams(location.hash.slice(1));
    $("search").value = parts.get("q") || "";
    for (const side of ["a", "b"]) this.sides[side] = new Set((parts.get(side) || "").split(",").filter(Boolean));
    this.search();
    if (compare && this.sides.a.size && this.sides.b.size) this.compare();
  }

  query(text) {
    this.shown = MAX_SHOWN;
    $("search").value = text;
    this.search();
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.search(), TYPING);
  }

  async search() {
    clearTimeout(this.timer);
    const asked = ++this.asked, begun = performance.now(), text = $("search").value;
    for (const button of $("quick").children) button.setAttribute("aria-pressed", button.dataset.query === text);
    const answer = await this.ask(`/api/traces?q=${encodeURIComponent(text)}`);
    if (!answer || asked !== this.asked) return;
    for (const row of answer.rows) row.stages = Object.fromEntries(STAGES.map((stage, index) => [stage, row.stages[index]]).filter(([, took]) => took));
    this.all = answer.rows;
    this.answer = answer;
    this.list();
    this.chart();
    this.toHash();
    document.documentElement.dataset.answered = String(Math.round((performance.now() - begun) * 10) / 10);
    document.documentElement.dataset.query = text;
    document.documentElement.dataset.unread = String(answer.unread);
    // What was not read yet is there soon; what lives goes on.
    if (answer.unread) this.timer = setTimeout(() => this.search(), answer.rows.some((row) => row.live) && answer.unread < 5 ? 3000 : UNREAD_AGAIN);
  }

  async ask(url, options) {
    try {
      const answer = await fetch(url, options), content = await answer.json();
      $("problem").hidden = answer.ok;
      if (answer.ok) return content;
      $("problem").textContent = content.error;
    } catch {
      $("problem").hidden = false;
      $("problem").textContent = "trace serve does not answer: has it ended?";
    }
    return null;
  }

  list() {
    const key = this.sort, text = TEXTS.includes(key), way = this.turned ? -1 : 1;
    this.rows = [...this.all].sort((a, b) => way * (text ? String(a[key]).localeCompare(String(b[key])) : b[key] - a[key]));
    const { found, all, unread } = this.answer;
    $("count").textContent = `${found.toLocaleString("en")} of ${count(all, "trace")}${unread ? `, ${unread.toLocaleString("en")} still to be read` : ""}`;
    const failures = this.rows.filter((row) => row.failure).length, live = this.rows.filter((row) => row.live).length;
    $("facts").replaceChildren(...[live ? `${live} running` : "", failures ? `${failures} failed` : "", this.rows.length ? `newest ${new Date(Math.max(...this.rows.map((row) => row.start))).toLocaleString()}` : ""]
      .filter(Boolean).map((fact) => el("span", {}, fact)));
    this.at = Math.min(this.at, this.rows.length - 1);
    $("rows").replaceChildren(...this.rows.slice(0, this.shown).map((row, index) => this.row(row, index)));
    $("more").hidden = this.rows.length <= this.shown;
    $("empty").hidden = this.rows.length > 0;
    this.tellSides();
  }

  row(row, index) {
    const mark = (side) => el("button", { type: "button", class: "side", "aria-pressed": this.sides[side].has(row.id), title: `On side ${side.toUpperCase()} (${side})`,
      "aria-label": `Side ${side.toUpperCase()}`, onclick: (event) => { event.stopPropagation(); this.mark(row.id, side); } }, side.toUpperCase());
    const total = Object.values(row.stages).reduce((sum, took) => sum + took, 0) || 1;
    const strip = el("div", { class: "strip", role: "img", "aria-label": STAGES.filter((stage) => row.stages[stage]).map((stage) => `${stage} ${duration(row.stages[stage])}`).join(", ") },
      ...STAGES.map((stage, number) => (row.stages[stage] ? el("i", { title: `${stage} ${duration(row.stages[stage])}`, style: { "--ink": stageColour(number), width: `${(100 * row.stages[stage]) / total}%` } }) : null)));
    const state = el("span", { class: `pill${row.live ? " live" : row.failure || /^(error|failed|killed)$/.test(row.state) ? " bad" : ""}` }, row.state);
    return el("tr", { "aria-selected": index === this.at, "data-index": index, onclick: () => { this.at = index; this.select(); } },
      el("td", {}, mark("a"), mark("b")),
      el("td", { class: "what" }, el("a", { href: `/trace/${encodeURIComponent(row.id)}` }, row.name || row.command || row.id.slice(0, 12)), " ",
        el("span", { class: "id", title: row.id }, row.id.slice(0, 12)), row.failure ? el("span", { class: "why", title: row.failure }, row.failure) : null),
      el("td", { class: "what narrow-off" }, row.pod || "", row.pod && row.image ? el("br") : null, el("span", { class: "faint", title: row.image }, row.image)),
      el("td", {}, state), el("td", { class: "narrow-off" }, CLOCK.format(row.start)),
      el("td", { class: "number narrow-off" }, row.started ? duration(row.started) : "\u2013"), el("td", { class: "number" }, duration(row.duration) + (row.live ? "+" : "")),
      el("td", { class: "wide-strip narrow-off" }, strip), el("td", { class: "number narrow-off" }, row.spans.toLocaleString("en")));
  }

  more() {
    const from = this.shown;
    this.shown += MAX_SHOWN;
    $("rows").append(...this.rows.slice(from, this.shown).map((row, index) => this.row(row, from + index)));
    $("more").hidden = this.rows.length <= this.shown;
  }

  chart() {
    if (this.all) drawChart(this.all, $("stage").value);
  }

  select() {
    for (const row of $("rows").children) row.setAttribute("aria-selected", Number(row.dataset.index) === this.at);
    const row = $("rows").children[this.at];
    if (row) row.scrollIntoView({ block: "nearest" });
  }

  step(amount) {
    this.at = Math.min(Math.max(this.at + amount, 0), this.rows.length - 1);
    while (this.at >= this.shown) this.more();
    this.select();
  }

  mark(id, side) {
    const other = side === "a" ? "b" : "a";
    this.sides[other].delete(id);
    if (!this.sides[side].delete(id)) this.sides[side].add(id);
    this.list();
    this.toHash();
  }

  tellSides() {
    const { a, b } = this.sides;
    $("sides").textContent = a.size || b.size ? `A ${a.size}, B ${b.size}` : "";
    $("compare").disabled = !(a.size && b.size);
  }

  async compare() {
    const { a, b } = this.sides;
    if (!a.size || !b.size) return;
    const side = (ids) => encodeURIComponent([...ids].join(","));
    const result = await this.ask(`/api/compare?a=${side(a)}&b=${side(b)}`);
    if (!result) return;
    $("compared").replaceChildren(...comparisonView(result, [result.baseline, result.candidate], () => { $("compared").hidden = true; }));
    $("compared").hidden = false;
    $("compared").scrollIntoView({ block: "nearest" });
  }

  async open(files) {
    const [file] = files;
    if (!file) return;
    const answer = await this.ask("/api/drop", { method: "POST", body: file });
    if (answer) location.href = `/trace/${encodeURIComponent(answer.id)}`;
  }

  switchTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }

  key(event) {
    const { target } = event;
    if ($("keys").open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (!$("compared").hidden) $("compared").hidden = true;
      else if (target === $("search") && !$("search").value) target.blur();
      else this.query("");
      event.preventDefault();
      return;
    }
    if (target === $("search") && event.key === "ArrowDown") target.blur();
    else if (target.matches("input, select, textarea")) return;
    if (target.matches("button, a") && (event.key === "Enter" || event.key === " ")) return;
    const row = this.rows[this.at];
    const action = {
      "/": () => { $("search").focus(); $("search").select(); },
      "?": () => $("keys").showModal(),
      ArrowDown: () => this.step(1), ArrowUp: () => this.step(-1), j: () => this.step(1), k: () => this.step(-1),
      PageDown: () => this.step(15), PageUp: () => this.step(-15), Home: () => this.step(-Infinity), End: () => this.step(Infinity),
      Enter: () => { if (row) location.href = `/trace/${encodeURIComponent(row.id)}`; },
      a: () => row && this.mark(row.id, "a"), b: () => row && this.mark(row.id, "b"), x: () => this.compare(),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

new Site();
document.documentElement.dataset.ready = "true";
