// Fields of samples: forces between particles and points of the data, without a network. The particles are ρ
// itself, as are a generator's outputs; p is some points of the data.

import { Shown } from "./flow.js";
import { KERNELS, medianDistance, squaredRow } from "./kernels.js";
import { SIGMA_END } from "./plane.js";
import { Stream } from "./random.js";

let row = new Float64Array(0);
let values = new Float64Array(0);

/** Room for a row of that many pairs. */
function room(count) {
  if (row.length >= count) return;
  row = new Float64Array(count);
  values = new Float64Array(count);
}

/**
 * A field of particles that are ρ. `start` is the standard deviation of free ones at first; they make `steps`
 * steps of `eta`/`steps` times the field.
 */
class SampleField {
  start = 1;

  /** What it compares with: `count` points of the data. */
  bind(real, count) {
    this.real = real;
    this.count = count;
  }
}

/** What a field of a kernel says of it; `whose` distances have the median. */
function kernelTold({ kernel, bandwidth, h }, whose) {
  const measured = Number.isFinite(h) ? `, h = ${h.toPrecision(3)}` : "";
  const median = bandwidth === "median" ? `, h the median distance of ${whose}` : "";
  return `k(x, y): ${kernel.label}, d = ‖x − y‖${median || measured}.`;
}

/** E_p ∇k(x, y) - E_ρ ∇k(x, y): the flow of ½ MMD². */
class MMD extends SampleField {
  constructor({ kernel, bandwidth }) {
    super();
    this.kernel = KERNELS[kernel];
    this.bandwidth = bandwidth === "own" ? this.kernel.bandwidth : bandwidth;
    this.h = this.bandwidth;
    this.steps = this.kernel.steps;
  }

  /** A median distance is that of the data. */
  bind(real, count) {
    super.bind(real, count);
    if (this.bandwidth === "median") this.h = medianDistance(real, count);
  }

  get eta() {
    return this.kernel.eta * (this.h ?? 1) ** 2;
  }

  get told() {
    return `${kernelTold(this, "those")} p is ${this.count} points of the data.`;
  }

  /** The field at n points, which are ρ. */
  at(x, n, out) {
    const { real, count, kernel, h } = this;
    room(Math.max(n, count));
    out.fill(0, 0, 2 * n);
    for (let i = 0; i < n; i++) {
      const px = x[2 * i];
      const py = x[2 * i + 1];
      squaredRow(px, py, real, 0, count, row);
      kernel.weigh(row, count, h, null);
      let fx = 0;
      let fy = 0;
      for (let j = 0; j < count; j++) {
        fx += row[j] * (px - real[2 * j]);
        fy += row[j] * (py - real[2 * j + 1]);
      }
      out[2 * i] += fx / count;
      out[2 * i + 1] += fy / count;
      squaredRow(px, py, x, i + 1, n, row); // each pair once: its forces are opposite
      kernel.weigh(row, n - i - 1, h, null);
      fx = 0;
      fy = 0;
      for (let j = i + 1; j < n; j++) {
        const w = row[j - i - 1] / n;
        const dx = w * (px - x[2 * j]);
        const dy = w * (py - x[2 * j + 1]);
        fx += dx;
        fy += dy;
        out[2 * j] += dx;
        out[2 * j + 1] += dy;
      }
      out[2 * i] -= fx;
      out[2 * i + 1] -= fy;
    }
    return out;
  }
}

/** E_ρ[k(x, y) s_p(y) + ∇_y k(x, y)]: Stein variational gradient descent, s_p that of data with noise. */
class Stein extends SampleField {
  start = 2;
  eta = 50;
  steps = 200;

  constructor({ kernel, bandwidth, noise }, target) {
    super();
    this.kernel = KERNELS[kernel];
    this.bandwidth = bandwidth === "own" ? 0.5 : bandwidth;
    this.h = this.bandwidth;
    this.noise = noise;
    this.target = target;
    this.scores = new Float64Array(0);
  }

  get told() {
    return `The score is exact, of data with noise σ = ${this.noise}. ${kernelTold(this, "the particles")}`;
  }

  at(x, n, out) {
    const { kernel } = this;
    if (this.bandwidth === "median") this.h = medianDistance(x, n);
    if (this.scores.length < 2 * n) this.scores = new Float64Array(2 * n);
    const scores = this.target.score(x, n, this.noise, this.scores);
    room(n);
    out.fill(0, 0, 2 * n);
    for (let i = 0; i < n; i++) {
      const px = x[2 * i];
      const py = x[2 * i + 1];
      const sx = scores[2 * i];
      const sy = scores[2 * i + 1];
      squaredRow(px, py, x, i, n, row); // each pair once, and a point with itself
      kernel.weigh(row, n - i, this.h, values);
      let fx = values[0] * sx;
      let fy = values[0] * sy;
      for (let j = i + 1; j < n; j++) {
        const k = values[j - i];
        const w = row[j - i];
        const dx = w * (px - x[2 * j]);
        const dy = w * (py - x[2 * j + 1]);
        fx += k * scores[2 * j] - dx;
        fy += k * scores[2 * j + 1] - dy;
        out[2 * j] += k * sx + dx;
        out[2 * j + 1] += k * sy + dy;
      }
      out[2 * i] += fx;
      out[2 * i + 1] += fy;
    }
    for (let i = 0; i < 2 * n; i++) out[i] /= n;
    return out;
  }
}

/** E_p[k (y - x)]/E_p[k] - E_ρ[k (y - x)]/E_ρ[k] with k = exp(-‖x - y‖/τ), ρ the other particles: drifting. */
class Drifting extends SampleField {
  eta = 30;
  steps = 40;

  constructor({ temperature }) {
    super();
    this.temperature = temperature;
    this.sums = new Float64Array(0);
  }

  get told() {
    return `k(x, y) = exp(−‖x − y‖/τ), τ = ${this.temperature}; V takes the place of ∇h, and is no gradient. p is ${this.count} points of the data, ρ all particles but the one at x.`;
  }

  at(x, n, out) {
    const { real, count, temperature } = this;
    const { weigh } = KERNELS.laplace;
    room(Math.max(n, count));
    if (this.sums.length < 3 * n) this.sums = new Float64Array(3 * n);
    const sums = this.sums.fill(0); // of k and of k (y - x), y the other particles
    for (let i = 0; i < n; i++) {
      const px = x[2 * i];
      const py = x[2 * i + 1];
      squaredRow(px, py, real, 0, count, row);
      weigh(row, count, temperature, values);
      let total = 0;
      let fx = 0;
      let fy = 0;
      for (let j = 0; j < count; j++) {
        total += values[j];
        fx += values[j] * (real[2 * j] - px);
        fy += values[j] * (real[2 * j + 1] - py);
      }
      out[2 * i] = fx / total;
      out[2 * i + 1] = fy / total;
      squaredRow(px, py, x, i + 1, n, row);
      weigh(row, n - i - 1, temperature, values);
      total = 0;
      fx = 0;
      fy = 0;
      for (let j = i + 1; j < n; j++) {
        const k = values[j - i - 1];
        const dx = k * (x[2 * j] - px);
        const dy = k * (x[2 * j + 1] - py);
        total += k;
        fx += dx;
        fy += dy;
        sums[3 * j] += k;
        sums[3 * j + 1] -= dx;
        sums[3 * j + 2] -= dy;
      }
      out[2 * i] -= (sums[3 * i + 1] + fx) / (sums[3 * i] + total);
      out[2 * i + 1] -= (sums[3 * i + 2] + fy) / (sums[3 * i] + total);
    }
    return out;
  }
}

/** E_θ θ (T_θ⟨θ, x⟩ - ⟨θ, x⟩), T_θ the optimal transport along a line: the flow of ½ SW2², on fresh lines. */
class Sliced extends SampleField {
  eta = 30;
  steps = 60;

  constructor({ lines }) {
    super();
    this.lines = new Float64Array(2 * lines);
  }

  get told() {
    return `Each step draws ${this.lines.length / 2} lines θ, along which sorting solves the transport. p is ${this.count} points of the data.`;
  }

  at(x, n, out, stream) {
    const { real, count, lines } = this;
    stream.normals(lines);
    for (let l = 0; l < lines.length; l += 2) {
      const length = Math.hypot(lines[l], lines[l + 1]);
      lines[l] /= length;
      lines[l + 1] /= length;
    }
    out.fill(0, 0, 2 * n);
    for (let l = 0; l < lines.length; l += 2) {
      const [across, up] = [lines[l], lines[l + 1]];
      const { places, order } = sorted(x, n, across, up);
      const ends = sorted(real, count, across, up).places;
      let upTo = 0; // integral of the data's quantile function
      let before = 0; // points of it that are whole
      let sum = 0; // of these
      for (let i = 0; i < n; i++) {
        const place = ((i + 1) * count) / n;
        while (before + 1 <= place) sum += ends[before++];
        const now = sum + (before < count ? (place - before) * ends[before] : 0);
        const way = ((now - upTo) * n) / count - places[i];
        upTo = now;
        out[2 * order[i]] += way * across;
        out[2 * order[i] + 1] += way * up;
      }
    }
    for (let i = 0; i < 2 * n; i++) out[i] /= lines.length / 2;
    return out;
  }
}

/** Projections of points on a line in rising order, and whose they are: by buckets, then by insertion. */
function sorted(points, n, across, up) {
  const along = new Float64Array(n);
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < n; i++) {
    along[i] = across * points[2 * i] + up * points[2 * i + 1];
    low = Math.min(low, along[i]);
    high = Math.max(high, along[i]);
  }
  const rate = high > low ? (n - 1) / (high - low) : 0;
  const ends = new Uint32Array(n + 1);
  for (let i = 0; i < n; i++) ends[Math.floor((along[i] - low) * rate) + 1]++;
  for (let b = 0; b < n; b++) ends[b + 1] += ends[b];
  const order = new Uint32Array(n);
  for (let i = 0; i < n; i++) order[ends[Math.floor((along[i] - low) * rate)]++] = i;
  const places = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    const one = order[i];
    let j = i - 1;
    for (; j >= 0 && places[j] > along[one]; j--) {
      places[j + 1] = places[j];
      order[j + 1] = order[j];
    }
    places[j + 1] = along[one];
    order[j + 1] = one;
  }
  return { places, order };
}

/** Fields by name: what they are called in the list, as a flow, and in a generator where that differs. */
export const SAMPLE_FIELDS = {
  mmd: { label: "MMD: data attract, particles repel", title: "MMD flow", short: "MMD", Field: MMD },
  stein: { label: "Stein: a score seen through a kernel", title: "Stein flow (SVGD)", short: "Stein", Field: Stein },
  sliced: { label: "sliced Wasserstein", title: "Sliced Wasserstein flow", short: "Sliced Wasserstein", Field: Sliced },
  drift: { label: "drifting: two mean shifts", title: "Drifting", Field: Drifting },
};

/** The field of a state, without points of the data. */
export function sampleField(state, target) {
  return new SAMPLE_FIELDS[state.field].Field(state, target);
}

const REAL = 1000;

/** Free particles, moved by a field of samples; the points of the data stay the same. */
export class SampleFlow extends Shown {
  constructor(state, target, n) {
    const field = sampleField(state, target);
    super(n, field.steps);
    this.field = field;
    this.target = target;
    this.arrows = new Float64Array(2 * n);
    this.reset(state.seed);
  }

  reset(seed) {
    this.seed = seed;
    this.field.bind(this.target.sample(new Stream(seed + 505), REAL, new Float64Array(2 * REAL)), REAL);
    this.starts = new Stream(seed + 404).normals(new Float64Array(2 * this.n));
    this.again();
  }

  get eta() {
    return this.field.eta;
  }

  /** No clock: the field is the same at all times. */
  time() {
    return 0;
  }

  start() {
    this.lines = new Stream(this.seed + 606);
    for (let i = 0; i < 2 * this.n; i++) this.x[i] = this.field.start * this.starts[i];
  }

  move() {
    const { field, x, n, arrows } = this;
    field.at(x, n, arrows, this.lines);
    for (let i = 0; i < 2 * n; i++) x[i] += (field.eta / field.steps) * arrows[i];
    this.evaluations++;
  }

  shade(points, count, _, out) {
    return this.target.logDensity(points, count, SIGMA_END, out);
  }
}
