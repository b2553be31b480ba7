// The trace: rows of kata_traces.views.html as objects, in the order of the tree.

const OPEN = 1, FAILED = 2;
const KINDS = ["", "internal", "server", "client", "producer", "consumer"];

// Spans with so much of the whole on the critical path matter.
const NOTABLE = 0.005;

class Span {
  constructor(row, index, values) {
    let name, service, message, flags;
    [this.id, this.parentIndex, name, service, this.lane, this.stage, this.depth, this.start, this.duration, this.self,
      flags, this.kind, message, this.rawAttributes, this.rawEvents, this.dropped, this.missingParent] = row;
    this.index = index;
    this.values = values;
    this.name = String(values[name]);
    this.service = String(values[service]);
    this.message = String(values[message]);
    this.open = Boolean(flags & OPEN);
    this.failed = Boolean(flags & FAILED);
    this.parent = null;
    this.children = [];
    // The index after its last descendant.
    this.after = index + 1;
    // Stretches of the critical path that are its own.
    this.critical = [];
    this.criticalTime = 0;
  }

  get end() {
    return this.start + Math.max(this.duration, 0);
  }

  get attributes() {
    return this.pairs(this.rawAttributes);
  }

  get events() {
    return this.rawEvents.map(([name, time, pairs]) => ({
      name: String(this.values[name]), time, attributes: this.pairs(pairs),
    }));
  }

  pairs(indices) {
    const found = [];
    for (let i = 0; i + 1 < indices.length; i += 2) found.push([String(this.values[indices[i]]), this.values[indices[i + 1]]]);
    return found;
  }

  /** All its text in lower case, to search in. */
  get text() {
    if (this.cachedText === undefined) {
      const words = [this.name, this.service, this.message, this.id];
      for (const [key, value] of this.attributes) words.push(`${key}=${value}`);
      for (const event of this.events) {
        words.push(event.name);
        for (const [key, value] of event.attributes) words.push(`${key}=${value}`);
      }
      this.cachedText = words.join("\n").toLowerCase();
    }
    return this.cachedText;
  }
}

class Model {
  constructor(content) {
    Object.assign(this, content);
    this.begin = BigInt(content.begin);
    this.spans = content.spans.map((row, index) => new Span(row, index, content.values));
    for (const span of this.spans) {
      if (span.parentIndex >= 0) {
        span.parent = this.spans[span.parentIndex];
        span.parent.children.push(span);
      }
    }
    for (let i = this.spans.length - 1; i >= 0; i--) {
      const { parent, after } = this.spans[i];
      if (parent) parent.after = Math.max(parent.after, after);
    }
    for (const [index, start, end] of content.critical) {
      const span = this.spans[index];
      span.critical.push([start, end]);
      span.criticalTime += end - start;
    }
    this.root = this.spans[0];
    this.services = [...new Set(this.spans.map((span) => span.service))].sort();
    this.errors = this.spans.filter((span) => span.failed).length;
    this.stageTimes = this.stages.map(() => 0);
    this.unaccounted = 0;
    for (const [stage, start, end] of this.slices) {
      if (stage < 0) this.unaccounted += end - start;
      else this.stageTimes[stage] += end - start;
    }
  }

  /** Host time (BigInt, ns) of a time of the trace. */
  host(time) {
    return this.begin + BigInt(Math.round(time));
  }

  isGuest(span) {
    return this.clock !== null && span.service === this.clock.service;
  }

  /** The measurement of the guest's clock that holds at `time`. */
  reading(time) {
    const { readings } = this.clock;
    return readings.filter((reading) => reading.at <= time).pop() || readings[0];
  }

  /** The guest's own CLOCK_MONOTONIC (BigInt, ns) at `time`. */
  guest(time) {
    return this.host(time) - BigInt(this.reading(time).offset);
  }
}
