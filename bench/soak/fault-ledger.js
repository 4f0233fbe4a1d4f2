/**
 * What the soak does to the supervisor, and which errors may come of it. An error that nothing here explains is a
 * finding.
 *
 * @typedef {object} Fault
 * @property {keyof typeof consequences} kind
 * @property {string | undefined} model the only one that it may be felt at; undefined = all
 * @property {number} from Milliseconds of `performance.now()`
 * @property {number} until Infinity while it goes on
 *
 * @typedef {object} Failure how one request failed
 * @property {string} reason in the supervisor's own words, or how the connection was lost: `Exchange.end`
 * @property {string} message
 * @property {string | undefined} model
 * @property {number} startedAt
 * @property {number} endedAt
 * @property {number} pieces words of the answer that had come
 * @property {boolean} resumable whether it had a conversation id: into its stream no error is put, it is only cut
 */

/** Settings of the supervisor by which the windows below are measured. Seconds. */
export const limits = {
  fairAfter: 2,
  drainTimeout: 15,
  queueTimeout: 60,
  loadTimeout: 60,
  // Longer than a child is stopped that is to be left alone.
  hangTimeout: 8,
  streamPingAfter: 1,
  streamPingInterval: 1,
};

/** On a busy machine it takes some time until what was done is felt and told. Milliseconds. */
const slack = 5_000;

/** No answer that is asked for here takes longer, a slow reader's or a stopped process's included. */
const longestAnswer = 40_000;

/** A pause after failures in a row grows, so who kills a model often hears of it for longer. */
const longestPause = 40_000;

/** Who comes later than this after something cannot feel it any more. Milliseconds. */
const echo = 1_000;

/** A request that was begun before it was over, and failed after its beginning. */
const anyTime = ({ startedAt, endedAt }, { from, until }) => endedAt >= from && startedAt <= until + echo;
/** The same, and it failed at once. */
const soon = (failure, fault) => anyTime(failure, fault) && failure.endedAt <= fault.until + slack;
/** It goes on for longer, also for those who come then. */
const within = (ms) => (failure, fault) =>
  failure.endedAt >= fault.from && failure.endedAt <= fault.until + ms;

/** Which reasons may come of what, and when. A reason that is not there may not. */
const consequences = {
  'child killed': {
    child_gone: soon,
    load_failed: soon,
    model_failing: within(longestPause),
    // What it had said of a conversation is gone with it.
    stream_unknown: anyTime,
    cut: (failure, fault) => failure.resumable && soon(failure, fault),
  },
  // Stopped for longer than the hang timeout. It is told to go, and killed when it cannot.
  'child hung': {
    child_gone: soon,
    model_failing: within(longestPause),
    stream_unknown: anyTime,
    cut: (failure, fault) => failure.resumable && soon(failure, fault),
  },
  'model unloaded': {
    model_unloaded_meanwhile: soon,
    stream_unknown: anyTime,
    // In-flight answers are cut when they take longer than the drain.
    child_gone: lateIn(limits.drainTimeout),
    cut: (failure, fault) => failure.resumable && lateIn(limits.drainTimeout)(failure, fault),
  },
  'model unloaded by force': {
    model_unloaded_meanwhile: soon,
    stream_unknown: anyTime,
    child_gone: soon,
    cut: (failure, fault) => failure.resumable && soon(failure, fault),
  },
  'model changed': {
    model_changing: within(longestAnswer),
    stream_unknown: anyTime,
  },
  'model removed': {
    model_unknown: soon,
    model_unknown_to_load: soon,
    model_unknown_to_unload: soon,
    model_unloaded_meanwhile: soon,
    // Its file can go between the look at it and its load.
    load_failed: soon,
    model_invalid: soon,
    model_changing: within(longestAnswer),
    stream_unknown: anyTime,
  },
  flood: {
    queue_full: soon,
  },
  'supervisor killed': {
    refused: soon,
    reset: soon,
    cut: soon,
    stream_unknown: anyTime,
  },
  'supervisor ended at once': {
    refused: soon,
    reset: soon,
    cut: soon,
    ended: soon,
    shutting_down: soon,
    child_gone: soon,
    stream_unknown: anyTime,
  },
  'supervisor drained': {
    shutting_down: (failure, fault) =>
      soon(failure, fault) && (failure.pieces === 0 || drained(failure, fault)),
    refused: soon,
    // The port closes in the face of who has just come. Who came before the drain is answered.
    reset: (failure, fault) => failure.startedAt >= fault.from && soon(failure, fault),
    cut: (failure, fault) => soon(failure, fault) && drained(failure, fault),
    // What happens to models is told to the end.
    ended: soon,
    stream_unknown: anyTime,
  },
};

/** Stopped for a while, a child is only slow. */
export const harmless = ['child stopped', 'model loaded', 'reload'];

export class FaultLedger {
  /** @type {Fault[]} */
  #faults = [];
  #counts = {};

  /**
   * To be called before anything is done.
   *
   * @param {string} kind
   * @param {string} [model]
   * @returns {() => void} to be called when it is over
   */
  begin(kind, model) {
    if (!Object.hasOwn(consequences, kind) && !harmless.includes(kind))
      throw new Error(`no such fault: ${kind}`);
    const fault = { kind, model, from: performance.now(), until: Number.POSITIVE_INFINITY };
    this.#faults.push(fault);
    this.#counts[kind] = (this.#counts[kind] ?? 0) + 1;
    return () => {
      fault.until = performance.now();
    };
  }

  /** @param {Failure} failure @returns {string | undefined} the fault that it comes of; of several the latest */
  explain(failure) {
    return this.#faults.findLast((fault) => {
      if (fault.model !== undefined && fault.model !== failure.model) return false;
      return consequences[fault.kind]?.[failure.reason]?.(failure, fault) ?? false;
    })?.kind;
  }

  /** What was done in the last seconds before that time, latest first, for who looks into a finding. */
  before(at, model, ms = 15_000) {
    return this.#faults
      .filter((fault) => fault.from <= at && fault.until >= at - ms)
      .filter((fault) => fault.model === undefined || model === undefined || fault.model === model)
      .map(({ kind, model, from, until }) => {
        const ended = until <= at ? `, over ${seconds(at - until)} s before` : ', going on';
        return `${kind}${model === undefined ? '' : ` (${model})`} ${seconds(at - from)} s before${ended}`;
      })
      .reverse();
  }

  /** How often each was done. */
  get counts() {
    return { ...this.#counts };
  }
}

/** Not before the time was over that answers get to end. */
function lateIn(drainSeconds) {
  return ({ startedAt, endedAt }, { from, until }) =>
    startedAt <= until + echo &&
    endedAt >= from + drainSeconds * 1000 - 500 &&
    endedAt <= until + drainSeconds * 1000 + slack;
}

function drained({ endedAt }, { from }) {
  return endedAt >= from + limits.drainTimeout * 1000 - 500;
}

function seconds(ms) {
  return (ms / 1000).toFixed(1);
}
