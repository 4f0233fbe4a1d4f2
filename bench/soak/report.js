/** What a run has shown, as data and as text, and which of it must not be. */

/** How soon a supervisor is to serve that was started again. Milliseconds. */
const restartMs = 1_000;
/** Where a bare process of Node's takes its time to start, a supervisor may take so many times as much. */
const bareStarts = 25;

/** How long a health check may take, with the soak's own lag on top. Milliseconds. */
const healthMs = 5_000;

/** By how much a supervisor that has come to rest may be larger than in the rest after its start. */
const growthMiB = 200;

/**
 * @typedef {object} Report
 * @property {string[]} failed what must be 0 and is not; empty when all is well
 * @property {object} mustBeZero
 *
 * @param {object} run
 * @param {{ servedAfterMs: number, bareStartMs: number }[]} run.restarts how long each took until it served, and a bare
 *   process of Node's at that time until it ran
 * @param {number} run.ownLagMs the longest that the soak itself was late
 * @returns {Report}
 */
export function reportOf({
  seed,
  rate,
  seconds,
  restarts,
  tally,
  ownLagMs,
  recordsHeard,
  faults,
  lives,
  log,
}) {
  const { requests, errors, streams, longestMs, findings } = tally;
  const orphans = lives.flatMap((life) => life.orphans);
  const alarms = alarmsIn(log);
  const mustBeZero = {
    'streams wrong': streams.wrong,
    'other answers wrong, or states that must not be': requests.wrong - streams.wrong,
    'errors unexplained': requests.unexplained,
    orphans: orphans.length,
    'descriptors leaked': lives.reduce((sum, { descriptors }) => sum + descriptors.leaked, 0),
    'errors nobody handled': alarms.unhandled.length,
    'restarts that took too long': restarts.filter(
      ({ servedAfterMs, bareStartMs }) =>
        servedAfterMs > Math.max(restartMs, bareStarts * bareStartMs) + ownLagMs,
    ).length,
    'health checks that took too long': (longestMs.health?.ms ?? 0) > healthMs + ownLagMs ? 1 : 0,
    'supervisors that grew too much': lives.filter(
      ({ memoryMiB }) => memoryMiB.end - memoryMiB.start > growthMiB,
    ).length,
  };
  const failed = Object.entries(mustBeZero)
    .filter(([, count]) => count !== 0)
    .map(([what, count]) => `${what}: ${count}`);
  return {
    ...{ seed, rate, seconds: Number(seconds.toFixed(1)), failed, mustBeZero },
    ...{ requests, errors, streams, recordsHeard, faults, longestMs, ownLagMs },
    restarts: {
      count: restarts.length,
      slowestMs: Math.max(0, ...restarts.map(({ servedAfterMs }) => servedAfterMs)),
      slowestBareMs: Math.max(0, ...restarts.map(({ bareStartMs }) => bareStartMs)),
    },
    memoryMiB: {
      start: lives[0].memoryMiB.start,
      peak: Math.max(...lives.map(({ memoryMiB }) => memoryMiB.peak)),
      end: lives.at(-1).memoryMiB.end,
      childrenPeak: Math.max(...lives.map(({ memoryMiB }) => memoryMiB.childrenPeak)),
    },
    ...{ orphans, lives, logged: alarms, findings },
  };
}

/** @param {Report} report @returns {string} for people */
export function renderReport(report) {
  const { requests, errors, streams, faults, longestMs, restarts, memoryMiB, lives, findings } = report;
  const lines = [
    `seed ${report.seed}, ${report.seconds} s, ${report.rate} arrivals/s`,
    '',
    ...table([
      ['requests', requests.sent],
      ['right answers', requests.right],
      ['left by the client, as it meant to', requests.left],
      ['errors explained by what was done', requests.errors - requests.unexplained],
      ['not sent, because too many were under way', requests.notSent],
      ['streams read', `${streams.read} (${streams.events} words)`],
      ['records of the event feed', report.recordsHeard],
      [
        'restarts',
        `${restarts.count}, serving again after ${restarts.slowestMs} ms at most (bare Node: ${restarts.slowestBareMs} ms)`,
      ],
      [
        'memory of the supervisor, MiB',
        `${memoryMiB.start} at the start, ${memoryMiB.peak} at most, ${memoryMiB.end} at the end`,
      ],
      ['memory of its children, MiB', `${memoryMiB.childrenPeak} at most`],
      ['longest wait for a first byte', wait(longestMs.untilFirstByte)],
      ['longest request', wait(longestMs.untilEnd)],
      ['longest health check', wait(longestMs.health)],
      ['longest that the soak itself was late', `${report.ownLagMs} ms`],
    ]),
    '',
    'Must be 0:',
    ...table(Object.entries(report.mustBeZero)),
    '',
    'By kind: sent, right, left, errors, wrong',
    ...table(
      Object.entries(requests.byKind).map(([kind, { sent, right, left, errors: failed, wrong }]) => [
        kind,
        [sent, right, left, failed, wrong].join(', '),
      ]),
    ),
    '',
    'Errors, and what they came of:',
    ...table(
      Object.entries(errors).map(([reason, { explained, unexplained }]) => [
        reason,
        [
          ...Object.entries(explained).map(([fault, count]) => `${count} ${fault}`),
          ...(unexplained > 0 ? [`${unexplained} UNEXPLAINED`] : []),
        ].join(', '),
      ]),
    ),
    '',
    'What was done:',
    ...table(Object.entries(faults)),
    '',
    'Lives: end, exit; descriptors and MiB at the start and at the end',
    ...table(
      lives.map(
        ({ number, end, exit, descriptors: { start, end: endCount, more }, memoryMiB: memory, orphans }) => [
          String(number),
          [
            `${end}, ${exit}; ${start} and ${endCount}; ${memory.start} and ${memory.end}`,
            ...(more.length > 0 ? [`LEAKED ${more.join(', ')}`] : []),
            ...(orphans.length > 0 ? [`LEFT ${orphans.join(', ')}`] : []),
          ].join('; '),
        ],
      ),
    ),
    ...(report.logged.errors.length === 0 ? [] : ['', 'Logged as errors:', ...table(report.logged.errors)]),
    ...findings.flatMap(renderFinding),
    '',
    report.failed.length === 0 ? 'All is well.' : `NOT WELL: ${report.failed.join('; ')}`,
  ];
  return `${lines.join('\n')}\n`;
}

function renderFinding({ what, kind, model, detail, pieces, at, tookMs, before }) {
  return [
    '',
    `${what.toUpperCase()} ${kind}${model === undefined ? '' : ` at ${model}`}, ${at}, after ${tookMs} ms and ${pieces} words`,
    `  ${detail}`,
    ...before.slice(0, 8).map((fault) => `  - ${fault}`),
  ];
}

/** @param {readonly (readonly [string, string | number])[]} rows */
function table(rows) {
  const width = Math.max(0, ...rows.map(([name]) => name.length));
  return rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`);
}

function wait(longest) {
  if (longest === undefined) return 'none';
  const { ms, kind, model, result, at } = longest;
  return `${ms} ms (${kind}${model === undefined ? '' : ` at ${model}`}, ${result}, ${at})`;
}

/** What the log has of errors: those that nobody handled must not be, others are counted by their words. */
function alarmsIn(log) {
  const pinoError = 50;
  const pinoFatal = 60;
  const unhandled = [];
  const errors = new Map();
  for (const line of log.split('\n').filter(Boolean)) {
    const record = parse(line);
    if (record === undefined) {
      // All that it writes itself is JSON. What Node writes is not.
      unhandled.push(line);
    } else if (record.level >= pinoFatal) {
      unhandled.push(line);
    } else if (record.level >= pinoError) {
      errors.set(record.msg, (errors.get(record.msg) ?? 0) + 1);
    }
  }
  return { unhandled: unhandled.slice(0, 20), errors: [...errors] };
}

function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
