/** @param {ArrayLike<number>} sorted ascending @param {number} share 0 to 1 @returns {number} by nearest rank; NaN of nothing */
export function quantile(sorted, share) {
  return sorted.length === 0 ? Number.NaN : sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}

/** @param {readonly number[]} numbers @returns {number} the mean of the middle two when there is no middle one */
export function median(numbers) {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
