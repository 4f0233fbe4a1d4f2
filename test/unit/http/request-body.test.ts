import type { IncomingMessage } from 'node:http';
import { PassThrough, Readable } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { BodyBudget } from '../../../src/http/body-budget.js';
import { readBody, type RequestBody } from '../../../src/http/request-body.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';

/** What stands in for a request: a stream to write the body into, with headers. */
function request(headers: Record<string, string> = {}): PassThrough & IncomingMessage {
  return Object.assign(new PassThrough(), { headers }) as unknown as PassThrough & IncomingMessage;
}

async function sentBytes(body: RequestBody): Promise<Buffer> {
  const sent = body.forSending();
  if (!(sent instanceof Readable)) return sent ?? Buffer.alloc(0);
  const pieces: Buffer[] = [];
  for await (const piece of sent) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

interface ReadOptions {
  maxBytes?: number;
  budget?: BodyBudget;
  /** What bodies may fill on the disk; without it, none goes there. */
  disk?: BodyBudget;
  directory?: string;
  onChunk?: (chunk: Buffer) => void;
}

function read(incoming: IncomingMessage, options: ReadOptions = {}): Promise<RequestBody> {
  const { maxBytes = 1_000_000, budget = new BodyBudget(10_000_000), onChunk = () => undefined } = options;
  const { disk, directory = tempDir() } = options;
  const spooling = disk && { directory, budget: disk };
  return readBody(incoming, { maxBytes, budget, spooling }, onChunk);
}

/** Pieces of the sizes, each of a byte of its own. */
function pieces(sizes: number[]): Buffer[] {
  return sizes.map((size, at) => Buffer.alloc(size, at % 251));
}

describe('readBody', () => {
  it.each([
    ['nothing', []],
    ['one byte', [1]],
    ['one piece', [100_000]],
    ['small pieces', [1, 2, 3]],
    ['large pieces', [70_000, 70_000, 70_000]],
    ['exactly one batch of small pieces', Array.from({ length: 1024 }, () => 3)],
    ['many small pieces', Array.from({ length: 50_000 }, (_, at) => 1 + (at % 5))],
    [
      'small pieces between large ones',
      Array.from({ length: 6_000 }, (_, at) => (at % 2_000 === 1_999 ? 5_000 : 2)),
    ],
  ])('of %s gives the same bytes again, as often as they are asked for', async (_what, sizes) => {
    const incoming = request();
    const reading = read(incoming);
    const sent = pieces(sizes);
    for (const piece of sent) incoming.write(piece);
    incoming.end();
    const body = await reading;
    const whole = Buffer.concat(sent);
    expect(body.bytes).toBe(whole.length);
    for (let time = 0; time < 2; time++) expect((await sentBytes(body)).equals(whole)).toBe(true);
  });

  it('sends a small body in one write, and a large one in its pieces without a copy', async () => {
    const small = request();
    const reading = read(small);
    for (const piece of pieces([10, 20, 30])) small.write(piece);
    small.end();
    expect((await reading).forSending()).toBeInstanceOf(Buffer);

    const large = request();
    const [first, second] = [Buffer.alloc(60_000, 1), Buffer.alloc(60_000, 2)];
    const readingLarge = read(large);
    large.write(first);
    large.end(second);
    const sent: unknown[] = [];
    for await (const piece of (await readingLarge).forSending() as Readable) sent.push(piece);
    expect(sent[0]).toBe(first);
    expect(sent[1]).toBe(second);
  });

  it('shows each piece as it comes', async () => {
    const incoming = request();
    const shown: string[] = [];
    const reading = read(incoming, { onChunk: (chunk) => shown.push(chunk.toString()) });
    incoming.write('a');
    await new Promise(setImmediate);
    expect(shown).toEqual(['a']);
    incoming.end('b');
    await reading;
    expect(shown).toEqual(['a', 'b']);
  });

  it('takes from the budget what it holds, and gives it back once', async () => {
    const budget = new BodyBudget(100);
    const incoming = request();
    const reading = read(incoming, { budget });
    incoming.write('12345');
    await new Promise(setImmediate);
    expect(budget.heldBytes).toBe(5);
    incoming.end('678');
    const body = await reading;
    expect(budget.heldBytes).toBe(8);
    body.release();
    body.release();
    expect(budget.heldBytes).toBe(0);
  });

  it.each([
    ['with a Content-Length', { 'content-length': '11' }],
    ['without one', {}],
  ])('refuses what is larger than the maximum, %s, and gives the budget back', async (_how, headers) => {
    const budget = new BodyBudget(100);
    const incoming = request(headers);
    const reading = read(incoming, { maxBytes: 10, budget });
    incoming.write('123456');
    incoming.write('78901');
    await expect(reading).rejects.toMatchObject({ code: 'body_too_large' });
    expect(budget.heldBytes).toBe(0);
  });

  it('takes what is just as large as the maximum', async () => {
    const incoming = request({ 'content-length': '10' });
    const reading = read(incoming, { maxBytes: 10 });
    incoming.end('1234567890');
    expect((await reading).bytes).toBe(10);
  });

  it('refuses what the budget has no room for, and gives back what it took', async () => {
    const budget = new BodyBudget(10);
    budget.take(5);
    const incoming = request();
    const reading = read(incoming, { budget });
    incoming.write('123');
    incoming.write('456');
    await expect(reading).rejects.toMatchObject({ code: 'body_memory_full' });
    expect(budget.heldBytes).toBe(5);
  });

  it('refuses a body that is encoded', async () => {
    for (const encoding of ['gzip', 'br', 'GZIP', 'identity, gzip']) {
      const reading = read(request({ 'content-encoding': encoding }));
      await expect(reading).rejects.toMatchObject({ code: 'body_encoded' });
    }
  });

  it.each([
    ['closes', undefined],
    ['breaks', new Error('reset')],
  ])('is given up when the connection %s, and gives the budget back', async (_how, error) => {
    const budget = new BodyBudget(100);
    const incoming = request();
    const reading = read(incoming, { budget });
    incoming.write('abc');
    await new Promise(setImmediate);
    incoming.destroy(error);
    await expect(reading).rejects.toMatchObject({ code: 'client_gone' });
    expect(budget.heldBytes).toBe(0);
  });
});

describe('a client that is slow', () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
  afterEach(() => void vi.useRealTimers());

  /** Writes a piece every 20 s for ten minutes, or until the body is taken or refused. */
  async function trickle(incoming: PassThrough, piece: Buffer, reading: Promise<unknown>): Promise<number> {
    const ends: unknown[] = [];
    const end = (outcome: unknown) => ends.push(outcome);
    reading.then(end, end);
    let seconds = 0;
    for (; seconds < 600 && ends.length === 0; seconds += 20) {
      incoming.write(piece);
      await turn();
      vi.advanceTimersByTime(20_000);
      await turn();
    }
    return seconds;
  }

  it('is refused when it makes no headway, although it sends a byte now and then', async () => {
    const incoming = request();
    const budget = new BodyBudget(1_000);
    const reading = read(incoming, { budget });
    expect(await trickle(incoming, Buffer.from('x'), reading)).toBe(60);
    await expect(reading).rejects.toMatchObject({ code: 'body_timeout' });
    expect(budget.heldBytes).toBe(0);
  });

  it('is waited for as long as it makes some', async () => {
    const incoming = request();
    const reading = read(incoming);
    expect(await trickle(incoming, Buffer.alloc(8_192), reading)).toBe(600);
    incoming.end();
    expect((await reading).bytes).toBe(30 * 8_192);
  });
});

describe('a large form', () => {
  const MiB = 1024 * 1024;
  const form = { 'content-type': 'multipart/form-data; boundary=b' };

  /** Writes the pieces as fast as they are taken. */
  async function sendTo(incoming: PassThrough, sent: readonly Buffer[]): Promise<void> {
    for (const piece of sent) {
      if (!incoming.write(piece)) await new Promise((resolve) => incoming.once('drain', resolve));
    }
    incoming.end();
  }

  it('is read into a file, with a mebibyte and a piece of it in memory at most', async () => {
    const [budget, disk] = [new BodyBudget(10 * MiB), new BodyBudget(100 * MiB)];
    let mostHeld = 0;
    let shown = 0;
    const onChunk = (chunk: Buffer) => {
      mostHeld = Math.max(mostHeld, budget.heldBytes);
      shown += chunk.length;
    };
    const incoming = request(form);
    const reading = read(incoming, { maxBytes: 50 * MiB, budget, disk, onChunk });
    const sent = pieces([
      ...Array.from({ length: 3_000 }, () => 1),
      ...Array.from({ length: 300 }, () => 70_000),
    ]);
    await sendTo(incoming, sent);
    const body = await reading;
    const whole = Buffer.concat(sent);
    expect([body.bytes, shown]).toEqual([whole.length, whole.length]);
    expect(mostHeld).toBeLessThanOrEqual(MiB + 70_000);
    expect([budget.heldBytes, disk.heldBytes]).toEqual([0, whole.length]);
    for (let time = 0; time < 2; time++) expect((await sentBytes(body)).equals(whole)).toBe(true);
    body.release();
    body.release();
    expect(disk.heldBytes).toBe(0);
  });

  it.each([
    ['a form of a mebibyte', form, MiB],
    ['JSON of any size', { 'content-type': 'application/json' }, 5 * MiB],
    ['a body of no type', {}, 5 * MiB],
  ])('is not what %s is, which is held in memory', async (_what, headers, bytes) => {
    const [budget, disk] = [new BodyBudget(10 * MiB), new BodyBudget(100 * MiB)];
    const incoming = request(headers);
    const reading = read(incoming, { maxBytes: 50 * MiB, budget, disk });
    await sendTo(incoming, pieces([bytes - 1, 1]));
    const body = await reading;
    expect([budget.heldBytes, disk.heldBytes]).toEqual([bytes, 0]);
    body.release();
    expect(budget.heldBytes).toBe(0);
  });

  it('is taken from its client no faster than the disk takes it', async () => {
    const [budget, disk] = [new BodyBudget(10 * MiB), new BodyBudget(100 * MiB)];
    const heldWith: number[] = [];
    const incoming = request(form);
    const onChunk = () => heldWith.push(budget.heldBytes);
    const reading = read(incoming, { maxBytes: 50 * MiB, budget, disk, onChunk });
    await sendTo(incoming, pieces([2 * MiB, 3 * MiB, 2 * MiB]));
    const body = await reading;
    // What came before had left the memory each time.
    expect(heldWith).toEqual([2 * MiB, 3 * MiB, 2 * MiB]);
    body.release();
  });

  it.each([
    ['is too large', { maxBytes: 3 * MiB }, 'body_too_large'],
    ['finds no room on the disk', { disk: new BodyBudget(3 * MiB) }, 'body_memory_full'],
    ['finds no directory', { directory: '/there/is/no/such/directory' }, 'internal'],
  ])('that %s is refused, and gives back what it took of both', async (_why, options, code) => {
    const [budget, disk] = [new BodyBudget(10 * MiB), new BodyBudget(100 * MiB)];
    const given = { maxBytes: 50 * MiB, budget, disk, ...options };
    const incoming = request(form);
    const reading = read(incoming, given);
    const refused = expect(reading).rejects.toMatchObject({ code });
    // Whatever is still sent is read, so that the refusal reaches its client.
    reading.catch(() => incoming.resume());
    await sendTo(incoming, pieces([2 * MiB, 1.5 * MiB, 2 * MiB]));
    await refused;
    await eventually('all is given back', () => budget.heldBytes + given.disk.heldBytes === 0);
  });

  it('whose client leaves while it is written gives back what it took of both', async () => {
    const [budget, disk] = [new BodyBudget(10 * MiB), new BodyBudget(100 * MiB)];
    const incoming = request(form);
    const reading = read(incoming, { maxBytes: 50 * MiB, budget, disk });
    incoming.write(Buffer.alloc(2 * MiB));
    await eventually('it is being written', () => disk.heldBytes > 0);
    incoming.destroy();
    await expect(reading).rejects.toMatchObject({ code: 'client_gone' });
    await eventually('all is given back', () => budget.heldBytes + disk.heldBytes === 0);
  });
});
