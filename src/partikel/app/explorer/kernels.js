// Kernels, and what is summed over pairs of points with them.

const EIGHTS = 8; // bits: e^x is read off a table of 256 powers of 2 within an octave
const STEPS = 2 ** EIGHTS;
const WITHIN = Float64Array.from({ length: STEPS }, (_, k) => 2 ** (k / STEPS));
const OCTAVES = Float64Array.from({ length: 1075 }, (_, k) => 2 ** -k);

/** e^x of the first numbers, none above 0, in place; to twelve digits, in half the time of Math.exp. */
function exponentials(values, count) {
  const rate = STEPS / Math.LN2;
  for (let i = 0; i < count; i++) {
    const place = Math.max(values[i] * rate, -1074 * STEPS);
    const whole = Math.floor(place);
    const rest = (place - whole) / rate;
    const nearby = 1 + rest * (1 + rest * (1 / 2 + rest * (1 / 6)));
    values[i] = OCTAVES[-(whole >> EIGHTS)] * WITHIN[whole & (STEPS - 1)] * nearby;
  }
}

function fourthPower(x) {
  const square = x * x;
  return square * square;
}

let distances = new Float64Array(0);

/**
 * Kernels k of the distance d: `weigh(squared, count, h, values)` puts w in place of d², where ∇_x k(x, y) =
 * w (x - y), 0 at d = 0, and k into `values` where that is not null. `bandwidth` h, `eta` and `steps` are those
 * of MMD's flow in the matrix of models, eta in units of h² where there is an h.
 */
export const KERNELS = {
  energy: {
    label: "energy: −d",
    conditional: true, // positive definite only among weights that sum to 0, which is enough for MMD
    eta: 60,
    steps: 120,
    weigh(squared, count, _, values) {
      for (let i = 0; i < count; i++) {
        const distance = Math.sqrt(squared[i]);
        squared[i] = distance > 0 ? -1 / distance : 0;
        if (values) values[i] = -distance;
      }
    },
  },
  rbf: {
    label: "RBF: exp(−d²/2h²)",
    bandwidth: "median",
    eta: 190,
    steps: 300,
    weigh(squared, count, h, values) {
      const rate = -0.5 / (h * h);
      for (let i = 0; i < count; i++) squared[i] *= rate;
      exponentials(squared, count);
      for (let i = 0; i < count; i++) {
        if (values) values[i] = squared[i];
        squared[i] *= 2 * rate;
      }
    },
  },
  "multi-rbf": {
    label: "five RBFs, of h/4, h/2, h, 2h, 4h: their mean",
    bandwidth: 1,
    eta: 150,
    steps: 100,
    weigh(squared, count, h, values) {
      const rate = -0.5 / (16 * h * h); // that of the widest; half the width is the fourth power
      for (let i = 0; i < count; i++) squared[i] *= rate;
      exponentials(squared, count);
      for (let i = 0; i < count; i++) {
        const first = squared[i];
        const second = fourthPower(first);
        const third = fourthPower(second);
        const fourth = fourthPower(third);
        const fifth = fourthPower(fourth);
        if (values) values[i] = (first + second + third + fourth + fifth) / 5;
        squared[i] = 0.4 * rate * (first + 4 * (second + 4 * (third + 4 * (fourth + 4 * fifth))));
      }
    },
  },
  laplace: {
    label: "Laplace: exp(−d/h)",
    bandwidth: 2,
    eta: 37.5,
    steps: 150,
    weigh(squared, count, h, values) {
      if (distances.length < count) distances = new Float64Array(count);
      for (let i = 0; i < count; i++) {
        distances[i] = Math.sqrt(squared[i]);
        squared[i] = -distances[i] / h;
      }
      exponentials(squared, count);
      for (let i = 0; i < count; i++) {
        if (values) values[i] = squared[i];
        squared[i] = distances[i] > 0 ? -squared[i] / (h * distances[i]) : 0;
      }
    },
  },
  imq: {
    label: "inverse multiquadric: (1 + d²/h²)^−½",
    bandwidth: 1,
    eta: 150,
    steps: 150,
    weigh(squared, count, h, values) {
      const rate = 1 / (h * h);
      for (let i = 0; i < count; i++) {
        const k = 1 / Math.sqrt(1 + squared[i] * rate);
        if (values) values[i] = k;
        squared[i] = -rate * k * k * k;
      }
    },
  },
};

/** ‖x - y‖² of one point to those of a cloud from index `from` to before `to`, into the front of `row`. */
export function squaredRow(px, py, cloud, from, to, row) {
  for (let j = from; j < to; j++) {
    const dx = cloud[2 * j] - px;
    const dy = cloud[2 * j + 1] - py;
    row[j - from] = dx * dx + dy * dy;
  }
}

const MEDIAN_POINTS = 1000;

/** The median distance of n points, of at most a thousand of them, evenly spaced in the order given. */
export function medianDistance(cloud, n) {
  const stride = Math.ceil(n / MEDIAN_POINTS);
  const some = Math.ceil(n / stride);
  const points = new Float64Array(2 * some);
  for (let i = 0; i < some; i++) {
    points[2 * i] = cloud[2 * i * stride];
    points[2 * i + 1] = cloud[2 * i * stride + 1];
  }
  const squared = new Float64Array((some * (some - 1)) / 2);
  let filled = 0;
  for (let i = 0; i + 1 < some; i++) {
    const row = squared.subarray(filled);
    squaredRow(points[2 * i], points[2 * i + 1], points, i + 1, some, row);
    filled += some - 1 - i;
  }
  return Math.sqrt(selected(squared, (filled - 1) >> 1));
}

/** The k-th smallest number, from 0, by partitions in place (Hoare). */
function selected(values, k) {
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const pivot = values[(low + high) >> 1];
    let i = low;
    let j = high;
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i <= j) {
        const kept = values[i];
        values[i++] = values[j];
        values[j--] = kept;
      }
    }
    if (k <= j) high = j;
    else if (k >= i) low = i;
    else break;
  }
  return values[k];
}

const FAR = 25; // e^-25 counts for nothing

let order = new Uint32Array(0);
let sorted = new Float64Array(0);
let sums = new Float64Array(0);

/** Order n points by their first coordinate, into `order` and `sorted`; fast where little changed. */
function sortAcross(x, n) {
  if (order.length !== n) {
    order = Uint32Array.from({ length: n }, (_, i) => i).sort((a, b) => x[2 * a] - x[2 * b]);
    sorted = new Float64Array(2 * n);
    sums = new Float64Array(3 * n);
  } else {
    let moves = 0;
    for (let i = 1; i < n && moves < 40 * n; i++) {
      const one = order[i];
      const place = x[2 * one];
      let j = i - 1;
      while (j >= 0 && x[2 * order[j]] > place) {
        order[j + 1] = order[j];
        j--;
        moves++;
      }
      order[j + 1] = one;
    }
    if (moves >= 40 * n) order.sort((a, b) => x[2 * a] - x[2 * b]);
  }
  for (let i = 0; i < n; i++) {
    sorted[2 * i] = x[2 * order[i]];
    sorted[2 * i + 1] = x[2 * order[i] + 1];
  }
}

/**
 * ∇log of the kernel density of n points at those points: (E[y | x] - x)/h², the mean over Gaussian
 * weights of bandwidth h. A point's own term is part of it.
 */
export function kernelScore(x, n, h, out) {
  sortAcross(x, n);
  const rate = 0.5 / (h * h);
  const most = FAR / rate;
  const reach = Math.sqrt(most);
  sums.fill(0);
  for (let i = 0; i < n; i++) {
    const px = sorted[2 * i];
    const py = sorted[2 * i + 1];
    const end = px + reach;
    let total = 1;
    let sx = 0;
    let sy = 0;
    for (let j = i + 1; j < n && sorted[2 * j] <= end; j++) {
      const dx = sorted[2 * j] - px;
      const dy = sorted[2 * j + 1] - py;
      const squared = dx * dx + dy * dy;
      if (squared > most) continue;
      const weight = Math.exp(-rate * squared);
      total += weight;
      sx += weight * dx;
      sy += weight * dy;
      sums[3 * j] += weight;
      sums[3 * j + 1] -= weight * dx;
      sums[3 * j + 2] -= weight * dy;
    }
    sums[3 * i] += total;
    sums[3 * i + 1] += sx;
    sums[3 * i + 2] += sy;
  }
  for (let i = 0; i < n; i++) {
    const one = order[i];
    const scale = 2 * rate / sums[3 * i];
    out[2 * one] = scale * sums[3 * i + 1];
    out[2 * one + 1] = scale * sums[3 * i + 2];
  }
  return out;
}
