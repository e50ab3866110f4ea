// The plane (g²/β, λ²/β) of DiffFlow:
//
//   dX = [ (β - ½g²) ∇log(p_σ/ρ_t) + ½g² ∇log p_σ ] dt + √(g² - λ²) dW
//
// along σ(t), which falls geometrically from σ_max to σ_end as t goes from 0 to 1.

import { kernelScore } from "./kernels.js";

export const SIGMA_END = 0.02;

/** β/g_s² where λ² <= 0, and no β matches the forward process. */
export const STRENGTH = 8;

export const CORNERS = [
  { g2: 0, lambda2: 0, name: "GAN" },
  { g2: 2, lambda2: 0, name: "Langevin" },
  { g2: 2, lambda2: 1, name: "Diffusion SDE" },
  { g2: 2, lambda2: 2, name: "Diffusion ODE" },
];

/** What stands at a point. */
export function modelName(g2, lambda2) {
  const corner = CORNERS.find((each) => each.g2 === g2 && each.lambda2 === lambda2);
  if (corner) return corner.name;
  if (lambda2 < 0) return "Continuation";
  return g2 < 2 ? "Diffusion-GAN" : "SLCD";
}

/** The point of the plane nearest to one that may be none: g² >= 0 and g² >= λ². */
export function onPlane(g2, lambda2) {
  if (g2 >= 0 && g2 >= lambda2) return [g2, lambda2];
  const middle = (g2 + lambda2) / 2;
  return middle > 0 ? [middle, middle] : [0, Math.min(lambda2, 0)];
}

/** The path of noise levels. */
export class Path {
  constructor(sigmaMax, sigmaEnd = SIGMA_END) {
    this.sigmaMax = sigmaMax;
    this.sigmaEnd = sigmaEnd;
    this.fall = Math.log(sigmaMax / sigmaEnd);
  }

  sigma(t) {
    return this.sigmaMax * Math.exp(-this.fall * t);
  }

  time(sigma) {
    return Math.log(this.sigmaMax / sigma) / this.fall;
  }

  /** g_s² = 2σ|σ'|: the rate of the forward process. */
  rate(t) {
    return 2 * this.sigma(t) ** 2 * this.fall;
  }

  /** N + 1 nodes in t; exponent 0 spaces log σ evenly, 1 spaces σ, 7 is that of Karras et al. */
  nodes(steps, exponent) {
    if (exponent === 0) return Float64Array.from({ length: steps + 1 }, (_, k) => k / steps);
    const high = this.sigmaMax ** (1 / exponent);
    const low = this.sigmaEnd ** (1 / exponent);
    return Float64Array.from({ length: steps + 1 }, (_, k) => {
      if (k === 0 || k === steps) return k / steps;
      return this.time((high + (k / steps) * (low - high)) ** exponent);
    });
  }
}

/** β/g_s² at a point: where λ² > 0 it is λ² that is the forward process's. */
export function strength(lambda2) {
  return lambda2 > 0 ? 1 / lambda2 : STRENGTH;
}

/** Bandwidth of the density of particles, in units of √(σ² + the data's own scale²). */
const BANDWIDTH = 0.3;
const OWN_SCALE = 0.5;

export function bandwidth(sigma) {
  return BANDWIDTH * Math.sqrt(sigma * sigma + OWN_SCALE * OWN_SCALE);
}

/** The SDE at a point of the plane, as solvers ask for it. */
export class PlaneFlow {
  /**
   * @param {object} target the data
   * @param {Path} path σ(t)
   * @param {object} at g2 and lambda2; `error`, by how much the score believes the data to be moved;
   *   `discriminator`: "ideal", "kernel" or "none"; `exactStart`: whether ρ_0 is the path's own law;
   *   `score`: a trained one, if there is
   */
  constructor(target, path, at) {
    this.target = target;
    this.model = at.score ?? target;
    this.path = path;
    this.g2 = at.g2;
    this.lambda2 = at.lambda2;
    this.error = at.error;
    this.evaluations = 0;
    this.noisy = at.g2 > at.lambda2;
    // The law is p_σ(t), and an ideal discriminator constant, where nothing is wrong and β matches.
    const exact = at.error === 0 && at.exactStart && !at.score;
    const known = exact && at.lambda2 > 0;
    this.estimates =
      at.g2 !== 2 && (at.discriminator === "kernel" || (at.discriminator === "ideal" && !known));
    this.scratch = new Float64Array(0);
    this.moved = new Float64Array(0);
  }

  sigma(t) {
    return this.path.sigma(t);
  }

  beta(t) {
    return this.path.rate(t) * strength(this.lambda2);
  }

  /** √(g² - λ²). */
  noise(t) {
    return Math.sqrt(this.beta(t) * (this.g2 - this.lambda2));
  }

  /** The drift at n particles. */
  velocity(x, n, t, out) {
    const sigma = this.path.sigma(t);
    const beta = this.beta(t);
    const score = 0.5 * this.g2 * beta;
    const gan = beta - score;
    this.evaluations++;
    this.room(n);
    this.learnedScore(x, n, sigma, out);
    for (let i = 0; i < 2 * n; i++) out[i] *= score;
    if (this.estimates) {
      this.ratio(x, n, sigma, bandwidth(sigma), this.scratch);
      for (let i = 0; i < 2 * n; i++) out[i] += gan * this.scratch[i];
    }
    return out;
  }

  /** Room for n particles. */
  room(n) {
    if (this.scratch.length >= 2 * n) return;
    this.scratch = new Float64Array(2 * n);
    this.moved = new Float64Array(2 * n);
  }

  /** ∇log p_σ as the score has it: that of data moved to the right by `error`. */
  learnedScore(x, n, sigma, out) {
    if (this.error === 0) return this.model.score(x, n, sigma, out);
    for (let i = 0; i < n; i++) {
      this.moved[2 * i] = x[2 * i] - this.error;
      this.moved[2 * i + 1] = x[2 * i + 1];
    }
    return this.model.score(this.moved, n, sigma, out);
  }

  /** ∇log(p_σ/ρ), both smoothed by h: ρ is the kernel density of the particles themselves. */
  ratio(x, n, sigma, h, out) {
    kernelScore(x, n, h, out);
    const own = this.moved;
    this.target.score(x, n, Math.sqrt(sigma * sigma + h * h), own);
    for (let i = 0; i < 2 * n; i++) out[i] = own[i] - out[i];
    return out;
  }
}
