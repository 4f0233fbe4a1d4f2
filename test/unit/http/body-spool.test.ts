import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { describe, expect, it, vi } from 'vitest';
import { BodyBudget } from '../../../src/http/body-budget.js';
import { BodySpool, spoolingFor } from '../../../src/http/body-spool.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';

// Counts the files that are open, and can have them keep their names as on systems where an open file must.
const files = vi.hoisted(() => ({ open: 0, keepTheirNames: false, modes: [] as number[] }));
vi.mock('node:fs/promises', async (importOriginal) => {
  const real = await importOriginal<typeof fs>();
  const open: typeof real.open = async (...args) => {
    const file = await real.open(...args);
    files.open += 1;
    files.modes.push((await file.stat()).mode & 0o777);
    const close = file.close.bind(file);
    file.close = async () => {
      await close();
      files.open -= 1;
    };
    return file;
  };
  const unlink: typeof real.unlink = (path) => {
    if (files.keepTheirNames && files.open > 0) return Promise.reject(new Error('EBUSY: it is open'));
    return real.unlink(path);
  };
  return { ...real, open, unlink };
});

function newSpool({ maxBytes = 1_000_000 } = {}) {
  const directory = tempDir();
  const budget = new BodyBudget(maxBytes, 'the bound of the test');
  return { directory, budget, spool: new BodySpool({ directory, budget }) };
}

async function isClosed(): Promise<void> {
  await eventually('the file is closed', () => files.open === 0);
}

describe('a body on the disk', () => {
  it('is the same bytes again, as often and by as many readers as ask for them', async () => {
    const { spool } = newSpool();
    const chunks = [1, 70_000, 3, 200_000].map((bytes) => randomBytes(bytes));
    await spool.append(chunks.slice(0, 2));
    await spool.append(chunks.slice(2));
    const whole = Buffer.concat(chunks);
    expect(spool.bytes).toBe(whole.length);
    const read = await Promise.all([1, 2, 3].map(() => buffer(spool.forSending())));
    for (const bytes of read) expect(bytes.equals(whole)).toBe(true);
    expect((await buffer(spool.forSending())).equals(whole)).toBe(true);
    spool.release();
    await isClosed();
  });

  it('is in a file that only its owner may open, and that has lost its name', async () => {
    const { spool, directory } = newSpool();
    await spool.append([Buffer.from('x')]);
    expect(readdirSync(directory)).toEqual([]);
    expect(files.modes.at(-1)).toBe(0o600);
    spool.release();
    await isClosed();
  });

  it('loses the name of its file at its release where an open file must have one', async () => {
    files.keepTheirNames = true;
    try {
      const { spool, directory } = newSpool();
      await spool.append([Buffer.from('x')]);
      expect(readdirSync(directory)).toEqual([expect.stringMatching(/^llama-supervisor-.*\.body$/)]);
      spool.release();
      await eventually('the file is gone', () => readdirSync(directory).length === 0);
    } finally {
      files.keepTheirNames = false;
    }
  });

  it('is read as its reader takes it, and no further', async () => {
    const { spool } = newSpool();
    await spool.append([Buffer.alloc(900_000)]);
    const reading = spool.forSending();
    await new Promise((resolve) => reading.once('readable', resolve));
    await new Promise(setImmediate);
    expect(reading.readableLength).toBeLessThanOrEqual(2 * 64 * 1024);
    reading.destroy();
    spool.release();
    await isClosed();
  });
});

describe('the release of a body on the disk', () => {
  it('closes the file and gives the budget back, once', async () => {
    const { spool, budget } = newSpool();
    await spool.append([Buffer.from('12345')]);
    expect(budget.heldBytes).toBe(5);
    spool.release();
    spool.release();
    expect(budget.heldBytes).toBe(0);
    await isClosed();
  });

  it('waits for those who read it, who get it whole', async () => {
    const { spool, budget } = newSpool();
    const bytes = randomBytes(500_000);
    await spool.append([bytes]);
    const reading = spool.forSending();
    await new Promise((resolve) => reading.once('readable', resolve));
    spool.release();
    expect(budget.heldBytes).toBe(bytes.length);
    expect((await buffer(reading)).equals(bytes)).toBe(true);
    expect(budget.heldBytes).toBe(0);
    await isClosed();
  });

  it('does not wait for a reader who was stopped, nor for one who never began', async () => {
    const { spool, budget } = newSpool();
    await spool.append([Buffer.alloc(500_000)]);
    spool.forSending();
    const stopped = spool.forSending();
    await new Promise((resolve) => stopped.once('readable', resolve));
    stopped.destroy();
    spool.release();
    await isClosed();
    expect(budget.heldBytes).toBe(0);
  });

  it('waits for a write', async () => {
    const { spool, budget } = newSpool();
    const writing = spool.append([Buffer.alloc(500_000)]);
    spool.release();
    await writing;
    await isClosed();
    expect(budget.heldBytes).toBe(0);
  });

  it('of one that was never written needs no file', () => {
    const { spool, directory } = newSpool();
    spool.release();
    expect(files.open).toBe(0);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe('a body that the disk does not take', () => {
  it('is refused when the bodies there fill their share, and takes none of it', async () => {
    const { spool, budget } = newSpool({ maxBytes: 10 });
    await spool.append([Buffer.alloc(6)]);
    const refusal = { code: 'body_memory_full', status: 503 };
    await expect(spool.append([Buffer.alloc(5)])).rejects.toMatchObject(refusal);
    expect(budget.heldBytes).toBe(6);
    spool.release();
    await isClosed();
  });

  it.each([
    ['which is not there', 'internal', 500, () => join(tempDir(), 'missing')],
    ['which is a file', 'internal', 500, fileInItsPlace],
  ])('for want of its directory, %s, is told so with the path', async (_how, code, status, make) => {
    const directory = await make();
    const budget = new BodyBudget(100);
    const spool = new BodySpool({ directory, budget });
    const refusal = await spool.append([Buffer.from('x')]).catch((error: unknown) => error);
    expect(refusal).toMatchObject({ code, status });
    expect((refusal as Error).message).toContain(directory);
    expect((refusal as Error).message).toContain('TMPDIR');
    spool.release();
    expect(budget.heldBytes).toBe(0);
  });
});

async function fileInItsPlace(): Promise<string> {
  const path = join(tempDir(), 'file');
  await fs.writeFile(path, '');
  return path;
}

it('the disk may hold sixteen bodies of the largest size, and its refusal says so', () => {
  const { directory, budget } = spoolingFor(1000, '/some/where');
  expect(directory).toBe('/some/where');
  budget.take(16_000);
  expect(() => budget.take(1)).toThrow('16 times --body-max, on the disk of /some/where');
});
