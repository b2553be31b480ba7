// What the search box means: words and conditions that must all hold.

/**
 * A test for spans. Words are looked for in names, tags, events and messages; `key=value` in one tag; `service:`,
 * `lane:`, `stage:` and `name:` in that; `>5ms` and `<1s` compare durations; `is:error`, `is:open`, `is:critical`;
 * a minus in front turns a condition round, quotation marks keep words together.
 */
function parseQuery(text, model) {
  const conditions = [];
  for (const found of text.matchAll(/(-?)((?:[^\s"]|"[^"]*"?)+)/g)) {
    const condition = parseCondition(found[2].replace(/"/g, "").toLowerCase(), model);
    if (condition) conditions.push(found[1] ? (span) => !condition(span) : condition);
  }
  return conditions.length ? (span) => conditions.every((condition) => condition(span)) : null;
}

function parseCondition(word, model) {
  if (!word) return null;
  const compared = /^([<>])=?(.+)$/.exec(word);
  if (compared) {
    const limit = parseDuration(compared[2]);
    if (limit === null) return null; // still being typed
    return compared[1] === ">" ? (span) => span.duration >= limit : (span) => span.duration <= limit;
  }
  const field = /^(service|lane|stage|name|is):(.*)$/.exec(word);
  if (field) return fieldCondition(field[1], field[2], model);
  const equals = word.indexOf("=");
  if (equals > 0) {
    const key = word.slice(0, equals), value = word.slice(equals + 1);
    return (span) => span.attributes.some(([k, v]) => k.toLowerCase() === key && String(v).toLowerCase().includes(value));
  }
  if (word === "error" || word === "errors") return (span) => span.failed || span.text.includes(word);
  return (span) => span.text.includes(word);
}

/** Whether so much of the whole waited for it that it matters. */
const notable = (span, model) => span.criticalTime > model.root.duration * NOTABLE;

function fieldCondition(field, value, model) {
  const stage = (span) => (span.stage < 0 ? "" : model.stages[span.stage]);
  return {
    service: (span) => span.service.toLowerCase().includes(value),
    lane: (span) => model.lanes[span.lane].toLowerCase().includes(value),
    stage: (span) => stage(span).toLowerCase().includes(value),
    name: (span) => span.name.toLowerCase().includes(value),
    is: (span) => ({ error: span.failed, open: span.open, critical: notable(span, model) }[value] !== false),
  }[field];
}
