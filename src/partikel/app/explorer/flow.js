// Free particles on the plane: one run from noise (t = 0) to samples (t = 1), node by node.

import { Path, PlaneFlow } from "./plane.js";
import { keyedNormals, Stream } from "./random.js";
import { SOLVERS, Workspace } from "./solvers.js";

/** Particles whose paths are drawn. */
export const TRACED = 16;

export class FreeFlow {
  /**
   * @param {object} state settings of the page
   * @param {object} target the data
   * @param {number} n particles
   * @param {object} [score] a trained one
   */
  constructor(state, target, n, score) {
    this.n = n;
    this.target = target;
    this.path = new Path(state.sigma);
    this.flow = new PlaneFlow(target, this.path, {
      g2: state.g2,
      lambda2: state.lambda2,
      error: state.error,
      discriminator: state.critic,
      exactStart: state.shift === 0 && state.width === 1,
      score,
    });
    this.solver = SOLVERS[state.solver];
    this.steps = state.steps;
    this.nodes = this.path.nodes(state.steps, state.levels);
    this.prior = { shift: state.shift * state.sigma, width: state.width };
    this.x = new Float64Array(2 * n);
    this.before = new Float64Array(2 * n); // at the node before
    this.work = new Workspace(n);
    this.history = new Float64Array(2 * TRACED * (state.steps + 1)); // as the camera saw it
    this.reset(state.seed);
  }

  /** Everything back to t = 0. */
  reset(seed) {
    this.seed = seed;
    this.node = 0;
    this.flow.evaluations = 0;
    this.work.pastLevel = Number.NaN;
    this.target.sample(new Stream(seed), this.n, this.x);
    const normals = keyedNormals(seed, -1, this.n, this.work.normals);
    const { shift, width } = this.prior;
    for (let i = 0; i < 2 * this.n; i++) {
      this.x[i] = width * (this.x[i] + this.path.sigmaMax * normals[i]) + (i % 2 ? 0 : shift);
    }
    this.before.set(this.x);
    this.work.velocity.fill(0);
    this.remember(this.history, this.x, 0);
    this.ahead = this.flow.estimates ? null : this.foreseen();
  }

  get finished() {
    return this.node >= this.steps;
  }

  /** How far it is, of `horizon`. */
  get progress() {
    return this.node;
  }

  get horizon() {
    return this.steps;
  }

  /** Whether what it shows is to be measured. */
  get settled() {
    return true;
  }

  /** The next run, of the same noise. */
  again() {
    this.reset(this.seed);
  }

  get evaluations() {
    return this.flow.evaluations;
  }

  /** Generation time at the node, or a part of the way from the node before. */
  time(part = 1) {
    const { nodes, node } = this;
    return node === 0 ? 0 : nodes[node - 1] + part * (nodes[node] - nodes[node - 1]);
  }

  /** How much wider than the data the particles' law is: the camera moves back by it. */
  scale(t) {
    return Math.sqrt(1 + (this.path.sigma(t) / this.target.spread) ** 2);
  }

  /** One step of the solver. */
  step() {
    this.before.set(this.x);
    this.advance(this.x, this.work, this.node);
    this.node++;
    this.remember(this.history, this.x, this.node);
  }

  /** Move points along step k, with the noise that belongs to it. */
  advance(x, work, k) {
    const draw = (index, out) => keyedNormals(this.seed, 2 * k + index, work.n, out);
    this.solver.step(this.flow, x, work, this.nodes[k], this.nodes[k + 1], draw);
  }

  /** Paths of the traced particles, ahead of time: exact fields do not depend on the others. */
  foreseen() {
    const paths = new Float64Array(this.history.length);
    const x = this.x.slice(0, 2 * TRACED);
    const work = new Workspace(TRACED);
    this.remember(paths, x, 0);
    for (let k = 0; k < this.steps; k++) {
      this.advance(x, work, k);
      this.remember(paths, x, k + 1);
    }
    this.flow.evaluations = 0;
    return paths;
  }

  remember(paths, x, node) {
    const scale = this.scale(this.nodes[node]);
    for (let i = 0; i < 2 * TRACED; i++) paths[2 * TRACED * node + i] = x[i] / scale;
  }

  /** The field at the node before, for arrows. */
  get arrows() {
    return this.work.velocity;
  }

  /** log p_σ at points, for shading. */
  shade(points, count, t, out) {
    return this.target.logDensity(points, count, this.path.sigma(t), out);
  }
}

/** What moves from node to node, as the page sees it; its own is `start()` and `move(node)`. */
export class Shown {
  constructor(n, steps) {
    this.n = n;
    this.steps = steps;
    this.x = new Float64Array(2 * n);
    this.before = new Float64Array(2 * n);
    this.history = new Float64Array(2 * TRACED * (steps + 1));
    this.ahead = null;
    this.node = 0;
    this.evaluations = 0;
    this.scales = new Float64Array(steps + 1).fill(1);
  }

  /** To the first node, with the particles where `start` puts them. */
  again() {
    this.node = 0;
    this.evaluations = 0;
    this.start();
    this.before.set(this.x);
    this.remember();
  }

  get finished() {
    return this.node >= this.steps;
  }

  get settled() {
    return true;
  }

  get progress() {
    return this.node;
  }

  get horizon() {
    return this.steps;
  }

  time(part = 1) {
    return Math.max(0, this.node - 1 + part) / Math.max(1, this.steps);
  }

  /** The camera's distance, between those at two nodes. */
  scale(t) {
    const place = t * this.steps;
    const low = Math.min(Math.floor(place), Math.max(0, this.steps - 1));
    const high = this.scales[low + 1] ?? this.scales[low];
    return this.scales[low] + (place - low) * (high - this.scales[low]);
  }

  step() {
    this.before.set(this.x);
    this.move(this.node);
    this.node++;
    this.remember();
  }

  remember() {
    const scale = this.scales[this.node];
    for (let i = 0; i < 2 * Math.min(TRACED, this.n); i++) {
      this.history[2 * TRACED * this.node + i] = this.x[i] / scale;
    }
  }

  arrows = new Float64Array(0);
}
