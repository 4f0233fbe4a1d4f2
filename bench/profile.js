/** Where the time went, from the files that `node --cpu-prof` writes. */
import { readFile } from 'node:fs/promises';

/**
 * @typedef {object} Profile
 * @property {{ us: number, name: string, part: string }[]} samples what ran for how long, in microseconds
 * @property {number} startUs of the machine's monotonic clock, as `monotonicUs`
 */

/** @returns {number} the clock of profiles, in microseconds */
export function monotonicUs() {
  return Number(process.hrtime.bigint() / 1000n);
}

/** @param {string} file a `.cpuprofile` @returns {Promise<Profile>} */
export async function readProfile(file) {
  const { nodes, samples, timeDeltas, startTime } = JSON.parse(await readFile(file, 'utf8'));
  const frames = new Map(nodes.map(({ id, callFrame }) => [id, placeOf(callFrame)]));
  return {
    startUs: startTime,
    // A delta says how long after the sample before it one was taken: it is that one's share of the time.
    samples: samples.map((id, index) => ({ us: timeDeltas[index + 1] ?? 0, ...frames.get(id) })),
  };
}

/**
 * What took the time by itself, without what it called.
 *
 * @param {Profile} profile
 * @param {{ fromUs: number, toUs: number }} window
 * @param {'name' | 'part'} by single functions, or the packages, folders and parts of Node they belong to
 * @param {number} count
 * @returns {string} a line each, most expensive first
 */
export function mostExpensive({ startUs, samples }, { fromUs, toUs }, by, count) {
  const spent = new Map();
  let now = startUs;
  for (const { us, ...frame } of samples) {
    now += us;
    if (now < fromUs || now > toUs || frame.name === '(idle)') continue;
    spent.set(frame[by], (spent.get(frame[by]) ?? 0) + us);
  }
  const busy = [...spent.values()].reduce((sum, us) => sum + us, 0);
  const lines = [...spent]
    .sort(([, a], [, b]) => b - a)
    .slice(0, count)
    .map(([what, us]) => `${((us / busy) * 100).toFixed(1).padStart(5)} %  ${what}`);
  return [`busy for ${(busy / 1e6).toFixed(2)} of ${((toUs - fromUs) / 1e6).toFixed(2)} s`, ...lines].join(
    '\n',
  );
}

function placeOf({ functionName, url, lineNumber }) {
  const name = functionName === '' ? '(anonymous)' : functionName;
  // Without a place: the garbage collector, and system calls made by Node itself.
  if (url === '') return { name, part: name };
  const place = url.replace(/^file:.*\/(?=(node_modules|dist|bin)\/)/, '');
  const part = /^node_modules\/(@[^/]+\/)?[^/]+|^dist\/[^/]+|^node:[^:]+|^wasm/.exec(place)?.[0] ?? place;
  return { name: `${name}  ${place}:${lineNumber + 1}`, part };
}
