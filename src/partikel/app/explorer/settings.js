// What can be set: one table makes the controls, the address and the defaults.

import { KERNELS } from "./kernels.js";
import { OBJECTIVES } from "./objectives.js";
import { SAMPLE_FIELDS } from "./samples.js";
import { SOLVERS } from "./solvers.js";

const named = (pairs) => pairs.map(([value, label]) => ({ value, label }));
const listed = (table) => Object.entries(table).map(([value, { label }]) => ({ value, label }));
const isPlane = (state) => state.field === "plane";
const isOwn = (state) => !state.field.startsWith("run");
const hasKernel = ({ field }) => field === "mmd" || field === "stein";
const isSampled = (state) => isPlane(state) && state.carrier === "particles";

/** Runs that the page holds: those with a score stand on the plane, others are a field of their own. */
export const RUNS = [];
const SCORES = [];

/** Offer runs among the settings. */
export function offer(runs) {
  const options = (key) => SETTINGS.find((each) => each.key === key).options;
  runs.forEach((run, index) => {
    RUNS.push(run);
    const option = { value: `run${index + 1}`, label: run.label };
    if (run.kind === "score") SCORES.push(run);
    options(run.kind === "score" ? "score" : "field").push(option);
  });
}

/** The run that a setting names; undefined where it names none. */
export function runOf(value) {
  return value.startsWith("run") ? RUNS[Number(value.slice(3)) - 1] : undefined;
}

/** Groups of controls, in the order of the page. */
export const GROUPS = [
  { key: "model", title: "Field and carrier" },
  { key: "data", title: "Data" },
  { key: "sampler", title: "Sampler" },
  { key: "wrong", title: "What goes wrong, and who repairs it" },
  { key: "show", title: "Show" },
];

/**
 * Every setting: `kind` "choice", "range" or "switch"; `of` the group; `when` it has a meaning. Settings
 * without a group have a control of their own.
 */
export const SETTINGS = [
  {
    key: "field",
    kind: "choice",
    of: "model",
    label: "Field",
    initial: "plane",
    options: named([
      ["plane", "the plane: score and discriminator"],
      ["critic", "a discriminator, trained here"],
    ]).concat(listed(SAMPLE_FIELDS)),
  },
  {
    key: "carrier",
    kind: "choice",
    of: "model",
    label: "Carried by",
    initial: "particles",
    options: named([
      ["particles", "free particles"],
      ["generator", "a generator, trained here"],
    ]),
    when: isOwn,
  },
  {
    key: "score",
    kind: "choice",
    of: "model",
    label: "Score",
    initial: "exact",
    options: named([["exact", "exact"]]),
    when: (state) => isPlane(state) && SCORES.length > 0,
  },
  {
    key: "objective",
    kind: "choice",
    of: "model",
    label: "Objective: particles ascend",
    initial: "non-saturating",
    options: listed(OBJECTIVES),
    when: (state) => state.field === "critic",
  },
  {
    key: "kernel",
    kind: "choice",
    of: "model",
    label: "Kernel",
    initial: "energy",
    options: listed(KERNELS).map((option) => ({
      ...option,
      unless: ({ field }) => field === "stein" && KERNELS[option.value].conditional,
    })),
    when: hasKernel,
  },
  {
    key: "bandwidth",
    kind: "choice",
    of: "model",
    label: "Bandwidth h",
    initial: "own",
    options: named([
      ["own", "the kernel's usual one"],
      ["median", "median distance"],
      ...[0.25, 0.5, 1, 2, 4].map((h) => [h, `${h}`]),
    ]),
    when: (state) => hasKernel(state) && state.kernel !== "energy",
  },
  {
    key: "noise",
    kind: "range",
    of: "model",
    label: "Score of data with noise σ",
    initial: 0.1,
    low: 0.05,
    high: 2,
    by: 0.05,
    when: (state) => state.field === "stein",
  },
  {
    key: "lines",
    kind: "range",
    of: "model",
    label: "Lines a step",
    initial: 32,
    low: 1,
    high: 64,
    by: 1,
    when: (state) => state.field === "sliced",
  },
  {
    key: "temperature",
    kind: "range",
    of: "model",
    label: "Temperature τ",
    initial: 0.5,
    low: 0.2,
    high: 2,
    by: 0.05,
    when: (state) => state.field === "drift",
  },
  {
    key: "data",
    kind: "choice",
    of: "data",
    label: "Law",
    initial: "gaussians",
    options: named([
      ["gaussians", "five Gaussians"],
      ["unequal", "five, unequal weights"],
      ["moons", "moons"],
      ["spiral", "spiral"],
      ["checkerboard", "checkerboard"],
      ["hand", "drawn by hand"],
    ]),
    when: isOwn,
  },
  { key: "seed", kind: "range", of: "data", label: "Seed", initial: 0, low: 0, high: 20, by: 1 },
  { key: "g2", kind: "place", initial: 2 },
  { key: "lambda2", kind: "place", initial: 1 },
  {
    key: "solver",
    kind: "choice",
    of: "sampler",
    label: "Solver",
    initial: "heun",
    options: listed(SOLVERS),
    when: isSampled,
  },
  {
    key: "steps",
    kind: "range",
    of: "sampler",
    label: "Steps",
    initial: 100,
    low: 4,
    high: 240,
    by: 1,
    when: isSampled,
  },
  {
    key: "levels",
    kind: "choice",
    of: "sampler",
    label: "Levels",
    initial: 0,
    options: named([
      [0, "even in log σ"],
      [7, "Karras, exponent 7"],
      [2, "even in √σ"],
      [1, "even in σ"],
    ]),
    when: isSampled,
  },
  {
    key: "sigma",
    kind: "range",
    of: "sampler",
    label: "σ_max",
    initial: 10,
    low: 1,
    high: 40,
    by: 0.5,
    when: isSampled,
  },
  {
    key: "shift",
    kind: "range",
    of: "wrong",
    label: "Prior moved by",
    unit: "σ_max",
    initial: 0,
    low: 0,
    high: 2,
    by: 0.05,
    when: isSampled,
  },
  {
    key: "width",
    kind: "range",
    of: "wrong",
    label: "Prior wider by",
    unit: "×",
    initial: 1,
    low: 0.2,
    high: 2,
    by: 0.05,
    when: isSampled,
  },
  {
    key: "error",
    kind: "range",
    of: "wrong",
    label: "Score believes the data moved by",
    initial: 0,
    low: 0,
    high: 3,
    by: 0.05,
    when: isPlane,
  },
  {
    key: "critic",
    kind: "choice",
    of: "wrong",
    label: "Discriminator",
    initial: "ideal",
    options: named([
      ["ideal", "ideal: constant where laws match"],
      ["kernel", "always by density of particles"],
      ["none", "none: its part is left out"],
    ]),
    when: isPlane,
  },
  { key: "paths", kind: "switch", of: "show", label: "paths", initial: true },
  { key: "arrows", kind: "switch", of: "show", label: "arrows of the field (and what a generator makes of it)", initial: false },
  { key: "shading", kind: "switch", of: "show", label: "shading of the law or potential", initial: true },
  { key: "hand", kind: "hidden", initial: "" },
];

export function defaults() {
  return Object.fromEntries(SETTINGS.map(({ key, initial }) => [key, initial]));
}

/** What differs from the defaults, as the address has it. */
export function toFragment(state) {
  const parts = SETTINGS.filter(({ key, initial }) => state[key] !== initial);
  return parts.map(({ key }) => `${key}=${encodeURIComponent(Number(state[key]) || state[key])}`).join("&");
}

/** The state of an address; what cannot be is left at its default. */
export function fromFragment(fragment) {
  const state = defaults();
  for (const part of fragment.replace(/^#/, "").split("&")) {
    const [key, given = ""] = part.split("=");
    const setting = SETTINGS.find((each) => each.key === key);
    if (!setting) continue;
    const value = read(setting, safelyDecoded(given));
    if (value !== undefined) state[key] = value;
  }
  return state;
}

function safelyDecoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

/** A setting's value from text; undefined where it is none. */
function read(setting, text) {
  const number = text.trim() === "" ? Number.NaN : Number(text);
  if (setting.kind === "range") {
    if (!Number.isFinite(number)) return undefined;
    const snapped = setting.low + Math.round((number - setting.low) / setting.by) * setting.by;
    return Math.min(setting.high, Math.max(setting.low, Number(snapped.toFixed(6))));
  }
  if (setting.kind === "place") return Number.isFinite(number) ? number : undefined;
  if (setting.kind === "switch") return ["true", "1"].includes(text);
  if (setting.options) return setting.options.find(({ value }) => String(value) === text)?.value;
  return text;
}

/** Points drawn by hand as text and back: two base-36 digits a coordinate over [-5, 5]. */
export function packed(points) {
  const one = (value) => Math.round(((value + 5) / 10) * 1295);
  return points.flat().map((v) => one(v).toString(36).padStart(2, "0")).join("");
}

export function unpacked(text) {
  const points = [];
  for (let i = 0; i + 4 <= text.length; i += 4) {
    const pair = [text.slice(i, i + 2), text.slice(i + 2, i + 4)];
    const numbers = pair.map((part) => (Number.parseInt(part, 36) / 1295) * 10 - 5);
    if (numbers.every(Number.isFinite)) points.push(numbers);
  }
  return points;
}
