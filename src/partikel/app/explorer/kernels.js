// Fields of samples: sums over pairs of points.

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
