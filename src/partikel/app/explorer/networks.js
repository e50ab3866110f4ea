// Multilayer perceptrons with their gradients: Linear, then [activation, Linear] for each hidden layer.
// Rows of a batch lie one after the other in Float64Arrays.

const sigmoid = (a) => 1 / (1 + Math.exp(-a));

/** Each activation with its first and second derivative. */
export const ACTIVATIONS = {
  identity: [(a) => a, () => 1, () => 0],
  relu: [(a) => (a > 0 ? a : 0), (a) => (a > 0 ? 1 : 0), () => 0],
  leaky_relu: [(a) => (a > 0 ? a : 0.2 * a), (a) => (a > 0 ? 1 : 0.2), () => 0],
  silu: [
    (a) => a * sigmoid(a),
    (a) => {
      const s = sigmoid(a);
      return s * (1 + a * (1 - s));
    },
    (a) => {
      const s = sigmoid(a);
      return s * (1 - s) * (2 + a * (1 - 2 * s));
    },
  ],
  softplus: [softplus, sigmoid, (a) => sigmoid(a) * sigmoid(-a)],
  tanh: [Math.tanh, (a) => 1 - Math.tanh(a) ** 2, (a) => -2 * Math.tanh(a) * (1 - Math.tanh(a) ** 2)],
};

export function softplus(a) {
  return a > 0 ? a + Math.log1p(Math.exp(-a)) : Math.log1p(Math.exp(a));
}

/** out = W h + b for all rows; without b where it is null. Four outputs share what is read of h. */
function linear(weight, bias, h, rows, width, out, into) {
  const blocked = out - (out % 4);
  for (let r = 0; r < rows; r++) {
    const from = r * width;
    const to = r * out;
    for (let o = 0; o < blocked; o += 4) {
      let a = bias ? bias[o] : 0;
      let b = bias ? bias[o + 1] : 0;
      let c = bias ? bias[o + 2] : 0;
      let d = bias ? bias[o + 3] : 0;
      let at = o * width;
      for (let i = from; i < from + width; i++, at++) {
        const value = h[i];
        a += weight[at] * value;
        b += weight[at + width] * value;
        c += weight[at + 2 * width] * value;
        d += weight[at + 3 * width] * value;
      }
      into[to + o] = a;
      into[to + o + 1] = b;
      into[to + o + 2] = c;
      into[to + o + 3] = d;
    }
    for (let o = blocked; o < out; o++) {
      let sum = bias ? bias[o] : 0;
      for (let i = 0; i < width; i++) sum += weight[o * width + i] * h[from + i];
      into[to + o] = sum;
    }
  }
}

/** into = Wᵀ δ for all rows. */
function transposed(weight, delta, rows, width, out, into) {
  const blocked = out - (out % 4);
  into.fill(0, 0, rows * width);
  for (let r = 0; r < rows; r++) {
    const to = r * width;
    for (let o = 0; o < blocked; o += 4) {
      const at = r * out + o;
      const [a, b, c, d] = [delta[at], delta[at + 1], delta[at + 2], delta[at + 3]];
      let w = o * width;
      for (let i = to; i < to + width; i++, w++) {
        into[i] +=
          a * weight[w] + b * weight[w + width] + c * weight[w + 2 * width] + d * weight[w + 3 * width];
      }
    }
    for (let o = blocked; o < out; o++) {
      const d = delta[r * out + o];
      for (let i = 0; i < width; i++) into[to + i] += d * weight[o * width + i];
    }
  }
}

/** into += δ hᵀ, summed over rows, four of which share what is written. */
function outer(delta, h, rows, width, out, into) {
  const blocked = rows - (rows % 4);
  for (let o = 0; o < out; o++) {
    const at = o * width;
    for (let r = 0; r < blocked; r += 4) {
      const a = delta[r * out + o];
      const b = delta[(r + 1) * out + o];
      const c = delta[(r + 2) * out + o];
      const d = delta[(r + 3) * out + o];
      let from = r * width;
      for (let i = at; i < at + width; i++, from++) {
        into[i] += a * h[from] + b * h[from + width] + c * h[from + 2 * width] + d * h[from + 3 * width];
      }
    }
    for (let r = blocked; r < rows; r++) {
      const d = delta[r * out + o];
      for (let i = 0; i < width; i++) into[at + i] += d * h[r * width + i];
    }
  }
}

export class Network {
  /**
   * @param {number[]} sizes inputs, hidden layers, outputs
   * @param {string} activation
   * @param {object|null} stream draws weights, N(0, 2/inputs); null leaves them at 0
   */
  constructor(sizes, activation, stream = null) {
    this.sizes = sizes;
    this.depth = sizes.length - 1;
    this.activation = ACTIVATIONS[activation];
    this.weights = [];
    this.biases = [];
    for (let l = 0; l < this.depth; l++) {
      const weight = new Float64Array(sizes[l] * sizes[l + 1]);
      if (stream) for (let i = 0; i < weight.length; i++) weight[i] = stream.normal() * Math.sqrt(2 / sizes[l]);
      this.weights.push(weight);
      this.biases.push(new Float64Array(sizes[l + 1]));
    }
    this.gradients = this.parameters.map((p) => new Float64Array(p.length));
    this.rows = 0;
  }

  /** Weights and biases, layer by layer. */
  get parameters() {
    return this.weights.flatMap((weight, l) => [weight, this.biases[l]]);
  }

  /** Room for as many rows. */
  reserve(rows) {
    if (rows <= this.rows) return;
    this.rows = rows;
    const arrays = (from) => this.sizes.slice(from).map((size) => new Float64Array(rows * size));
    this.before = arrays(1); // W h + b of each layer
    this.after = arrays(1); // what the next layer sees
    this.deltas = arrays(0); // gradients in what each layer sees, and in the output
    this.tangents = arrays(0); // derivatives of what each layer sees, and of the output
    this.slopes = arrays(1); // derivatives of W h + b
    this.extras = arrays(0);
  }

  /** The outputs (rows, out); they are overwritten by the next call. */
  forward(input, rows) {
    this.reserve(rows);
    this.input = input;
    const [act] = this.activation;
    let h = input;
    for (let l = 0; l < this.depth; l++) {
      const out = this.sizes[l + 1];
      linear(this.weights[l], this.biases[l], h, rows, this.sizes[l], out, this.before[l]);
      if (l === this.depth - 1) return this.before[l];
      for (let i = 0; i < rows * out; i++) this.after[l][i] = act(this.before[l][i]);
      h = this.after[l];
    }
    return h;
  }

  /** What layer l saw in the last forward. */
  seen(l) {
    return l === 0 ? this.input : this.after[l - 1];
  }

  /** Set gradients to zero. */
  clear() {
    for (const gradient of this.gradients) gradient.fill(0);
  }

  /**
   * Gradients of Σ ⟨gradient, output⟩ of the last forward: those of the weights are added up, that of the
   * input is returned.
   */
  backward(gradient, rows, { weights = true, input = true } = {}) {
    const slope = this.activation[1];
    this.deltas[this.depth].set(gradient.subarray(0, rows * this.sizes[this.depth]));
    for (let l = this.depth - 1; l >= 0; l--) {
      const [width, out] = [this.sizes[l], this.sizes[l + 1]];
      const delta = this.deltas[l + 1];
      if (weights) this.collect(l, delta, this.seen(l), rows);
      if (l === 0 && !input) break;
      transposed(this.weights[l], delta, rows, width, out, this.deltas[l]);
      if (l > 0) {
        const before = this.before[l - 1];
        for (let i = 0; i < rows * width; i++) this.deltas[l][i] *= slope(before[i]);
      }
    }
    return this.deltas[0];
  }

  /** Add to the gradients of a layer. */
  collect(l, delta, h, rows) {
    const [width, out] = [this.sizes[l], this.sizes[l + 1]];
    outer(delta, h, rows, width, out, this.gradients[2 * l]);
    const bias = this.gradients[2 * l + 1];
    for (let r = 0; r < rows; r++) for (let o = 0; o < out; o++) bias[o] += delta[r * out + o];
  }

  /** Derivative of the outputs of the last forward as its weights move along the `gradients`. */
  alongGradients(rows) {
    const slope = this.activation[1];
    for (let l = 0; l < this.depth; l++) {
      const [width, out] = [this.sizes[l], this.sizes[l + 1]];
      const moved = this.slopes[l];
      linear(this.gradients[2 * l], this.gradients[2 * l + 1], this.seen(l), rows, width, out, moved);
      if (l > 0) {
        linear(this.weights[l], null, this.tangents[l], rows, width, out, this.extras[l + 1]);
        for (let i = 0; i < rows * out; i++) moved[i] += this.extras[l + 1][i];
      }
      if (l === this.depth - 1) return moved;
      for (let i = 0; i < rows * out; i++) this.tangents[l + 1][i] = slope(this.before[l][i]) * moved[i];
    }
    return null;
  }

  /**
   * Add to the gradients those of Σ_r factor · (derivative of output r along direction r), the direction
   * held fixed: with direction = ∇d, half the gradient of Σ factor ‖∇d‖². Outputs are numbers.
   */
  slopeGradients(direction, factor, rows) {
    const [, slope, curvature] = this.activation;
    this.tangents[0].set(direction.subarray(0, rows * this.sizes[0]));
    for (let l = 0; l < this.depth; l++) {
      const [width, out] = [this.sizes[l], this.sizes[l + 1]];
      linear(this.weights[l], null, this.tangents[l], rows, width, out, this.slopes[l]);
      if (l === this.depth - 1) break;
      for (let i = 0; i < rows * out; i++) {
        this.tangents[l + 1][i] = slope(this.before[l][i]) * this.slopes[l][i];
      }
    }
    const last = this.depth - 1;
    // backwards: `extras` are gradients in derivatives, `deltas` in values
    this.extras[this.depth].fill(factor, 0, rows);
    this.deltas[this.depth].fill(0, 0, rows);
    for (let l = last; l >= 0; l--) {
      const [width, out] = [this.sizes[l], this.sizes[l + 1]];
      outer(this.extras[l + 1], this.tangents[l], rows, width, out, this.gradients[2 * l]);
      this.collect(l, this.deltas[l + 1], this.seen(l), rows);
      if (l === 0) return;
      transposed(this.weights[l], this.extras[l + 1], rows, width, out, this.extras[l]);
      transposed(this.weights[l], this.deltas[l + 1], rows, width, out, this.deltas[l]);
      for (let i = 0; i < rows * width; i++) {
        const a = this.before[l - 1][i];
        const first = slope(a);
        this.deltas[l][i] = first * this.deltas[l][i] + curvature(a) * this.slopes[l - 1][i] * this.extras[l][i];
        this.extras[l][i] *= first;
      }
    }
  }
}

/** Adam (Kingma and Ba 2015). */
export class Adam {
  constructor(network, { rate, beta1 = 0.5, beta2 = 0.99 }) {
    this.network = network;
    Object.assign(this, { rate, beta1, beta2, count: 0 });
    this.means = network.gradients.map((g) => new Float64Array(g.length));
    this.squares = network.gradients.map((g) => new Float64Array(g.length));
  }

  /** Descend the gradients. */
  step() {
    const { beta1, beta2 } = this;
    this.count++;
    const rate = (this.rate * Math.sqrt(1 - beta2 ** this.count)) / (1 - beta1 ** this.count);
    const epsilon = 1e-8 * Math.sqrt(1 - beta2 ** this.count);
    this.network.parameters.forEach((values, p) => {
      const gradient = this.network.gradients[p];
      const mean = this.means[p];
      const square = this.squares[p];
      for (let i = 0; i < values.length; i++) {
        const g = gradient[i];
        mean[i] += (1 - beta1) * (g - mean[i]);
        square[i] += (1 - beta2) * (g * g - square[i]);
        values[i] -= (rate * mean[i]) / (Math.sqrt(square[i]) + epsilon);
      }
    });
  }
}
