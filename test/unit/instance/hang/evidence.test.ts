import { chmodSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { CpuEvidence } from '../../../../src/instance/hang/cpu-evidence.js';
import { GpuTimeEvidence, parseFdinfo } from '../../../../src/instance/hang/gpu-time-evidence.js';
import { NvidiaEvidence, NvidiaSmi, parsePmon } from '../../../../src/instance/hang/nvidia-evidence.js';
import {
  familyOf,
  parseProcStat,
  parsePs,
  processTable,
  type ProcessTimes,
} from '../../../../src/instance/hang/process-activity.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { StandingClock } from './hang-rig.js';

const one = (pid: number, parent: number, group: number, cpuMs = 0): ProcessTimes => ({
  pid,
  parent,
  group,
  cpuMs,
});

describe('the process table', () => {
  test('is read from /proc, whatever a process calls itself', () => {
    const rest = '4194304 100 0 7 0 123 45 900 900 20 0 9 0 5 1000 2000';
    for (const name of ['llama-server', 'a b', '(x) S 1 1', ') R 9 9 9']) {
      expect(parseProcStat(`77 (${name}) S 5 70 70 0 -1 ${rest}`)).toEqual(one(77, 5, 70, 1_680));
    }
  });

  test('leaves out what has gone or is not as it should be', () => {
    for (const stat of ['', '77 (x', '77 (x) S 5', 'x (x) S 5 70 70 0 -1 0 0 0 0 0 1 1']) {
      expect(parseProcStat(stat)).toBeUndefined();
    }
  });

  test('is read from ps in all forms of its time', () => {
    const macOs = '    1     0     1   0:12.34\n  501     1   501 1234:00.50\n';
    expect(parsePs(macOs)).toEqual({
      processes: [one(1, 0, 1, 12_340), one(501, 1, 501, 74_040_500)],
      resolutionMs: 10,
    });
    const posix = '    1     0     1 00:00:12\n  501     1   501 2-03:04:05\n garbage\n';
    expect(parsePs(posix)).toEqual({
      processes: [one(1, 0, 1, 12_000), one(501, 1, 501, (((2 * 24 + 3) * 60 + 4) * 60 + 5) * 1_000)],
      resolutionMs: 1_000,
    });
  });

  test.runIf(process.platform === 'linux')('has this very process, and what it has used', async () => {
    const table = await processTable();
    const { user, system } = process.cpuUsage();
    const found = table?.processes.find(({ pid }) => pid === process.pid);
    expect(found).toMatchObject({ parent: process.ppid });
    expect(Math.abs((found?.cpuMs ?? NaN) - (user + system) / 1_000)).toBeLessThan(1_000);
  });
});

describe('the processes of a child', () => {
  test('are its group and its descendants in other groups, and nobody else', () => {
    const child = one(10, 1, 10);
    const sameGroup = one(11, 1, 10);
    const ownSession = one(12, 10, 12);
    const below = one(13, 12, 12);
    const others = [one(1, 0, 1), one(20, 1, 20), one(21, 20, 20)];
    expect(new Set(familyOf(10, [below, ...others, sameGroup, ownSession, child]))).toEqual(
      new Set([child, sameGroup, ownSession, below]),
    );
    expect(familyOf(30, others)).toEqual([]);
  });

  test('may not form a ring, but a torn reading of the table may', () => {
    expect(familyOf(10, [one(10, 11, 10), one(11, 10, 10)])).toHaveLength(2);
  });
});

describe('processor time', () => {
  /** A child of two processes, one in a session of its own. */
  function rig(resolutionMs = 10) {
    const used = new Map([
      [10, 5_000],
      [12, 0],
    ]);
    const evidence = new CpuEvidence(10, () =>
      Promise.resolve({
        resolutionMs,
        processes: Array.from(used, ([pid, cpuMs]) => one(pid, pid === 10 ? 1 : 10, pid, cpuMs)),
      }),
    );
    const uses = (pid: number, ms: number) => used.set(pid, (used.get(pid) ?? 0) + ms);
    return { evidence, uses, used };
  }

  test('has nothing to compare with at first', async () => {
    const { evidence } = rig();
    expect(await evidence.look(30_000)).toEqual({ kind: 'first' });
    expect(evidence.pids).toEqual([10, 12]);
  });

  test.each([10, 12])('of process %i is progress from 1 % of the time on', async (pid) => {
    const { evidence, uses } = rig();
    await evidence.look(30_000);
    uses(pid, 290);
    expect(await evidence.look(30_000)).toEqual({
      kind: 'none',
      said: 'it used 0.29 s of processor time',
    });
    uses(pid, 10);
    expect(await evidence.look(30_000)).toEqual({ kind: 'progress' });
    expect(await evidence.look(30_000)).toMatchObject({ kind: 'none' });
  });

  test('that answering a look every second costs is no progress, however long that goes on', async () => {
    const { evidence, uses } = rig();
    await evidence.look(1_000);
    for (let second = 1; second <= 600; second += 1) {
      // A millisecond a look, told in steps of ten.
      if (second % 10 === 0) uses(10, 10);
      expect(await evidence.look(second * 1_000)).toMatchObject({ kind: 'none' });
    }
  });

  test('of less than a tenth of a second is no progress, however short the time', async () => {
    const { evidence, uses } = rig();
    await evidence.look(0);
    uses(10, 90);
    expect(await evidence.look(0)).toMatchObject({ kind: 'none' });
    uses(10, 10);
    expect(await evidence.look(0)).toEqual({ kind: 'progress' });
  });

  test('told in whole seconds is no progress by a single one, and adds up over looks', async () => {
    const { evidence, uses } = rig(1_000);
    await evidence.look(0);
    uses(10, 1_000);
    expect(await evidence.look(10_000)).toMatchObject({ kind: 'none' });
    uses(10, 1_000);
    expect(await evidence.look(20_000)).toEqual({ kind: 'progress' });
  });

  test('of a process that began since is progress, and one that ended does not hide it', async () => {
    const { evidence, used } = rig();
    await evidence.look(30_000);
    used.delete(12);
    used.set(10, 4_000);
    expect(await evidence.look(30_000)).toMatchObject({ kind: 'none' });
    used.set(13, 300);
    expect(await evidence.look(30_000)).toEqual({ kind: 'progress' });
    expect(evidence.pids).toEqual([10, 13]);
  });

  test('is unknown where the system does not tell', async () => {
    const evidence = new CpuEvidence(10, () => Promise.resolve(undefined));
    expect(await evidence.look(0)).toEqual({ kind: 'unknown' });
    expect(evidence.pids).toEqual([10]);
  });
});

describe('GPU time', () => {
  const amd = [
    'pos:\t0',
    'drm-driver:\tamdgpu',
    'drm-client-id:\t42',
    'drm-pdev:\t0000:03:00.0',
    'drm-engine-gfx:\t1000 ns',
    'drm-engine-compute:\t25 ns',
    'drm-engine-capacity-compute:\t4',
    'drm-memory-vram:\t77 KiB',
  ].join('\n');

  test('is read per client and engine, and nothing else is', () => {
    expect([...parseFdinfo(amd)]).toEqual([
      ['0000:03:00.0 42 drm-engine-gfx', 1000],
      ['0000:03:00.0 42 drm-engine-compute', 25],
    ]);
    expect(parseFdinfo('pos:\t0\nflags:\t02\n').size).toBe(0);
  });

  test('is read in cycles from drivers that count those', () => {
    const xe =
      'drm-driver: xe\ndrm-client-id: 7\ndrm-pdev: 0000:00:02.0\ndrm-cycles-rcs: 28257900\ndrm-total-cycles-rcs: 7655183225\n';
    expect([...parseFdinfo(xe)]).toEqual([['0000:00:02.0 7 drm-cycles-rcs', 28257900]]);
  });

  test('is progress when any of it advances', async () => {
    let use = new Map([
      ['a', 5],
      ['b', 5],
    ]);
    const asked: (readonly number[])[] = [];
    const evidence = new GpuTimeEvidence(
      () => [10, 12],
      (pids) => {
        asked.push(pids);
        return Promise.resolve(use);
      },
    );
    expect(await evidence.look()).toEqual({ kind: 'first' });
    expect(await evidence.look()).toEqual({ kind: 'none', said: 'it used no GPU time' });
    use = new Map([
      ['a', 5],
      ['b', 6],
    ]);
    expect(await evidence.look()).toEqual({ kind: 'progress' });
    use = new Map([
      ['a', 5],
      ['c', 1],
    ]);
    expect(await evidence.look()).toEqual({ kind: 'progress' });
    use = new Map();
    expect(await evidence.look()).toEqual({ kind: 'unknown' });
    expect(new Set(asked.flat())).toEqual(new Set([10, 12]));
  });

  test('of a process without a GPU is unknown', async () => {
    expect(await new GpuTimeEvidence(() => [process.pid, 999_999_999]).look()).toEqual({ kind: 'unknown' });
  });
});

describe('nvidia-smi', () => {
  const table = (pid: number, sm: string) =>
    [
      '# gpu         pid   type     sm    mem    enc    dec    jpg    ofa    command ',
      '# Idx           #    C/G      %      %      %      %      %      %    name ',
      `    0       ${pid}     C     ${sm}      -      -      -      -      -    llama-server   `,
      '    1          -     -      -      -      -      -      -      -    -              ',
      '',
    ].join('\n');

  /** A program of that name which leaves a mark a run. */
  function fakeSmi(script: string) {
    const directory = tempDir();
    const program = join(directory, 'nvidia-smi');
    const runs = join(directory, 'runs');
    writeFileSync(runs, '');
    writeFileSync(program, `#!/bin/sh\necho "$@" >> '${runs}'\n${script}\n`);
    chmodSync(program, 0o755);
    return { program, runs };
  }

  test('is read by the names of its columns', () => {
    expect([...parsePmon(table(77, '45'))]).toEqual([[77, 45]]);
    expect([...parsePmon(table(77, '-'))]).toEqual([[77, 0]]);
    const older =
      '# gpu        pid  type    sm   mem   enc   dec   command\n    0       77     C     0    12     -     -   x\n';
    expect([...parsePmon(older)]).toEqual([[77, 12]]);
    expect(parsePmon('').size).toBe(0);
    expect(parsePmon('# gpu         pid   type     sm\n# Idx           #    C/G      %\n').size).toBe(0);
  });

  test('tells that a child is at work, or is not, or is on no GPU', async () => {
    const { program } = fakeSmi(`cat <<'END'\n${table(77, '45')}\n    0  78  C  -  -  -  -  -  -  x\nEND`);
    const smi = new NvidiaSmi(program);
    const look = (...pids: number[]) => new NvidiaEvidence(() => pids, smi).look();
    expect(await look(1, 77)).toEqual({ kind: 'progress' });
    expect(await look(78)).toEqual({ kind: 'none', said: 'nvidia-smi saw it use no GPU' });
    expect(await look(1)).toEqual({ kind: 'unknown' });
  });

  test('is run once for all who ask at a time', async () => {
    const { program, runs } = fakeSmi('echo');
    const smi = new NvidiaSmi(program);
    await Promise.all([smi.use(), smi.use(), smi.use()]);
    await smi.use();
    expect(linesOf(runs)).toEqual(['pmon -c 1 -s u', 'pmon -c 1 -s u']);
  });

  test('that fails is run again after some minutes, and no earlier', async () => {
    const { program, runs } = fakeSmi(`test -e "$0.works" || exit 15\ncat <<'END'\n${table(77, '45')}\nEND`);
    const clock = new StandingClock();
    const smi = new NvidiaSmi(program, { clock });
    expect(await smi.use()).toBeUndefined();
    writeFileSync(`${program}.works`, '');
    await clock.passes(60_000);
    expect(await smi.use()).toBeUndefined();
    expect(linesOf(runs)).toHaveLength(1);
    await clock.passes(5 * 60_000);
    expect([...((await smi.use()) ?? [])]).toEqual([[77, 45]]);
    expect(linesOf(runs)).toHaveLength(2);
  });

  test.each(['is not there', 'must not be run'])('that %s is not tried again', async (how) => {
    const { program, runs } = fakeSmi('echo');
    if (how === 'is not there') renameSync(program, `${program}.bak`);
    else chmodSync(program, 0o644);
    const clock = new StandingClock();
    const smi = new NvidiaSmi(program, { clock });
    expect(await smi.use()).toBeUndefined();
    if (how === 'is not there') renameSync(`${program}.bak`, program);
    else chmodSync(program, 0o755);
    await clock.passes(24 * 60 * 60_000);
    expect(await smi.use()).toBeUndefined();
    expect(linesOf(runs)).toEqual([]);
  });

  test('is ended when it does not answer in time, and may be asked again', async () => {
    const { program, runs } = fakeSmi('exec sleep 60');
    const smi = new NvidiaSmi(program, { timeoutMs: 500 });
    expect(await smi.use()).toBeUndefined();
    expect(await smi.use()).toBeUndefined();
    expect(linesOf(runs)).toHaveLength(2);
  });
});

function linesOf(file: string): string[] {
  return readFileSync(file, 'utf8').split('\n').filter(Boolean);
}
