// Starts over time: a point for each trace, the median and the 95th percentile of those around it, outliers to click.

const CHART_HEIGHT = 190, PAD_LEFT = 56, PAD_BOTTOM = 18;
const SVG = "http://www.w3.org/2000/svg";
// A trace is an outlier from this factor over the median on; and so many points are drawn.
const OUTLIER = 1.5, MAX_POINTS = 2000, BUCKETS = 24;

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

function percentileOf(values, share) {
  if (!values.length) return 0;
  const ordered = [...values].sort((a, b) => a - b);
  const place = ((ordered.length - 1) * share) / 100, low = Math.floor(place);
  return ordered[low] + ((ordered[low + 1] ?? ordered[low]) - ordered[low]) * (place - low);
}

/** What of a row is charted: a stage of its start, the start, or the whole. */
function measure(row, stage) {
  if (stage === "") return row.started || (row.failure ? row.duration : null);
  if (stage === "whole") return row.duration;
  return row.stages[stage] ?? null;
}

function drawChart(rows, stage) {
  const chart = $("chart"), width = chart.clientWidth || 800;
  const points = rows.map((row) => [row.start, measure(row, stage), row]).filter(([, value]) => value !== null && value > 0).reverse();
  chart.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT}`);
  if (!points.length) {
    chart.replaceChildren(svg("text", { x: 12, y: 30 }, "no such trace has this"));
    $("chart-note").textContent = "";
    return;
  }
  const values = points.map(([, value]) => value);
  const p50 = percentileOf(values, 50), p95 = percentileOf(values, 95);
  const first = points[0][0], last = points[points.length - 1][0];
  const highest = Math.max(...values) * 1.05;
  const x = (at) => PAD_LEFT + (last > first ? (at - first) / (last - first) : 0.5) * (width - PAD_LEFT - 12);
  const y = (value) => 8 + (1 - value / highest) * (CHART_HEIGHT - PAD_BOTTOM - 8);
  const parts = [];
  for (let part = 0; part <= 4; part++) {
    const value = (highest * part) / 4;
    parts.push(svg("line", { class: "grid-line", x1: PAD_LEFT, x2: width - 12, y1: y(value), y2: y(value) }));
    parts.push(svg("text", { x: PAD_LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, duration(value, true)));
  }
  for (const [at, anchor] of [[first, "start"], [last, "end"]]) {
    parts.push(svg("text", { x: x(at), y: CHART_HEIGHT - 3, "text-anchor": anchor }, new Date(at).toLocaleString()));
  }
  for (const [share, kind] of [[50, "p50"], [95, "p95"]]) {
    const path = running(points, share).map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    parts.push(svg("path", { class: kind, d: path }));
  }
  const shown = points.length > MAX_POINTS ? points.filter(([, value], i) => value > OUTLIER * p50 || i % Math.ceil(points.length / MAX_POINTS) === 0) : points;
  const kindOf = (value, row) => (row.failure ? "bad" : value > OUTLIER * p50 ? "out" : "");
  // What is usual is one path, however many they are.
  const usual = shown.filter(([, value, row]) => !kindOf(value, row));
  parts.push(svg("path", { class: "usual", d: usual.map(([at, value]) => `M${x(at).toFixed(1)} ${y(value).toFixed(1)}h0`).join("") }));
  for (const [at, value, row] of shown) {
    const kind = kindOf(value, row);
    if (!kind) continue;
    const text = `${row.name || row.id}: ${duration(value)}${row.failure ? ` \u2013 ${row.failure}` : ""}`;
    parts.push(svg("a", { href: `/trace/${encodeURIComponent(row.id)}`, class: kind, "aria-label": text },
      svg("circle", { cx: x(at).toFixed(1), cy: y(value).toFixed(1), r: 4 }, svg("title", {}, text))));
  }
  chart.replaceChildren(...parts);
  const out = points.filter(([, value]) => value > OUTLIER * p50).length;
  $("chart-note").textContent = `median ${duration(p50)}, 95 % within ${duration(p95)}, ${count(out, "outlier")}`;
}

/** A percentile of neighbouring points, in order of time. */
function running(points, share) {
  const size = Math.max(Math.ceil(points.length / BUCKETS), 1), found = [];
  for (let from = 0; from < points.length; from += size) {
    const bucket = points.slice(from, from + size);
    found.push([bucket[Math.floor(bucket.length / 2)][0], percentileOf(bucket.map(([, value]) => value), share)]);
  }
  if (found.length === 1) found.push([points[points.length - 1][0], found[0][1]]);
  return found;
}
