// Runs: networks that were trained elsewhere, evaluated here, and moments of what else there is.

import { HALF } from "./draw.js";
import { Shown } from "./flow.js";
import { Network } from "./networks.js";
import { OBJECTIVES } from "./objectives.js";
import { Stream } from "./random.js";

/** Numbers from base64. */
export function unpackedNumbers(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Float64Array.from(new Float32Array(bytes.buffer));
}

/** A trained network that is told some numbers beside its input, as Fourier features. */
export class Embedded {
  constructor({ sizes, activation, weights, frequencies }) {
    this.network = new Network(sizes, activation);
    this.inputs = sizes[0];
    this.frequencies = frequencies;
    const numbers = unpackedNumbers(weights);
    let from = 0;
    for (const values of this.network.parameters) {
      values.set(numbers.subarray(from, from + values.length));
      from += values.length;
    }
    this.rows = new Float64Array(0);
  }

  /** Outputs at n points, times a factor, told some numbers that all share. */
  at(points, n, factor, ...scalars) {
    const { inputs, frequencies } = this;
    const told = scalars.flatMap((value) => [
      ...frequencies.map((f) => Math.cos(2 * Math.PI * f * value)),
      ...frequencies.map((f) => Math.sin(2 * Math.PI * f * value)),
    ]);
    const width = inputs - told.length;
    if (this.rows.length < n * inputs) this.rows = new Float64Array(n * inputs);
    for (let r = 0; r < n; r++) {
      for (let i = 0; i < width; i++) this.rows[r * inputs + i] = factor * points[r * width + i];
      for (let i = 0; i < told.length; i++) this.rows[r * inputs + width + i] = told[i];
    }
    return this.network.forward(this.rows, n);
  }
}

/** A trained score: s = (D - x)/σ², D = c_skip x + c_out F(c_in x, ln(σ)/4), Karras et al.'s preconditioning. */
export class TrainedScore {
  constructor(run) {
    this.std = run.std;
    this.embedded = new Embedded(run);
  }

  score(points, n, sigma, out) {
    const total = sigma * sigma + this.std * this.std;
    const found = this.embedded.at(points, n, 1 / Math.sqrt(total), Math.log(sigma) / 4);
    const skip = (this.std * this.std) / total - 1;
    const scale = (sigma * this.std) / Math.sqrt(total);
    for (let i = 0; i < 2 * n; i++) out[i] = (skip * points[i] + scale * found[i]) / (sigma * sigma);
    return out;
  }
}

/** The data of a run: some points of them, and what two draws differ by. */
export class GivenData {
  constructor(run) {
    this.points = unpackedNumbers(run.reference);
    this.level = run.level ?? Number.NaN;
    this.modal = false;
    this.spread = 2;
  }

  get known() {
    return this.points.length / 2;
  }

  sample(stream, n, out) {
    for (let i = 0; i < n; i++) {
      const k = stream.below(this.known);
      out[2 * i] = this.points[2 * k];
      out[2 * i + 1] = this.points[2 * k + 1];
    }
    return out;
  }
}

/** Moments computed before. */
export class Film extends Shown {
  constructor(run) {
    super(run.n, run.moments.length - 1);
    this.labels = run.moments;
    this.points = unpackedNumbers(run.points);
    this.scales.set(run.halves.map((half) => Math.max(1, half / HALF)));
    this.reset();
  }

  reset() {
    this.again();
  }

  start() {
    this.x.set(this.points.subarray(0, 2 * this.n));
  }

  move(node) {
    this.x.set(this.points.subarray(2 * this.n * (node + 1), 2 * this.n * (node + 2)));
  }
}

/** A run whose particles start from a Gaussian, and whose network is evaluated here. */
class FromGaussian extends Shown {
  constructor(run, steps) {
    super(run.n, steps);
    this.run = run;
    this.embedded = new Embedded(run);
  }

  reset(seed) {
    this.starts = new Stream(seed + 404).normals(new Float64Array(2 * this.n));
    this.again();
  }

  start() {
    for (let i = 0; i < 2 * this.n; i++) this.x[i] = this.run.prior * this.starts[i];
  }
}

/** A trained Discriminator Flow: x + η/N ∇c(d(x, t)). */
export class TrainedFlow extends FromGaussian {
  constructor(run, seed) {
    super(run, run.steps);
    this.objective = OBJECTIVES[run.objective];
    this.weights = new Float64Array(this.n);
    this.relative = true;
    this.arrows = new Float64Array(2 * this.n);
    this.reset(seed);
  }

  /** ∇c(d(x, t)) at the particles. */
  field(x, n, t, out) {
    const d = this.embedded.at(x, n, 1, t);
    for (let i = 0; i < n; i++) this.weights[i] = this.objective.c(d[i]);
    const gradient = this.embedded.network.backward(this.weights, n, { weights: false });
    const { inputs } = this.embedded;
    for (let i = 0; i < n; i++) {
      out[2 * i] = gradient[inputs * i];
      out[2 * i + 1] = gradient[inputs * i + 1];
    }
    return out;
  }

  move(node) {
    this.field(this.x, this.n, node / this.steps, this.arrows);
    for (let i = 0; i < 2 * this.n; i++) this.x[i] += (this.run.eta / this.steps) * this.arrows[i];
    this.evaluations++;
  }
}

/** A trained flow map: jumps x + (t - s) U(x, s, t) of even length. */
export class TrainedMap extends FromGaussian {
  constructor(run, seed) {
    super(run, run.jumps);
    this.reset(seed);
  }

  move(node) {
    const length = 1 / this.steps;
    const average = this.embedded.at(this.x, this.n, 1, node * length, length);
    for (let i = 0; i < 2 * this.n; i++) this.x[i] += length * average[i];
    this.evaluations++;
  }
}

const CIRCLE = 60; // nodes of a walk of latents

/** A trained generator: latents walk along great circles, which keeps their law, and outputs follow. */
export class TrainedGenerator extends Shown {
  constructor(run, seed) {
    super(run.n, CIRCLE);
    this.embedded = new Embedded(run);
    this.latent = run.sizes[0];
    this.z = new Float64Array(this.n * this.latent);
    this.reset(seed);
  }

  reset(seed) {
    const stream = new Stream(seed + 404);
    this.one = stream.normals(new Float64Array(this.z.length));
    this.other = stream.normals(new Float64Array(this.z.length));
    this.again();
  }

  outputs(turn) {
    const [c, s] = [Math.cos(turn), Math.sin(turn)];
    for (let i = 0; i < this.z.length; i++) this.z[i] = c * this.one[i] + s * this.other[i];
    this.x.set(this.embedded.at(this.z, this.n, 1).subarray(0, 2 * this.n));
  }

  start() {
    this.outputs(0);
  }

  move(node) {
    this.outputs(((node + 1) / CIRCLE) * Math.PI);
    this.evaluations++;
  }
}

/** Sheets of images: pictures, one a moment. */
export class Sheets extends Shown {
  constructor(run) {
    super(0, Math.max(1, run.moments.length - 1));
    this.labels = run.moments;
    this.pictures = run.pictures.map((source) => {
      const picture = new Image();
      picture.src = source;
      return picture;
    });
    this.again();
  }

  reset() {
    this.again();
  }

  start() {}

  move() {}

  get picture() {
    return this.pictures[Math.min(this.node, this.pictures.length - 1)];
  }
}

const KINDS = { film: Film, critic: TrainedFlow, map: TrainedMap, generator: TrainedGenerator, sheets: Sheets };

/** What shows a run by itself; scores are shown on the plane. */
export function showRun(run, seed) {
  return new KINDS[run.kind](run, seed);
}
