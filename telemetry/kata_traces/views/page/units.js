// Numbers as people read them, and elements that take nothing but text.

const NS = { ns: 1, us: 1e3, "µs": 1e3, "μs": 1e3, ms: 1e6, s: 1e9, m: 6e10, h: 3.6e12 };

/** `1.25 s`, `48.1 ms`, `750 µs`: three digits; as a tick of an axis without zeros behind the point. */
function duration(ns, tick = false) {
  if (ns < 0) return "\u2212" + duration(-ns, tick);
  if (ns >= 99.95e9) return longDuration(Math.round(ns / 1e9));
  const [unit, size] = [["s", 1e9], ["ms", 1e6], ["µs", 1e3], ["ns", 1]].find(([, s]) => ns >= s * 0.9995) || ["s", 1e9];
  const value = ns / size;
  let text = unit === "ns" ? String(Math.round(ns)) : value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
  if ((tick || !ns) && text.includes(".")) text = text.replace(/\.?0+$/, "");
  return `${text} ${unit}`;
}

function longDuration(seconds) {
  const s = seconds % 60, m = Math.floor(seconds / 60) % 60, h = Math.floor(seconds / 3600) % 24;
  const d = Math.floor(seconds / 86400);
  if (d) return `${d} d ${h} h`;
  return h ? `${h} h ${m} m` : `${m} m ${s} s`;
}

/** ns in `5ms`, `0.2 s`, or a number of ms; null for anything else. */
function parseDuration(text) {
  const found = /^\s*(\d+(?:\.\d*)?|\.\d+)\s*([nuµμm]?s|m|h)?\s*$/.exec(text);
  return found ? Number(found[1]) * NS[found[2] || "ms"] : null;
}

/** The value of an attribute; what is a time, by its name, as people read times, and as it is. */
function attribute(key, value) {
  if (!key.endsWith("_ns") || !/^-?\d+$/.test(String(value))) return String(value);
  const ns = Number(value);
  if (Math.abs(ns) < 8.64e16) return Math.abs(ns) < 1000 ? `${value} ns` : `${duration(ns)} (${value} ns)`;
  return `${clockTime(BigInt(value))} (${value} ns)`;
}

function percent(part, whole) {
  return `${(whole ? (100 * part) / whole : 0).toFixed(1)} %`;
}

function count(number, one, many = one + "s") {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** A clock's time with ns, in the reader's zone; `ns` is a BigInt since the epoch. */
function clockTime(ns) {
  const date = new Date(Number(ns / 1000000n));
  if (Number.isNaN(date.getTime())) return `${ns} ns`;
  const two = (value) => String(value).padStart(2, "0");
  const fraction = String(((ns % 1000000000n) + 1000000000n) % 1000000000n).padStart(9, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${fraction}`;
}

/** An element. Strings among `children` become text, never markup; `on…` properties are listeners. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === false) continue;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const $ = (id) => document.getElementById(id);

/** What a custom property comes to in the current theme; a canvas has to be told. */
function colour(name) {
  const probe = $("title");
  const before = probe.style.color;
  probe.style.color = `var(${name})`;
  const value = getComputedStyle(probe).color;
  probe.style.color = before;
  return value;
}

/** Which of our two inks is easier to read on `background`, both as the browser computes them: `rgb(1, 2, 3)`. */
function inkOn(background) {
  const luminance = (text) => {
    const [r, g, b] = text.match(/[\d.]+/g).map((part) => (Number(part) / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return luminance(background) > 0.18 ? colour("--deep") : colour("--pale");
}

const laneColour = (lane) => `var(--lane-${lane})`;
const stageColour = (stage) => (stage < 0 ? "var(--bad)" : `var(--stage-${stage})`);
