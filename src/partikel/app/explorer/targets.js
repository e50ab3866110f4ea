// The data: laws whose density and score are known at every noise level σ, p_σ = p ⋆ N(0, σ² I).
// Points are (x, y) pairs, interleaved in Float64Arrays.

const LOG_2PI = Math.log(2 * Math.PI);
const NEGLIGIBLE = -45; // e^-45 of the largest term is below the rounding of a sum

/** Σ_k w_k N(m_k, s_k² I). */
export class Mixture {
  /**
   * @param {number[][]} means centres (x, y)
   * @param {number|number[]} std standard deviation of all components, or of each
   * @param {number[]|null} weights shares, equal where null
   * @param {boolean} modal whether its components are modes to be counted
   */
  constructor(means, std, weights = null, modal = false) {
    const count = means.length;
    this.count = count;
    this.modal = modal;
    this.means = Float64Array.from(means.flat());
    this.stds = Float64Array.from({ length: count }, (_, k) => (Array.isArray(std) ? std[k] : std));
    const total = weights ? weights.reduce((a, b) => a + b, 0) : count;
    this.weights = Float64Array.from({ length: count }, (_, k) => (weights ? weights[k] : 1) / total);
    this.logWeights = this.weights.map(Math.log);
    this.finest = Math.min(...this.stds);
    this.terms = new Float64Array(count);
    this.variances = new Float64Array(count);
    this.constants = new Float64Array(count);
    this.spread = spreadOf(this);
  }

  /** Draw n points. */
  sample(stream, n, out) {
    for (let i = 0; i < n; i++) {
      let u = stream.uniform();
      let k = 0;
      while (k < this.count - 1 && u >= this.weights[k]) u -= this.weights[k++];
      out[2 * i] = this.means[2 * k] + this.stds[k] * stream.normal();
      out[2 * i + 1] = this.means[2 * k + 1] + this.stds[k] * stream.normal();
    }
    return out;
  }

  /** Logarithms of the components' terms at a point into `terms`; returns the largest. */
  joint(x, y) {
    const { means, variances, constants, terms, count } = this;
    let largest = Number.NEGATIVE_INFINITY;
    for (let k = 0; k < count; k++) {
      const dx = x - means[2 * k];
      const dy = y - means[2 * k + 1];
      const term = constants[k] - (0.5 * (dx * dx + dy * dy)) / variances[k];
      terms[k] = term;
      if (term > largest) largest = term;
    }
    return largest;
  }

  /** Prepare for a noise level. */
  at(sigma) {
    for (let k = 0; k < this.count; k++) {
      const variance = this.stds[k] * this.stds[k] + sigma * sigma;
      this.variances[k] = variance;
      this.constants[k] = this.logWeights[k] - Math.log(variance) - LOG_2PI;
    }
  }

  /** log p_σ at n points. */
  logDensity(points, n, sigma, out) {
    this.at(sigma);
    for (let i = 0; i < n; i++) {
      const largest = this.joint(points[2 * i], points[2 * i + 1]);
      let sum = 0;
      for (let k = 0; k < this.count; k++) sum += Math.exp(this.terms[k] - largest);
      out[i] = largest + Math.log(sum);
    }
    return out;
  }

  /** ∇log p_σ at n points: the mean of (m_k - x)/(s_k² + σ²) under the components' posterior. */
  score(points, n, sigma, out) {
    this.at(sigma);
    const { means, variances, terms, count } = this;
    for (let i = 0; i < n; i++) {
      const x = points[2 * i];
      const y = points[2 * i + 1];
      const largest = this.joint(x, y);
      let sum = 0;
      let sx = 0;
      let sy = 0;
      for (let k = 0; k < count; k++) {
        const below = terms[k] - largest;
        if (below < NEGLIGIBLE) continue;
        const share = Math.exp(below);
        const pull = share / variances[k];
        sum += share;
        sx += pull * (means[2 * k] - x);
        sy += pull * (means[2 * k + 1] - y);
      }
      out[2 * i] = sx / sum;
      out[2 * i + 1] = sy / sum;
    }
    return out;
  }
}

/** Root mean square of the coordinates about their mean. */
function spreadOf({ means, stds, weights, count }) {
  let mx = 0;
  let my = 0;
  let square = 0;
  for (let k = 0; k < count; k++) {
    mx += weights[k] * means[2 * k];
    my += weights[k] * means[2 * k + 1];
    square += weights[k] * (means[2 * k] ** 2 + means[2 * k + 1] ** 2 + 2 * stds[k] ** 2);
  }
  return Math.sqrt((square - mx * mx - my * my) / 2);
}

/** Uniform on the 8 dark squares, of side 2, of a 4 x 4 board over [-4, 4]². */
export class Checkerboard {
  constructor() {
    this.modal = false;
    this.finest = 0.25;
    this.spread = 8 / Math.sqrt(12);
    this.across = new Stripes();
    this.upwards = new Stripes();
  }

  sample(stream, n, out) {
    for (let i = 0; i < n; i++) {
      const column = stream.below(4);
      const row = 2 * stream.below(2) + (column % 2);
      out[2 * i] = 2 * (column + stream.uniform()) - 4;
      out[2 * i + 1] = 2 * (row + stream.uniform()) - 4;
    }
    return out;
  }

  // Even columns meet even rows, odd ones odd rows: p_σ = (E(x) E(y) + O(x) O(y)) / 32.
  logDensity(points, n, sigma, out) {
    const { across, upwards } = this;
    for (let i = 0; i < n; i++) {
      across.at(points[2 * i], sigma);
      upwards.at(points[2 * i + 1], sigma);
      const even = across.log[0] + upwards.log[0];
      const odd = across.log[1] + upwards.log[1];
      const largest = Math.max(even, odd);
      out[i] = largest + Math.log(Math.exp(even - largest) + Math.exp(odd - largest)) - Math.log(32);
    }
    return out;
  }

  score(points, n, sigma, out) {
    const { across, upwards } = this;
    for (let i = 0; i < n; i++) {
      across.at(points[2 * i], sigma);
      upwards.at(points[2 * i + 1], sigma);
      const odds = across.log[1] + upwards.log[1] - across.log[0] - upwards.log[0];
      const even = 1 / (1 + Math.exp(odds));
      out[2 * i] = even * across.slope[0] + (1 - even) * across.slope[1];
      out[2 * i + 1] = even * upwards.slope[0] + (1 - even) * upwards.slope[1];
    }
    return out;
  }
}

/** One axis of the board: log E and log O of the even and odd intervals, and their slopes. */
class Stripes {
  constructor() {
    this.log = new Float64Array(2);
    this.slope = new Float64Array(2);
    this.parts = [new Interval(), new Interval()];
  }

  at(x, sigma) {
    for (let parity = 0; parity < 2; parity++) {
      const [first, second] = this.parts;
      first.at(x, -4 + 2 * parity, sigma);
      second.at(x, 2 * parity, sigma);
      const largest = Math.max(first.exponent, second.exponent);
      const a = Math.exp(first.exponent - largest);
      const b = Math.exp(second.exponent - largest);
      const total = a * first.mass + b * second.mass;
      this.log[parity] = largest + Math.log(total);
      this.slope[parity] = (a * first.slope + b * second.slope) / total;
    }
  }
}

/** P(start <= x + σε <= start + 2) and its slope in x, both divided by e^exponent: no tail is lost. */
class Interval {
  at(x, start, sigma) {
    let low = (start - x) / sigma;
    let high = (start + 2 - x) / sigma;
    const mirrored = high < 0; // a tail on the left is one on the right
    if (mirrored) [low, high] = [-high, -low];
    const root = Math.SQRT1_2;
    if (low <= 0) {
      const left = Math.exp(-0.5 * low * low);
      const right = Math.exp(-0.5 * high * high);
      this.exponent = 0;
      this.mass = 1 - 0.5 * (left * erfcx(-low * root) + right * erfcx(high * root));
      this.slope = (left - right) / (Math.sqrt(2 * Math.PI) * sigma);
    } else {
      const gap = Math.exp(0.5 * (low - high) * (low + high));
      this.exponent = -0.5 * low * low;
      this.mass = 0.5 * (erfcx(low * root) - gap * erfcx(high * root));
      this.slope = (1 - gap) / (Math.sqrt(2 * Math.PI) * sigma);
    }
    if (mirrored) this.slope = -this.slope;
  }
}

/** e^{z²} erfc(z) for z >= 0: the series of erf where it is short, else the continued fraction. */
export function erfcx(z) {
  if (z < 2.2) {
    let term = z;
    let sum = z;
    for (let k = 1; Math.abs(term) > 1e-17 * sum; k++) {
      term *= (2 * z * z) / (2 * k + 1);
      sum += term;
    }
    const square = Math.exp(z * z);
    return square - (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = z;
  for (let k = z < 5 ? 60 : 15; k > 0; k--) fraction = z + k / 2 / fraction;
  return 1 / (Math.sqrt(Math.PI) * fraction);
}

const TURN = 2 * Math.PI;

/** Five Gaussians on a circle of radius 3, std 0.5. */
function ring(weights) {
  const means = Array.from({ length: 5 }, (_, k) => [
    3 * Math.cos((TURN * k) / 5),
    3 * Math.sin((TURN * k) / 5),
  ]);
  return new Mixture(means, 0.5, weights, true);
}

/** A curve and its mirror image in the origin, blurred: a mixture along it, finer than the blur. */
function mirroredCurve(curve, pieces, blur) {
  const half = Array.from({ length: pieces }, (_, k) => curve((k + 0.5) / pieces));
  return new Mixture([...half, ...half.map(([x, y]) => [-x, -y])], blur);
}

const moon = (u) => [2.5 * (Math.cos(Math.PI * u) - 0.5), 2.5 * (Math.sin(Math.PI * u) - 0.25)];

function arm(u) {
  const along = Math.sqrt(u); // arc length grows as the square of the radius
  const angle = 1.5 * TURN * along;
  return [4 * along * Math.cos(angle), 4 * along * Math.sin(angle)];
}

/** Blur of what is drawn by hand. */
export const HAND_BLUR = 0.18;

/** The data by name; `drawn` are the points drawn by hand. */
export function openTarget(name, drawn) {
  if (name === "unequal") return ring([0.4, 0.25, 0.2, 0.1, 0.05]);
  if (name === "moons") return mirroredCurve(moon, 48, 0.25);
  if (name === "spiral") return mirroredCurve(arm, 128, 0.1);
  if (name === "checkerboard") return new Checkerboard();
  if (name === "hand") return new Mixture(drawn, HAND_BLUR);
  return ring(null);
}
