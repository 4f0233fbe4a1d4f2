import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { canListProcesses, processesWithEnv } from '../helpers/processes.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { tempDir } from '../helpers/temp-dir.js';

const script = fileURLToPath(new URL('../../bench/soak.js', import.meta.url));

/** Marks every process of one soak, so that what it leaves behind is found. */
const marker = 'TEST_SOAK';

/** A run ends later than its minutes: rests, drains and the measuring of descriptors are not part of them. */
const endMs = 150_000;

interface SoakReport {
  failed: string[];
  mustBeZero: Record<string, number>;
  requests: Record<'sent' | 'right' | 'left' | 'errors' | 'wrong' | 'unexplained', number> & {
    byKind: Record<string, Record<'sent' | 'right' | 'left' | 'errors' | 'wrong', number>>;
  };
  errors: Record<string, { explained: Record<string, number>; unexplained: number }>;
  streams: { read: number; events: number; wrong: number };
  restarts: Record<'count' | 'slowestMs' | 'slowestBareMs', number>;
  memoryMiB: Record<'start' | 'peak' | 'end' | 'childrenPeak', number>;
  longestMs: Record<'untilFirstByte' | 'untilEnd' | 'health', { ms: number; kind: string }>;
  faults: Record<string, number>;
  orphans: string[];
  lives: { end: string; exit: number | string; descriptors: { start: number; end: number } }[];
  findings: unknown[];
}

/** Runs the soak as `npm run soak` does. */
function soak(args: string[]) {
  const mark = randomUUID();
  const child = spawn(process.execPath, [script, ...args], {
    env: { ...process.env, LLAMA_SERVER_BIN: realLlamaServer(), TMPDIR: tempDir(), [marker]: mark },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  const exited = new Promise<number | NodeJS.Signals | null>((resolve) => {
    child.once('close', (code, signal) => resolve(code ?? signal));
  });
  atEndOfTest(async () => {
    child.kill('SIGTERM');
    await withDeadline('the soak ends', exited, 10_000);
  });
  return {
    exited,
    output: () => output,
    kill: (signal: NodeJS.Signals) => child.kill(signal),
    processes: () => processesWithEnv(marker, mark),
  };
}

describe.runIf(canListProcesses)('the soak', () => {
  it(
    'reports right answers, explained errors and nothing that must not be, with a supervisor that is ended and started again',
    async () => {
      const file = join(tempDir(), 'report.json');
      const run = soak(['--minutes', '0.2', '--seed', 'smoke', '--json', file]);
      const exit = await withDeadline('the soak ends', run.exited, endMs);
      expect(exit, run.output()).toBe(0);

      const report = JSON.parse(readFileSync(file, 'utf8')) as SoakReport;
      expect(report.failed).toEqual([]);
      expect(Object.keys(report.mustBeZero)).toHaveLength(9);
      expect(new Set(Object.values(report.mustBeZero))).toEqual(new Set([0]));
      expect(report.findings).toEqual([]);
      expect(report.orphans).toEqual([]);

      const { requests, streams, errors, memoryMiB } = report;
      expect(requests.right).toBeGreaterThan(100);
      expect(requests.sent).toBe(requests.right + requests.left + requests.errors);
      expect(Object.keys(requests.byKind)).toEqual(
        expect.arrayContaining([
          'chat',
          'stream',
          'endless',
          'resumed stream',
          'embeddings',
          'list',
          'health',
        ]),
      );
      const explained = Object.values(errors).flatMap((row) => Object.values(row.explained));
      expect(explained.reduce((sum, count) => sum + count, 0)).toBe(requests.errors);
      expect(streams.events).toBeGreaterThan(streams.read);

      expect(report.restarts.count).toBeGreaterThan(0);
      expect(report.restarts.slowestBareMs).toBeGreaterThan(0);
      expect(report.lives).toHaveLength(report.restarts.count + 1);
      expect(Object.keys(report.faults)).toContain('child killed');
      for (const { descriptors } of report.lives)
        expect(descriptors.end).toBeLessThanOrEqual(descriptors.start);
      expect(memoryMiB.peak).toBeGreaterThanOrEqual(memoryMiB.start);
      expect(memoryMiB.childrenPeak).toBeGreaterThan(0);
      expect(report.longestMs.untilFirstByte.ms).toBeGreaterThan(0);
      expect(run.output()).toContain('All is well.');
    },
    endMs + 20_000,
  );

  it.each(['SIGTERM', 'SIGKILL'] as const)(
    'leaves no process behind when it is ended by %s',
    async (signal) => {
      const run = soak(['--minutes', '5', '--seed', signal]);
      // The supervisor, its guard, and a model at least.
      await eventually('models run', () => run.processes().length >= 3, { deadlineMs: 60_000 });
      run.kill(signal);
      const exit = await withDeadline('the soak ends', run.exited, 10_000);
      expect(exit).toBe(signal === 'SIGTERM' ? 143 : 'SIGKILL');
      await eventually('all its processes have ended', () => run.processes().length === 0);
    },
    90_000,
  );
});
