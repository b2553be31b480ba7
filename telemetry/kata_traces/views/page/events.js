// All events of the trace in the order of time: the kernel's lines, logs, exits, errors.

const MAX_EVENTS = 500;

/** The events of `spans`, as rows of which each leads to its span by `select`. */
function eventsView(spans, select) {
  const found = spans.flatMap((span) => span.events.map((event) => [span, event])).sort((a, b) => a[1].time - b[1].time);
  const row = ([span, event]) => {
    const level = levelOf(event).toLowerCase();
    const said = level ? event.attributes.find(([key]) => MESSAGE_KEYS.includes(key)) : undefined;
    const rest = event.attributes.filter((pair) => pair !== said && !LEVEL_KEYS.includes(pair[0]));
    return el("tr", { style: { "--ink": laneColour(span.lane) } },
      el("td", { class: "number" }, duration(event.time)),
      el("td", {}, el("button", { type: "button", class: "link", title: span.name, onclick: () => select(span) },
        el("span", { class: "dot" }), el("span", { class: "text" }, span.name))),
      el("td", { class: "said" }, el("span", { class: "text" }, said ? String(said[1]) : event.name),
        level && level !== "log" ? el("span", { class: "faint" }, ` ${level}`) : null,
        ...rest.map(([key, value]) => el("span", { class: "faint tag" }, ` ${key}=${attribute(key, value)}`))));
  };
  return el("div", { class: "page" },
    el("h2", {}, count(found.length, "event")),
    found.length ? el("div", { class: "table-box" }, el("table", { class: "data" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "number" }, "Time"), el("th", { scope: "col" }, "Span"), el("th", { scope: "col" }, "Event"))),
      el("tbody", {}, ...found.slice(0, MAX_EVENTS).map(row))))
      : el("p", { class: "faint" }, "None of the spans that are shown has an event."),
    found.length > MAX_EVENTS ? el("p", { class: "faint" }, `and ${count(found.length - MAX_EVENTS, "later one")}; a search shows fewer`) : "");
}
