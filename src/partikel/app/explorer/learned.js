// What is trained in the page: generators that follow a field, and discriminators that are one.

import { TRACED } from "./flow.js";
import { Adam, Network } from "./networks.js";
import { OBJECTIVES } from "./objectives.js";
import { bandwidth, Path, PlaneFlow, SIGMA_END } from "./plane.js";
import { Stream } from "./random.js";
import { sampleField } from "./samples.js";

const BATCH = 256;
const WIDTH = 64;
const LATENT = 8;
/** Particles of a generator whose arrows are shown: the field is asked at them, but they train nothing. */
export const ARROWED = 96;
const ASKED = BATCH + ARROWED;

/** A generator g(z) with fixed latents to look at, and a batch to train on. */
export class Generator {
  constructor(n, stream, spread) {
    this.n = n;
    this.stream = stream;
    this.network = new Network([LATENT, WIDTH, WIDTH, 2], "silu", stream);
    this.optimiser = new Adam(this.network, { rate: 1e-3 });
    this.latents = stream.normals(new Float64Array(LATENT * n));
    this.batch = new Float64Array(LATENT * ASKED);
    this.batch.set(this.latents.subarray(0, LATENT * ARROWED), LATENT * BATCH);
    this.fresh = this.batch.subarray(0, LATENT * BATCH);
    this.outputs = new Float64Array(2 * ASKED);
    this.gradient = new Float64Array(2 * BATCH);
    this.moved = new Float64Array(2 * ARROWED); // A_θ[∇h] at the arrows
    this.rescale(spread);
  }

  /** Let the outputs begin as wide as they are asked to be. */
  rescale(spread) {
    const out = this.network.forward(this.latents, this.n);
    let square = 0;
    for (let i = 0; i < 2 * this.n; i++) square += out[i] * out[i];
    const factor = spread / Math.sqrt(square / (2 * this.n));
    const last = this.network.weights[this.network.depth - 1];
    for (let i = 0; i < last.length; i++) last[i] *= factor;
  }

  /** Outputs of a batch of fresh latents, and behind them those of the arrows. */
  draw() {
    this.stream.normals(this.fresh);
    this.outputs.set(this.network.forward(this.batch, ASKED).subarray(0, 2 * ASKED));
    return this.outputs;
  }

  /**
   * Descend the surrogate loss of the batch, -E⟨g(z), ∇h⟩, whose gradient is -E J_θ g(z)ᵀ ∇h. What plain descent
   * makes of the field at the arrows is A_θ[∇h](z) = E_z'[J(z) J(z')ᵀ ∇h(z')].
   */
  follow(field, arrows) {
    for (let i = 0; i < 2 * BATCH; i++) this.gradient[i] = -field[i] / BATCH;
    this.network.clear();
    this.network.backward(this.gradient, BATCH, { input: false });
    if (arrows) {
      const along = this.network.alongGradients(ASKED);
      for (let i = 0; i < 2 * ARROWED; i++) this.moved[i] = -along[2 * BATCH + i];
    }
    this.optimiser.step();
  }

  /** All particles to look at. */
  show(x) {
    x.set(this.network.forward(this.latents, this.n).subarray(0, 2 * this.n));
  }
}

/** What all that is trained shares, as the page sees it. */
class Trained {
  constructor(state, target, n) {
    this.n = n;
    this.target = target;
    this.state = state;
    this.x = new Float64Array(2 * n);
    this.before = new Float64Array(2 * n);
    this.iterations = 0;
    this.steps = 1;
    this.node = 0;
    this.continuous = true; // no nodes: what is shown is where training stands
  }

  get finished() {
    return false;
  }

  get settled() {
    return true;
  }

  get progress() {
    return this.iterations;
  }

  get horizon() {
    return 1500;
  }

  time() {
    return 0;
  }

  scale() {
    return 1;
  }

  show() {
    this.generator.show(this.x);
    this.before.set(this.x);
  }
}

/** A generator that follows a field, asked at its batch and at the arrows. */
class Followed extends Trained {
  constructor(state, target, n) {
    super(state, target, n);
    this.field = new Float64Array(2 * ASKED);
  }

  get arrows() {
    return this.field.subarray(2 * BATCH);
  }

  get carried() {
    return this.generator.moved;
  }
}

/** Iterations in which a generator's noise level falls, and from where to where. */
const ANNEALING = 1000;
const LEVELS = [3, 0.3];

/**
 * The plane's field, carried by a generator. Its noise would average out, so that it follows the velocity
 * without noise, that of (λ², λ²): in units of β, (1 - ½λ²) ∇log(p/ρ) + ½λ² ∇log p, all smoothed by one
 * kernel, ρ that of the batch.
 */
export class GeneratedFlow extends Followed {
  constructor(state, target, n, score) {
    super(state, target, n);
    this.path = new Path(...LEVELS);
    const at = { g2: 0, lambda2: 0, error: state.error, discriminator: state.critic, exactStart: false };
    this.flow = new PlaneFlow(target, this.path, { ...at, score });
    this.share = state.lambda2 / 2; // of the score
    this.ratio = new Float64Array(2 * ASKED);
    this.reset(state.seed);
  }

  reset(seed) {
    this.iterations = 0;
    this.generator = new Generator(this.n, new Stream(seed + 101), LEVELS[0]);
    this.show();
  }

  time() {
    return Math.min(1, this.iterations / ANNEALING);
  }

  train() {
    const t = this.time();
    const { flow, field, ratio, share } = this;
    const x = this.generator.draw();
    const sigma = this.path.sigma(t);
    const level = Math.hypot(sigma, bandwidth(sigma));
    flow.room(ASKED);
    flow.learnedScore(x, ASKED, level, field);
    if (flow.estimates) flow.ratio(x, ASKED, 0, level, ratio);
    const size = level * level; // lengths of scores are those of 1/σ
    for (let i = 0; i < 2 * ASKED; i++) field[i] = size * (share * field[i] + (1 - share) * ratio[i]);
    this.generator.follow(this.field, this.state.arrows);
    this.iterations++;
  }

  shade(points, count, t, out) {
    return this.target.logDensity(points, count, this.path.sigma(t), out);
  }
}

/** A field of samples, carried by a generator: ρ is its outputs, p a fresh batch of the data. */
export class GeneratedSamples extends Followed {
  constructor(state, target, n) {
    super(state, target, n);
    this.follows = sampleField(state, target);
    this.real = new Float64Array(2 * BATCH);
    this.reset(state.seed);
  }

  reset(seed) {
    this.iterations = 0;
    this.stream = new Stream(seed + 505);
    this.generator = new Generator(this.n, new Stream(seed + 101), this.follows.start);
    this.draw();
    this.show();
  }

  draw() {
    this.follows.bind(this.target.sample(this.stream, BATCH, this.real), BATCH);
  }

  train() {
    this.draw();
    this.follows.at(this.generator.draw(), ASKED, this.field, this.stream);
    this.generator.follow(this.field, this.state.arrows);
    this.iterations++;
  }

  shade(points, count, _, out) {
    return this.target.logDensity(points, count, SIGMA_END, out);
  }
}

const FREQUENCIES = [0.25, 0.5, 1, 2];

/** A discriminator d(x) or d(x, t), its objective, and R1, a penalty on ‖∇d‖ at the data. */
export class Discriminator {
  /**
   * @param {string} objective
   * @param {boolean} timed whether it is told t
   * @param {object} stream draws weights and batches
   */
  constructor(objective, timed, stream) {
    this.objective = OBJECTIVES[objective];
    this.timed = timed;
    this.stream = stream;
    this.inputs = timed ? 2 + 2 * FREQUENCIES.length : 2;
    this.network = new Network([this.inputs, WIDTH, WIDTH, 1], "silu", stream);
    this.optimiser = new Adam(this.network, { rate: 1e-3 });
    this.real = new Float64Array(2 * BATCH);
    this.rows = new Float64Array(0);
    this.slopes = new Float64Array(BATCH);
    this.ones = new Float64Array(BATCH).fill(1);
    this.directions = new Float64Array(this.inputs * BATCH);
  }

  /** Rows of inputs: points, and the features of their times (a number for all, or one each). */
  told(points, count, t) {
    if (!this.timed) return points;
    const { inputs } = this;
    if (this.rows.length < count * inputs) this.rows = new Float64Array(count * inputs);
    for (let r = 0; r < count; r++) {
      const at = r * inputs;
      const time = typeof t === "number" ? t : t[r];
      this.rows[at] = points[2 * r];
      this.rows[at + 1] = points[2 * r + 1];
      FREQUENCIES.forEach((f, k) => {
        this.rows[at + 2 + k] = Math.cos(2 * Math.PI * f * time);
        this.rows[at + 2 + FREQUENCIES.length + k] = Math.sin(2 * Math.PI * f * time);
      });
    }
    return this.rows;
  }

  /** One step on a batch of data and one of particles, at their times. */
  train(target, particles, times) {
    const { network, objective, slopes, ones, inputs } = this;
    network.clear();
    target.sample(this.stream, BATCH, this.real);
    let d = network.forward(this.told(this.real, BATCH, times), BATCH);
    for (let i = 0; i < BATCH; i++) slopes[i] = objective.b(d[i]) / BATCH;
    network.backward(slopes, BATCH, { input: false });
    const gradient = network.backward(ones, BATCH, { weights: false });
    this.directions.fill(0);
    for (let r = 0; r < BATCH; r++) {
      this.directions[inputs * r] = gradient[inputs * r];
      this.directions[inputs * r + 1] = gradient[inputs * r + 1];
    }
    network.slopeGradients(this.directions, (2 * PENALTY) / BATCH, BATCH);
    d = network.forward(this.told(particles, BATCH, times), BATCH);
    for (let i = 0; i < BATCH; i++) slopes[i] = objective.a(d[i]) / BATCH;
    network.backward(slopes, BATCH, { input: false });
    this.optimiser.step();
  }

  /** ∇_x c(d(x)) at points. */
  field(points, count, t, out) {
    const d = this.network.forward(this.told(points, count, t), count);
    if (this.weights?.length !== count) this.weights = new Float64Array(count);
    for (let i = 0; i < count; i++) this.weights[i] = this.objective.c(d[i]);
    const gradient = this.network.backward(this.weights, count, { weights: false });
    for (let i = 0; i < count; i++) {
      out[2 * i] = gradient[this.inputs * i];
      out[2 * i + 1] = gradient[this.inputs * i + 1];
    }
    return out;
  }

  /** c(d(x)) at points. */
  potential(points, count, t, out) {
    const d = this.network.forward(this.told(points, count, t), count);
    for (let i = 0; i < count; i++) out[i] = this.objective.potential(d[i]);
    return out;
  }
}

/** Weight of ‖∇d‖² at the data. */
const PENALTY = 0.05;

/** A GAN: a discriminator's field, carried by a generator. */
export class Gan extends Followed {
  constructor(state, target, n) {
    super(state, target, n);
    this.relative = true; // shaded is a potential, between its least and its most
    this.reset(state.seed);
  }

  reset(seed) {
    this.iterations = 0;
    this.generator = new Generator(this.n, new Stream(seed + 101), 1);
    this.critic = new Discriminator(this.state.objective, false, new Stream(seed + 202));
    this.show();
  }

  train() {
    this.critic.train(this.target, this.generator.draw(), 0);
    this.critic.field(this.generator.draw(), ASKED, 0, this.field);
    this.generator.follow(this.field, this.state.arrows);
    this.iterations++;
  }

  shade(points, count, t, out) {
    return this.critic.potential(points, count, t, out);
  }
}

const NODES = 20; // N
const ETA = 20; // strength of the field: each step moves by ∇c(d) η/N
const POOL = 512;
const AVERAGED = 0.99; // decay of the average of weights

/**
 * A Discriminator Flow: the field of a discriminator d(x, t), carried by free particles. It is trained on a
 * pool of particles of all ages, each of which moves by one step an iteration; those shown walk through the
 * flow as it is by now.
 */
export class DiscriminatorFlow extends Trained {
  constructor(state, target, n) {
    super(state, target, n);
    this.continuous = false;
    this.relative = true;
    this.steps = NODES;
    this.eta = ETA;
    this.history = new Float64Array(2 * TRACED * (NODES + 1));
    this.ahead = null;
    this.field = new Float64Array(2 * n);
    this.pool = new Float64Array(2 * POOL);
    this.ages = new Float64Array(POOL);
    this.velocity = new Float64Array(2 * POOL);
    this.some = new Float64Array(2 * BATCH);
    this.times = new Float64Array(BATCH);
    this.reset(state.seed);
  }

  reset(seed) {
    this.iterations = 0;
    this.stream = new Stream(seed + 303);
    this.critic = new Discriminator(this.state.objective, true, new Stream(seed + 202));
    this.average = new Discriminator(this.state.objective, true, new Stream(seed + 202));
    for (let i = 0; i < POOL; i++) this.born(i, this.stream.below(NODES));
    this.starts = this.stream.normals(new Float64Array(2 * this.n));
    this.again();
  }

  /** A particle of the pool begins, with an age that others will reach. */
  born(i, age = 0) {
    this.pool[2 * i] = this.stream.normal();
    this.pool[2 * i + 1] = this.stream.normal();
    this.ages[i] = age;
  }

  /** The particles shown start anew. */
  again() {
    this.node = 0;
    this.x.set(this.starts);
    this.before.set(this.x);
    this.remember();
  }

  get finished() {
    return this.node >= NODES;
  }

  get settled() {
    return this.finished;
  }

  time(part = 1) {
    return Math.max(0, this.node - 1 + part) / NODES;
  }

  train() {
    const { pool, ages, some, times, velocity, stream } = this;
    for (let r = 0; r < BATCH; r++) {
      const i = stream.below(POOL);
      some[2 * r] = pool[2 * i];
      some[2 * r + 1] = pool[2 * i + 1];
      times[r] = ages[i] / NODES;
    }
    this.critic.train(this.target, some, times);
    const now = ages.map((age) => age / NODES);
    this.critic.field(pool, POOL, now, velocity);
    for (let i = 0; i < POOL; i++) {
      pool[2 * i] += (ETA / NODES) * velocity[2 * i];
      pool[2 * i + 1] += (ETA / NODES) * velocity[2 * i + 1];
      ages[i]++;
      if (ages[i] >= NODES) this.born(i);
    }
    this.iterations++;
    this.settle();
  }

  /** Move the average of weights, which those shown follow, after the network. */
  settle() {
    const share = 1 - Math.min(AVERAGED, this.iterations / (this.iterations + 10));
    const ours = this.average.network.parameters;
    this.critic.network.parameters.forEach((now, p) => {
      for (let i = 0; i < now.length; i++) ours[p][i] += share * (now[i] - ours[p][i]);
    });
  }

  show() {} // particles walk node by node

  /** The particles shown move by one step. */
  step() {
    this.before.set(this.x);
    this.average.field(this.x, this.n, this.node / NODES, this.field);
    for (let i = 0; i < 2 * this.n; i++) this.x[i] += (ETA / NODES) * this.field[i];
    this.node++;
    this.remember();
  }

  remember() {
    this.history.set(this.x.subarray(0, 2 * TRACED), 2 * TRACED * this.node);
  }

  get arrows() {
    return this.field;
  }

  shade(points, count, t, out) {
    return this.average.potential(points, count, Math.min(t, 1 - 1 / NODES), out);
  }
}
