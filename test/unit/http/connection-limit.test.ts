import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { join } from 'node:path';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import {
  ConnectionLimit,
  connectionsFor,
  limitConnections,
  readOpenFilesMax,
} from '../../../src/http/connection-limit.js';
import { tempDir } from '../../helpers/temp-dir.js';

/** A limit whose clock stands until `pass` is called, and how often it was full. */
function limitOf(max: number) {
  let nowMs = 0;
  let timesFull = 0;
  const limit = new ConnectionLimit({ max, onFull: () => (timesFull += 1), now: () => nowMs });
  return {
    limit,
    pass: (ms: number) => (nowMs += ms),
    timesFull: () => timesFull,
    /** Knocks, and is idle when it is let in, as Node's server has it. */
    connect: () => {
      const connection = new Socket();
      const isIn = limit.admit(connection);
      return { connection, isIn };
    },
  };
}

async function gone(connection: Socket | undefined): Promise<void> {
  if (connection === undefined) throw new Error('there is no such connection');
  const closed = once(connection, 'close');
  connection.destroy();
  await closed;
}

describe('ConnectionLimit', () => {
  it('lets in as many as it may, and one more for each that leaves', async () => {
    const { limit, connect, timesFull } = limitOf(3);
    const clients = [connect(), connect(), connect()];
    expect(clients.map(({ isIn }) => isIn)).toEqual([true, true, true]);
    expect(timesFull()).toBe(0);
    expect(connect().isIn).toBe(false);
    expect(timesFull()).toBe(1);
    await gone(clients[1]?.connection);
    expect(limit.open).toBe(2);
    expect(connect().isIn).toBe(true);
    expect(connect().isIn).toBe(false);
  });

  it('closes the one that has been idle longest for a new one', async () => {
    const { limit, connect, pass } = limitOf(3);
    const [first, second, third] = [connect(), connect(), connect()];
    pass(1);
    limit.setBusy(first.connection);
    limit.setIdle(first.connection);
    pass(60_000);
    expect(connect().isIn).toBe(true);
    const closed = () => [first, second, third].map(({ connection }) => connection.destroyed);
    expect(closed()).toEqual([false, true, false]);
    expect(connect().isIn).toBe(true);
    expect(closed()).toEqual([false, true, true]);
    expect(connect().isIn).toBe(true);
    expect(closed()).toEqual([true, true, true]);
    expect(connect().isIn).toBe(false);
    await once(first.connection, 'close');
    expect(limit.open).toBe(3);
  });

  it('never closes one that is in use', () => {
    const { limit, connect, pass } = limitOf(2);
    const clients = [connect(), connect()];
    for (const { connection } of clients) limit.setBusy(connection);
    pass(3_600_000);
    expect(connect().isIn).toBe(false);
    expect(clients.map(({ connection }) => connection.destroyed)).toEqual([false, false]);
  });

  it('leaves one alone that has only just come, or only just been answered', () => {
    const { limit, connect, pass } = limitOf(1);
    const { connection } = connect();
    expect(connect().isIn).toBe(false);
    limit.setBusy(connection);
    pass(60_000);
    limit.setIdle(connection);
    expect(connect().isIn).toBe(false);
    pass(1_000);
    expect(connect().isIn).toBe(true);
    expect(connection.destroyed).toBe(true);
  });

  it('closes those that are idle when it is told to, and no other', () => {
    const { limit, connect } = limitOf(3);
    const [idle, busy, asking] = [connect(), connect(), connect()];
    limit.setBusy(busy.connection);
    Object.defineProperty(asking.connection, 'bytesRead', { value: 3 });
    limit.closeIdle();
    expect([idle, busy, asking].map(({ connection }) => connection.destroyed)).toEqual([true, false, false]);
  });

  it('keeps nothing of connections that are gone', async () => {
    const { limit, connect, pass } = limitOf(2);
    const { connection } = connect();
    await gone(connection);
    limit.setIdle(connection);
    expect(limit.open).toBe(0);
    const [one, other] = [connect(), connect()];
    limit.setBusy(one.connection);
    limit.setBusy(other.connection);
    pass(60_000);
    expect(connect().isIn).toBe(false);
  });
});

describe('how many clients may be connected', () => {
  it.each([
    [20_000, 9_808],
    [4_096, 1_856],
    [1_024, 320],
    [256, 64],
    [1, 1],
    [1_048_576, 16_384],
    [Infinity, 16_384],
  ])('with %d open files: %d', (files, clients) => {
    expect(connectionsFor(files)).toBe(clients);
  });

  it('leaves as many files again for the connections to the children, and some for all else', () => {
    for (let files = 1_024; files < 40_000; files += 997) {
      expect(2 * connectionsFor(files)).toBeLessThanOrEqual(files - 384);
    }
  });

  it.each([
    ['Max open files            512                  4096                 files     \n', 512],
    ['Max open files            unlimited            unlimited            files     \n', Infinity],
    ['nothing of the kind\n', 4_096],
  ])('is read from the soft limit on open files: %s', (line, files) => {
    const file = join(tempDir(), 'limits');
    writeFileSync(
      file,
      `Limit                     Soft Limit           Hard Limit           Units     \n${line}`,
    );
    expect(readOpenFilesMax(file)).toBe(files);
  });

  it('is a usual number where the system does not tell', () => {
    expect(readOpenFilesMax(join(tempDir(), 'nowhere'))).toBe(4_096);
  });

  it('is what --connections-max says, with a warning when that is more than can be', () => {
    const lines: Record<string, unknown>[] = [];
    const write = (line: string): void => void lines.push(JSON.parse(line) as Record<string, unknown>);
    const log = pino({ level: 'warn' }, { write });
    expect(limitConnections(7, log).max).toBe(7);
    expect(limitConnections(0, log).max).toBe(connectionsFor(readOpenFilesMax()));
    expect(lines).toEqual([]);
    expect(limitConnections(2 ** 31, log).max).toBe(2 ** 31);
    expect(lines).toMatchObject([{ connectionsMax: 2 ** 31 }]);
  });

  it('is told once a minute when it is reached, with how often', () => {
    const lines: Record<string, unknown>[] = [];
    const write = (line: string): void => void lines.push(JSON.parse(line) as Record<string, unknown>);
    const limit = limitConnections(1, pino({ level: 'warn' }, { write }));
    const knock = () => limit.admit(new Socket());
    expect(knock()).toBe(true);
    for (let client = 0; client < 1_000; client++) expect(knock()).toBe(false);
    expect(lines).toMatchObject([{ connectionsMax: 1, times: 1 }]);
  });
});
