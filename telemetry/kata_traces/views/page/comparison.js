// Two traces, or two groups, beside each other: stages and spans by what they changed.

const MAX_CHANGED = 40;

function comparisonView(result, names, close) {
  const most = Math.max(...result.stages.map((row) => Math.abs(row.contribution_ns)), ...result.spans.map((row) => Math.abs(row.contribution_ns)), 1);
  const side = (name, runs, figures) => el("div", {}, el("b", {}, name), ` ${figures}`, el("div", { class: "faint" }, runs.slice(0, 6).join(", ") + (runs.length > 6 ? ` and ${runs.length - 6} more` : "")));
  const signed = (ns) => (ns > 0 ? "+" : "") + duration(ns);
  const bar = (ns) => {
    const width = { width: `${(100 * Math.abs(ns)) / most}%` };
    return el("div", { class: "change", "aria-hidden": true },
      el("span", {}, ns < 0 ? el("i", { class: "faster", style: width }) : null),
      el("span", {}, ns > 0 ? el("i", { class: "slower", style: width }) : null));
  };
  const line = (label, title, row) => el("tr", {},
    el("th", { scope: "row", title }, label),
    el("td", { class: "number" }, row.in_runs[0] ? duration(row.baseline_p50_ns) : "\u2013"),
    el("td", { class: "number" }, row.in_runs[1] ? duration(row.candidate_p50_ns) : "\u2013"),
    el("td", { class: "number" }, signed(row.contribution_ns)), el("td", { class: "wide" }, bar(row.contribution_ns)));
  const table = (head, lines) => el("table", { class: "data" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, head), el("th", { scope: "col", class: "number" }, "A"),
      el("th", { scope: "col", class: "number" }, "B"), el("th", { scope: "col", class: "number" }, "B adds"), el("th", { scope: "col", class: "wide" }, ""))),
    el("tbody", {}, ...lines));
  const changed = result.spans.filter((row) => row.contribution_ns);
  return [
    el("div", { class: "page-head" }, el("h2", {}, "A against B"), el("span", { class: "space" }),
      el("button", { type: "button", class: "close", "aria-label": "Close the comparison", onclick: close }, "\u00d7")),
    el("div", { class: "versus" }, side("A", names[0], duration(result.total.baseline_p50_ns)), side("B", names[1], duration(result.total.candidate_p50_ns))),
    el("p", { role: "status" }, result.sentence),
    el("div", { class: "table-box" }, table("Stage", result.stages.map((row) => line(row.stage, "", row)))),
    el("div", { class: "table-box" }, table("Span, by what it added to what everybody waited for", changed.slice(0, MAX_CHANGED).map((row) =>
      line(row.path.slice(-3).join(" \u203a "), row.path.join(" \u203a "), row)))),
    changed.length > MAX_CHANGED ? el("p", { class: "faint" }, `and ${changed.length - MAX_CHANGED} smaller changes`) : null,
  ].filter(Boolean);
}
