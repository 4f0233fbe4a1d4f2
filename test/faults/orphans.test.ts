import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { fakeLlamaServer, writeFakeModel, type FakeBehaviour } from '../helpers/fake-llama-server.js';
import { newJournal, type Journal } from '../helpers/journal.js';
import { endless, writeModels } from '../helpers/known-answer-models.js';
import {
  alive,
  canListProcesses,
  descendants,
  describeProcess,
  sigkill,
  type ProcessInfo,
} from '../helpers/processes.js';
import { jsonPost, rawExchange, type RawExchange } from '../helpers/raw-http.js';
import { childrenOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

/** "Within a few seconds". */
const graceMs = 5_000;

/** Shared, so that the fake is asked for its options once and not by every supervisor. */
const cacheHome = tempDir();

type Situation = 'idle with a loaded model' | 'loading' | 'streaming';

/** A wrapper that starts llama-server in a session of its own, and what follows keeps the shell from becoming it. */
function writeWrapper(): string {
  const path = join(tempDir(), 'wrapper');
  writeFileSync(path, `#!/bin/sh\nsetsid '${fakeLlamaServer}' "$@"\nexit $?\n`, { mode: 0o755 });
  return path;
}

/** A process and its start, in ticks since the boot. */
interface Sleeper {
  readonly pid: number;
  readonly start: string;
}

interface Family {
  readonly supervisor: SupervisorProcess;
  readonly journal: Journal;
  /** Every process below the supervisor: guard, child, grandchild. */
  readonly members: readonly ProcessInfo[];
  readonly guard: ProcessInfo;
}

/**
 * A supervisor in one situation, on a child that does not mind SIGTERM and has started a process in its group that does
 * not mind it either.
 */
async function familyThatIs(
  situation: Situation,
  {
    behaviour = {},
    env = {},
    llamaServer = fakeLlamaServer,
  }: { behaviour?: FakeBehaviour; env?: Record<string, string>; llamaServer?: string } = {},
): Promise<Family> {
  const models = tempDir();
  writeFakeModel(models, 'alpha', {
    forkGrandchild: { ignoreSigterm: true },
    ignoreSigterm: true,
    ...(situation === 'loading' ? { neverReady: true } : {}),
    ...behaviour,
  });
  const journal = newJournal();
  const supervisor = await startSupervisor({
    args: ['--models-dir', models, '--drain-timeout', '0.3'],
    env: { ...journal.env, ...env },
    cacheHome,
    llamaServer,
  });
  const exchange = chat(supervisor, situation === 'streaming' ? -1 : 1);
  await eventually(`the supervisor is ${situation}`, () => {
    if (situation === 'loading') return journal.of('grandchild').length === 1;
    if (situation === 'streaming') return exchange.received().length > 0;
    return journal.of('answered').some(({ url }) => url === '/v1/chat/completions');
  });

  const members = descendants(supervisor.pid);
  const guard = members.find(({ command }) => command.includes('llama-supervisor-guard'));
  const known = [...journal.of('start').map(({ pid }) => pid), ...grandchildren(journal)];
  expect(members.map(({ pid }) => pid)).toEqual(expect.arrayContaining(known));
  if (guard === undefined) throw new Error(`no guard among:\n${members.map(describeProcess).join('\n')}`);
  return { supervisor, journal, members, guard };
}

function chat({ url }: SupervisorProcess, words: number, model = 'alpha'): RawExchange {
  const exchange = rawExchange(
    `${url}/v1/chat/completions`,
    jsonPost({
      model,
      stream: true,
      max_tokens: words,
      messages: [{ role: 'user', content: 'How far can you count?' }],
    }),
  );
  atEndOfTest(() => exchange.abort());
  return exchange;
}

function grandchildren(journal: Journal): number[] {
  return journal.of('grandchild').map(({ grandchildPid }) => grandchildPid);
}

/** Nothing that the supervisor started, now or later, may outlive it for longer than the grace. */
async function expectNothingLeft({ supervisor }: Family, members: readonly ProcessInfo[]): Promise<void> {
  await eventually(
    'no process is left',
    () => {
      const left = [...members.filter(({ pid }) => alive(pid)), ...supervisor.family()];
      if (left.length > 0) throw new Error(left.map(describeProcess).join('\n'));
      return true;
    },
    { deadlineMs: graceMs },
  );
}

const hasSetsid = spawnSync('setsid', ['true']).status === 0;
const noSetsid = hasSetsid ? '' : ' (skipped: no setsid here)';

const inProc = canListProcesses ? '' : ' (skipped: processes are found in /proc, which is not here)';

describe.skipIf(!canListProcesses)(`nothing is left behind${inProc}`, () => {
  const situations: Situation[] = ['idle with a loaded model', 'loading', 'streaming'];
  // What ends a supervisor from outside, and as what a crash of Node itself ends.
  const endings = ['SIGTERM', 'SIGINT', 'SIGKILL', 'SIGABRT'] as const;

  describe.each(situations)('by a supervisor that is %s', (situation) => {
    test.each(endings)('and is ended by %s', async (signal) => {
      const family = await familyThatIs(situation);
      const exit = await family.supervisor.stop(signal);
      await expectNothingLeft(family, family.members);
      const inOrder = signal === 'SIGTERM' || signal === 'SIGINT';
      expect(exit).toEqual(inOrder ? { code: 0, signal: null } : { code: null, signal });
    });

    test('and is ended by SIGINT twice', async () => {
      // What takes its time after the first: a stop for the loaded model, the drain for the stream.
      const family = await familyThatIs(situation, { behaviour: { stopMs: 60_000 } });
      const { supervisor } = family;
      process.kill(supervisor.pid, 'SIGINT');
      await eventually('the first is heard', () => supervisor.output().includes('once more ends at once'));
      await supervisor.stop('SIGINT');
      await expectNothingLeft(family, family.members);
    });
  });
});

describe.skipIf(!canListProcesses)(`the orphan guard${inProc}`, () => {
  test('that was killed from outside is replaced by one that knows what to guard', async () => {
    const family = await familyThatIs('loading');
    const { supervisor, guard } = family;
    sigkill(guard.pid);
    const second = await eventually('another guard runs', () =>
      descendants(supervisor.pid).find(
        ({ pid, command }) => pid !== guard.pid && command.includes('llama-supervisor-guard'),
      ),
    );
    await eventually('it is told', () =>
      supervisor.output().includes('the orphan guard was ended from outside; starting another'),
    );
    await supervisor.kill();
    await expectNothingLeft(family, [...family.members, second]);
  });

  test('is enough alone, where no parent-death signal can be set', async () => {
    const { journal, ...family } = await familyThatIs('loading', { env: { PATH: pathWithoutSetpriv() } });
    const { supervisor } = family;
    await supervisor.kill();
    await expectNothingLeft({ journal, ...family }, family.members);
  });

  test.skipIf(!hasSetsid)(
    `reaches a frozen llama-server that a wrapper has given a session of its own${noSetsid}`,
    async () => {
      const family = await familyThatIs('idle with a loaded model', { llamaServer: writeWrapper() });
      const [{ pid, pgid } = { pid: NaN, pgid: NaN }] = family.journal.of('start');
      expect(pgid).toBe(pid);
      // What one knows is seen of a guard that begins: it is told by its arguments.
      const guard = await eventually('a guard knows of it', () => {
        const current = descendants(family.supervisor.pid).find(({ command }) =>
          command.includes('llama-supervisor-guard'),
        );
        if (current?.command.includes(` ${pid}@`)) return current;
        if (current) sigkill(current.pid);
        return undefined;
      });
      // Otherwise it would notice that its standard input has ended.
      process.kill(pid, 'SIGSTOP');
      atEndOfTest(() => [pid, ...grandchildren(family.journal)].forEach(sigkill));
      await family.supervisor.kill();
      await expectNothingLeft(family, [...family.members, guard]);
    },
  );

  test('kills a process by number and start, and no stranger that was given the number', async () => {
    const sleepers = [1, 2, 3].map(() => {
      const { pid = NaN } = spawn('sleep', ['300'], { detached: true, stdio: 'ignore' });
      atEndOfTest(() => sigkill(pid));
      return {
        pid,
        start: execFileSync('cut', ['-d', ' ', '-f', '22', `/proc/${pid}/stat`], { encoding: 'utf8' }).trim(),
      };
    });
    const [own, stranger, released] = sleepers as [Sleeper, Sleeper, Sleeper];
    const guard = new OrphanGuard(pino({ enabled: false }));
    guard.addProcess(stranger.pid, String(Number(stranger.start) - 1));
    guard.addProcess(released.pid, released.start);
    guard.addProcess(own.pid, own.start);
    guard.removeProcess(released.pid, released.start);
    const guardPid = guard.pid ?? NaN;
    guard.close();
    await eventually('the guard has ended', () => !alive(guardPid), { deadlineMs: graceMs });
    expect(sleepers.map(({ pid }) => alive(pid))).toEqual([false, true, true]);
  });

  test('does not mind the signals that end a terminal session', async () => {
    const family = await familyThatIs('idle with a loaded model');
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const) {
      process.kill(family.guard.pid, signal);
    }
    await family.supervisor.kill();
    await expectNothingLeft(family, family.members);
    expect(family.supervisor.output()).not.toContain('ended from outside');
  });
});

const canSetParentDeath =
  canListProcesses && spawnSync('setpriv', ['--pdeathsig', 'KILL', '--', 'true']).status === 0;
const noSetpriv = canSetParentDeath ? '' : ' (skipped: no setpriv with --pdeathsig here)';

test.skipIf(!canSetParentDeath)(
  `the parent-death signal alone ends a loading child when guard and supervisor are killed together${noSetpriv}`,
  async () => {
    const { supervisor, guard, journal } = await familyThatIs('loading', {
      behaviour: { forkGrandchild: { ignoreSigterm: false } },
    });
    // Stopped first, so that it cannot start another guard in between.
    process.kill(supervisor.pid, 'SIGSTOP');
    sigkill(guard.pid);
    await supervisor.kill();
    const child = journal.of('start')[0]?.pid ?? NaN;
    await eventually('the child has ended', () => !alive(child), { deadlineMs: graceMs });
    // The guard was there for these; without it nobody but this test ends them.
    for (const pid of grandchildren(journal)) sigkill(pid);
  },
);

test.skipIf(!canListProcesses)(
  `a real llama-server that streams does not outlive a supervisor ended by SIGKILL${inProc}`,
  async () => {
    const models = await writeModels({ lap: endless() });
    const supervisor = await startRealSupervisor({ args: ['--models-dir', models, '--ctx-size', '4096'] });
    const exchange = chat(supervisor, -1, 'lap');
    await eventually('the stream flows', () => exchange.received().length > 0, { deadlineMs: 30_000 });
    const members = descendants(supervisor.pid);
    expect(childrenOf(supervisor)).toHaveLength(1);
    await supervisor.kill();
    await eventually('no process is left', () => members.every(({ pid }) => !alive(pid)), {
      deadlineMs: graceMs,
    });
    expect((await exchange.ended).complete).toBe(false);
  },
);

/** A PATH with what the fake needs and without setpriv. */
function pathWithoutSetpriv(): string {
  const directory = join(tempDir(), 'bin');
  mkdirSync(directory);
  symlinkSync(process.execPath, join(directory, 'node'));
  for (const name of ['sh', 'sleep']) {
    const path = execFileSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' }).trim();
    symlinkSync(path, join(directory, name));
  }
  return directory;
}
