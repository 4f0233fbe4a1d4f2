/** From the rounds of all contenders to one table of medians and ratios. */
import { median } from './statistics.js';

const microseconds = (milliseconds) => milliseconds * 1000;

/**
 * What is told of each workload: `value` computes it from a contender's round and from the direct round beside
 * it. `CPU` is that of the routing processes alone, so the direct row has none.
 */
const requestMetrics = [
  { label: 'requests/s', value: ({ answers, seconds }) => answers / seconds },
  { label: 'p50, us', value: ({ latencyMs }) => microseconds(latencyMs.p50) },
  { label: 'p99, us', value: ({ latencyMs }) => microseconds(latencyMs.p99) },
  {
    label: 'p50 added to direct, us',
    value: ({ latencyMs }, direct) => microseconds(latencyMs.p50 - direct.latencyMs.p50),
  },
  {
    label: 'router CPU per request, us',
    value: ({ cpuSeconds, answers }) => (cpuSeconds / answers) * 1e6,
  },
];

const streamMetrics = [
  { label: 'events/s', value: ({ events, seconds }) => events / seconds },
  { label: 'router CPU per event, us', value: ({ cpuSeconds, events }) => (cpuSeconds / events) * 1e6 },
  { label: 'first byte p50, us', value: ({ firstByteMs }) => microseconds(firstByteMs.p50) },
  { label: 'first byte p99, us', value: ({ firstByteMs }) => microseconds(firstByteMs.p99) },
];

const firstByteMetrics = [
  ...streamMetrics.slice(2),
  {
    label: 'first byte p50 added to direct, us',
    value: ({ firstByteMs }, direct) => microseconds(firstByteMs.p50 - direct.firstByteMs.p50),
  },
];

const metrics = {
  'post-1': requestMetrics.slice(1),
  'post-16': requestMetrics.filter(({ label }) => !label.includes('p50')),
  'post-64': requestMetrics.filter(({ label }) => !label.includes('p50')),
  streams: streamMetrics,
  'first-byte': firstByteMetrics,
};

const opponents = ['native', 'nginx', 'direct'];

/**
 * @typedef {import('./load-generator.js').Tally & { cpuSeconds: number }} Round
 *
 * @typedef {object} Row
 * @property {string} workload
 * @property {string} metric
 * @property {Record<string, number>} medians by contender
 * @property {Record<string, number>} ratios ours to each other contender; the median of the rounds' own ratios
 *
 * @param {Record<string, Record<string, Round[]>>} rounds by workload and contender
 * @returns {Row[]}
 */
export function summarise(rounds) {
  return Object.entries(rounds).flatMap(([workload, byContender]) =>
    metrics[workload].map(({ label, value }) => {
      const values = Object.fromEntries(
        Object.entries(byContender).map(([contender, list]) => [
          contender,
          list.map((round, index) => value(round, byContender.direct[index])),
        ]),
      );
      const medians = Object.fromEntries(
        Object.entries(values).map(([contender, list]) => [contender, median(list)]),
      );
      // A round is compared with the others' rounds beside it: what else the machine did then hit all of them.
      const ratios = Object.fromEntries(
        opponents
          .filter((opponent) => opponent in values)
          .map((opponent) => [
            opponent,
            median(values.ours.map((ours, index) => ours / values[opponent][index])),
          ]),
      );
      return { workload, metric: label, medians, ratios };
    }),
  );
}

/**
 * @param {Row[]} rows
 * @param {Record<string, { title: string }>} workloads
 * @returns {string} Markdown, aligned so that a terminal shows it as well
 */
export function renderTable(rows, workloads) {
  const contenders = ['direct', 'native', 'nginx', 'ours'];
  const header = ['workload', 'measured', ...contenders, ...opponents.map((name) => `ours/${name}`)];
  const lines = rows.map(({ workload, metric, medians, ratios }, index) => [
    // The title stands once, at the first of its rows.
    workload === rows[index - 1]?.workload ? '' : workloads[workload].title,
    metric,
    ...contenders.map((name) => number(medians[name], 0)),
    ...opponents.map((name) => number(ratios[name], 2)),
  ]);
  const widths = header.map((title, column) =>
    Math.max(title.length, ...lines.map((line) => line[column].length)),
  );
  const isText = (column) => column < 2;
  const render = (cells) => {
    const padded = cells.map((cell, column) =>
      isText(column) ? cell.padEnd(widths[column]) : cell.padStart(widths[column]),
    );
    return `| ${padded.join(' | ')} |`;
  };
  const rule = widths.map((width, column) =>
    isText(column) ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`,
  );
  return [header, rule, ...lines].map(render).join('\n');
}

/** Nothing was measured, or a ratio to nothing: a dash. */
function number(value, digits) {
  return Number.isFinite(value) ? value.toFixed(digits) : '-';
}
