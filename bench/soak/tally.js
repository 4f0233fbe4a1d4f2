/** The count of what clients got: right answers, errors by reason and whether they are explained, the longest waits. */

/** Wrong answers and unexplained errors that are told one by one. */
const maxSamples = 40;

export class Tally {
  skipped = 0;
  #ledger;
  #byKind = {};
  #errors = {};
  #samples = [];
  #unexplained = 0;
  #wrong = 0;
  #streams = { read: 0, events: 0, wrong: 0 };
  #longest = { untilFirstByte: undefined, untilEnd: undefined, health: undefined };
  #startedAt = performance.now();

  /** @param {import('./fault-ledger.js').FaultLedger} ledger */
  constructor(ledger) {
    this.#ledger = ledger;
  }

  /** @param {string} kind @param {import('./requests.js').Outcome} outcome */
  add(kind, outcome) {
    const counts = (this.#byKind[kind] ??= { sent: 0, right: 0, left: 0, errors: 0, wrong: 0 });
    counts.sent += 1;
    if (outcome.isStream) {
      this.#streams.read += 1;
      this.#streams.events += outcome.pieces;
    }
    this.#measure(kind, outcome);
    switch (outcome.result) {
      case 'right':
      case 'left':
        counts[outcome.result] += 1;
        break;
      case 'wrong':
        counts.wrong += 1;
        this.#wrong += 1;
        if (outcome.isStream) this.#streams.wrong += 1;
        this.#keep('wrong', kind, outcome, outcome.detail);
        break;
      case 'error':
        counts.errors += 1;
        this.#addError(kind, outcome);
        break;
    }
  }

  /** Something that is no request's outcome, and that is not to be. */
  complain(about, detail, { model, startedAt } = {}) {
    this.#wrong += 1;
    const endedAt = performance.now();
    this.#keep('wrong', about, { model, startedAt: startedAt ?? endedAt, endedAt, pieces: 0 }, detail);
  }

  get report() {
    const kinds = Object.values(this.#byKind);
    const sum = (key) => kinds.reduce((total, counts) => total + counts[key], 0);
    return {
      requests: {
        ...{ sent: sum('sent'), right: sum('right'), left: sum('left'), errors: sum('errors') },
        ...{ wrong: this.#wrong, unexplained: this.#unexplained, notSent: this.skipped },
        byKind: this.#byKind,
      },
      errors: this.#errors,
      streams: this.#streams,
      longestMs: this.#longest,
      findings: this.#samples,
    };
  }

  #addError(kind, outcome) {
    const fault = this.#ledger.explain(outcome);
    const row = (this.#errors[outcome.reason] ??= { explained: {}, unexplained: 0 });
    if (fault !== undefined) {
      row.explained[fault] = (row.explained[fault] ?? 0) + 1;
      return;
    }
    row.unexplained += 1;
    this.#unexplained += 1;
    this.#keep('unexplained', kind, outcome, `${outcome.reason}: ${outcome.message}`);
  }

  #keep(what, kind, { model, startedAt, endedAt, pieces }, detail) {
    if (this.#samples.length >= maxSamples) return;
    this.#samples.push({
      ...{ what, kind, model, detail, pieces },
      at: timeOf(endedAt),
      atSeconds: Number(((endedAt - this.#startedAt) / 1000).toFixed(1)),
      tookMs: Math.round(endedAt - startedAt),
      before: this.#ledger.before(endedAt, model),
    });
  }

  #measure(kind, { model, result, startedAt, firstByteAt, endedAt }) {
    const at = timeOf(endedAt);
    const of = (ms) => ({ ms: Math.round(ms), kind, model, result, at });
    const longer = (name, ms) => {
      if (ms > (this.#longest[name]?.ms ?? -1)) this.#longest[name] = of(ms);
    };
    if (!Number.isNaN(firstByteAt)) longer('untilFirstByte', firstByteAt - startedAt);
    longer('untilEnd', endedAt - startedAt);
    if (kind === 'health' && result === 'right') longer('health', endedAt - startedAt);
  }
}

function timeOf(at) {
  return new Date(performance.timeOrigin + at).toISOString();
}
