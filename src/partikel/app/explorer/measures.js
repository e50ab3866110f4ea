// Live figures.

/** Mean distance between the first n of x and the first m of y, or between pairs of x where y is null. */
function meanDistance(x, n, y, m) {
  let total = 0;
  for (let i = 0; i < n; i++) {
    const px = x[2 * i];
    const py = x[2 * i + 1];
    const other = y ?? x;
    for (let j = y ? 0 : i + 1; j < m; j++) {
      const dx = other[2 * j] - px;
      const dy = other[2 * j + 1] - py;
      total += Math.sqrt(dx * dx + dy * dy);
    }
  }
  return y ? total / (n * m) : (2 * total) / (n * (n - 1));
}

/** Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased, of n against m points. */
export function energyDistance(x, n, y, m) {
  return 2 * meanDistance(x, n, y, m) - meanDistance(x, n, null, n) - meanDistance(y, m, null, m);
}

/** What n and m draws of the data differ by: a quantile that is filled in pair by pair. */
export class NullSpread {
  constructor(target, n, m, stream, pairs = 60) {
    this.target = target;
    this.n = n;
    this.m = m;
    this.stream = stream;
    this.pairs = pairs;
    this.found = [];
    this.one = new Float64Array(2 * n);
    this.other = new Float64Array(2 * m);
  }

  /** Compare one more pair of draws; whether there are enough. */
  advance() {
    if (this.found.length >= this.pairs) return true;
    const { target, n, m, stream, one, other } = this;
    target.sample(stream, n, one);
    target.sample(stream, m, other);
    this.found.push(energyDistance(one, n, other, m));
    return false;
  }

  /** 95 % of pairs differ by less; NaN until there are some. */
  get level() {
    if (this.found.length < 20) return Number.NaN;
    const ordered = this.found.toSorted((a, b) => a - b);
    return ordered[Math.ceil(0.95 * ordered.length) - 1];
  }
}

/** Modes of a mixture that hold a fifth of their fair share within three standard deviations. */
export function modesCovered(target, x, n) {
  const { means, stds, weights, count } = target;
  const close = new Float64Array(count);
  for (let i = 0; i < n; i++) {
    let nearest = 0;
    let least = Number.POSITIVE_INFINITY;
    for (let k = 0; k < count; k++) {
      const squared = (x[2 * i] - means[2 * k]) ** 2 + (x[2 * i + 1] - means[2 * k + 1]) ** 2;
      if (squared < least) [least, nearest] = [squared, k];
    }
    if (least <= 9 * stds[nearest] ** 2) close[nearest]++;
  }
  return close.reduce((sum, c, k) => sum + (c / n >= 0.2 * weights[k] ? 1 : 0), 0);
}
