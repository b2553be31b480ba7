// Where the time went by what was called: spans of one path together, as wide as their self time and what is below them.

const FLAME_ROW = 22, MAX_NODES = 4000;

class Flame {
  /** `actions`: search(text), select(span). */
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.up = false;
    this.focus = null;
    new ResizeObserver(() => { if (!$("view-flame").hidden) this.layout(); }).observe($("view-flame"));
  }

  /** One node for each path of names; `self` is theirs alone, `weight` with all below. */
  tree() {
    const top = { name: this.model.root.name, lane: this.model.root.lane, self: 0, weight: 0, spans: [], below: new Map(), above: null, depth: 0 };
    const nodes = new Map();
    for (const span of this.model.spans) {
      const above = span.parent ? nodes.get(span.parent) : null;
      let node = top;
      if (span.index !== 0) {
        const under = above || top;
        node = under.below.get(span.name);
        if (!node) {
          node = { name: span.name, lane: span.lane, self: 0, weight: 0, spans: [], below: new Map(), above: under, depth: under.depth + 1 };
          under.below.set(span.name, node);
        }
      }
      nodes.set(span, node);
      node.self += Math.max(span.self, 0);
      node.spans.push(span);
    }
    // Children were made after their parents, so from the end the weights add up.
    const made = [...new Set(nodes.values())];
    for (const node of made) node.weight = node.self;
    for (const node of made.sort((a, b) => b.depth - a.depth)) if (node.above) node.above.weight += node.weight;
    return top;
  }

  show() {
    this.top = this.tree();
    this.focus = this.top;
    const mode = (up, text) => el("button", { type: "button", "aria-pressed": this.up === up, onclick: () => { this.up = up; this.show(); } }, text);
    this.note = el("span", { class: "faint", role: "status" });
    this.box = el("div", { class: "flame", role: "tree", "aria-label": "Self time by path" });
    $("view-flame").replaceChildren(el("div", { class: "page" },
      el("div", { class: "page-head" }, el("h2", {}, this.up ? "Flame graph" : "Icicle"),
        el("span", { class: "group", role: "group", "aria-label": "Direction" }, mode(false, "Icicle"), mode(true, "Flame")),
        el("button", { type: "button", class: "link", onclick: () => { this.focus = this.top; this.layout(); } }, "Whole"), this.note),
      el("p", { class: "faint" }, "As wide as the time of a path's spans alone and of what is below them; spans beside each other add up. Enter zooms, s searches its spans."),
      this.box));
    this.layout();
  }

  layout() {
    if (!this.box) return;
    const width = this.box.clientWidth;
    if (!width) return;
    const cells = [], focus = this.focus;
    const chain = [];
    for (let node = focus; node; node = node.above) chain.unshift(node);
    for (const [depth, node] of chain.entries()) cells.push([node, 0, width, depth]);
    const pending = [[focus, 0, chain.length - 1]];
    while (pending.length && cells.length < MAX_NODES) {
      const [node, left, depth] = pending.shift();
      let x = left;
      for (const child of [...node.below.values()].sort((a, b) => b.weight - a.weight)) {
        const w = focus.weight ? (child.weight / focus.weight) * width : 0;
        if (w >= 1) {
          cells.push([child, x, w, depth + 1]);
          pending.push([child, x, depth + 1]);
        }
        x += w;
      }
    }
    const rows = Math.max(...cells.map((cell) => cell[3])) + 1;
    this.box.style.height = `${rows * FLAME_ROW}px`;
    this.box.replaceChildren(...cells.map(([node, x, w, depth]) => this.cell(node, x, w, this.up ? rows - 1 - depth : depth, depth)));
    this.tell(focus);
  }

  cell(node, x, width, row, depth) {
    const share = percent(node.weight, this.top.weight);
    const label = `${node.name}: ${duration(node.weight)} (${share}), alone ${duration(node.self)}, ${count(node.spans.length, "span")}`;
    return el("button", {
      type: "button", role: "treeitem", "aria-level": depth + 1, title: label, "aria-label": label,
      class: node === this.focus ? "focus" : "",
      style: { "--ink": laneColour(node.lane), left: `${x}px`, width: `${Math.max(width - 1, 1)}px`, top: `${row * FLAME_ROW}px` },
      onclick: () => { this.focus = node; this.layout(); },
      onfocus: () => this.tell(node), onmouseenter: () => this.tell(node),
      onkeydown: (event) => { if (event.key === "s") { event.stopPropagation(); this.actions.search(`name:"${node.name}"`); } },
    }, width > 34 ? node.name : "");
  }

  tell(node) {
    this.note.textContent = `${node.name}: ${duration(node.weight)}, ${percent(node.weight, this.top.weight)}; alone ${duration(node.self)}; ${count(node.spans.length, "span")}`;
  }
}
