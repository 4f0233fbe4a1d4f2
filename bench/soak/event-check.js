/** Whether a streamed answer is the one that its model gives: event by event, none lost, doubled, moved or another's. */
import { StringDecoder } from 'node:string_decoder';

/** Puts the chunks of an event stream back together. https://html.spec.whatwg.org/multipage/server-sent-events.html */
export class EventSplitter {
  #decoder = new StringDecoder('utf8');
  #unread = '';

  /** @param {Buffer} chunk @returns {{ name: string, data: string, comment: string }[]} the events that are whole now */
  push(chunk) {
    const parts = (this.#unread + this.#decoder.write(chunk)).split('\n\n');
    this.#unread = parts.pop();
    // A blank line more than needed is no event.
    return parts.filter((part) => part.trim() !== '').map(parse);
  }

  /** Whether nothing has come since the last whole event. */
  get isBetweenEvents() {
    return this.#unread.trim() === '';
  }
}

function parse(text) {
  const fields = { event: '', data: '', '': '' };
  for (const line of text.split('\n').filter(Boolean)) {
    const [, name, value] = /^(event|data|): ?(.*)$/s.exec(line) ?? [];
    if (name === undefined) return { name: 'unreadable', data: line, comment: '' };
    fields[name] += value;
  }
  return { name: fields.event, data: fields.data, comment: fields[''] };
}

/** Follows one streamed chat. `fault` says what was wrong with it first. */
export class AnswerCheck {
  #splitter = new EventSplitter();
  #answers;
  /** Those of the answers that it can be still. */
  #candidates;
  #limit;
  #finish;
  #done = false;
  /** @type {string | undefined} */
  fault;
  /** What the stream says went wrong. @type {{ reason: string, message: string } | undefined} */
  error;
  pieces = 0;
  comments = 0;

  /**
   * @param {() => readonly { words: readonly string[], loop: boolean }[]} answers one of them is right; asked for when
   *   the first word comes, because a model may change until then
   * @param {number | undefined} limit `max_tokens`
   */
  constructor(answers, limit) {
    this.#answers = answers;
    this.#limit = limit;
  }

  /** @param {Buffer} chunk */
  push(chunk) {
    for (const event of this.#splitter.push(chunk)) this.#hear(event);
  }

  /** The stream has ended in order: is it a whole answer? */
  end() {
    if (this.fault !== undefined) return;
    if (this.error) this.#wrong('it ended in order after its error event');
    else if (!this.#splitter.isBetweenEvents) this.#wrong('it ended within an event');
    else if (!this.#done) this.#wrong(`it ended in order after ${this.pieces} words, without [DONE]`);
  }

  /** Whether all of the answer is there, whatever becomes of its connection. */
  get isWhole() {
    return this.#done && this.fault === undefined;
  }

  #hear({ name, data, comment }) {
    if (this.fault !== undefined) return;
    if (comment !== '') {
      this.comments += 1;
      if (data === '') return;
    }
    if (name === 'unreadable') return this.#wrong(`not an event: ${excerpt(data)}`);
    if (this.error) return this.#wrong('it went on after its error event');
    if (this.#done) return this.#wrong(`it went on after [DONE]: ${excerpt(data)}`);
    if (data === '[DONE]') {
      this.#done = true;
      if (this.#finish === undefined) this.#wrong('[DONE] came without a finish_reason');
      return;
    }
    let record;
    try {
      record = JSON.parse(data);
    } catch {
      return this.#wrong(`not JSON: ${excerpt(data)}`);
    }
    if (name === 'error' || record.error !== undefined) {
      this.error = { reason: record.error?.reason ?? 'of the child', message: record.error?.message ?? data };
      return;
    }
    const [choice] = record.choices ?? [];
    if (choice === undefined) return this.#wrong(`an event without choices: ${excerpt(data)}`);
    if (choice.delta.content) this.#say(choice.delta.content);
    if (choice.finish_reason !== null) this.#finishWith(choice.finish_reason);
  }

  #say(piece) {
    if (this.#finish !== undefined) return this.#wrong('a word came after the last one');
    const at = this.pieces;
    this.#candidates ??= this.#answers();
    const fitting = this.#candidates.filter((answer) => pieceOf(answer, at) === piece);
    if (fitting.length === 0) {
      const wanted = this.#candidates.map((answer) => pieceOf(answer, at)).join(' or ');
      return this.#wrong(`word ${at + 1} is ${excerpt(piece)} instead of ${excerpt(wanted)}`);
    }
    this.#candidates = fitting;
    this.pieces += 1;
  }

  #finishWith(reason) {
    this.#finish = reason;
    const isWhole = this.#candidates?.some(({ words, loop }) => !loop && words.length === this.pieces);
    if (reason === 'stop' && !isWhole) this.#wrong(`it stopped after ${this.pieces} words`);
    if (reason === 'length' && this.pieces !== this.#limit) {
      this.#wrong(`it was ended after ${this.pieces} words instead of ${this.#limit}`);
    }
    if (reason !== 'stop' && reason !== 'length') this.#wrong(`it finished with ${excerpt(reason)}`);
  }

  #wrong(what) {
    this.fault ??= what;
  }
}

/** Each word is a token, hence an event, all but the first after a blank. */
function pieceOf({ words, loop }, at) {
  const word = loop ? words[at % words.length] : words[at];
  return word === undefined ? '' : at === 0 ? word : ` ${word}`;
}

export function excerpt(text) {
  return JSON.stringify(String(text).slice(0, 160));
}
