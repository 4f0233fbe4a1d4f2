import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { killAccount, KernelKills, type KillWatch } from '../../../src/instance/kernel-kills.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { tempDir } from '../../helpers/temp-dir.js';

/** What the kernel shows, as files below a directory. */
function kernelShows(files: Readonly<Record<string, string>>) {
  const root = tempDir();
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  const account = killAccount({ proc: join(root, 'proc'), cgroup: join(root, 'cgroup') });
  return { root, account, file: account?.file.slice(root.length + 1) };
}

const events = (kills: number): string =>
  `low 0\nhigh 0\nmax 31\noom 2\noom_kill ${kills}\noom_group_kill 0\n`;
const control = (kills: number): string => `oom_kill_disable 0\nunder_oom 0\noom_kill ${kills}\n`;
const vmstat = (kills: number): string => `nr_free_pages 5783122\noom_kill ${kills}\nnuma_hit 12\n`;

const v1 = '9:name=systemd:/\n4:memory:/user/me\n3:cpuset:/\n0::/\n';
const v2 = '0::/system.slice/llama-supervisor.service\n';

describe('the account of kills is', () => {
  it.each([
    [
      'that of our own group (v2)',
      {
        'proc/self/cgroup': v2,
        'cgroup/system.slice/llama-supervisor.service/memory.events': events(3),
        'proc/vmstat': vmstat(9),
      },
      'cgroup/system.slice/llama-supervisor.service/memory.events',
    ],
    [
      'that of our own group (v1), beside a second hierarchy without memory',
      {
        'proc/self/cgroup': v1,
        'cgroup/memory/user/me/memory.oom_control': control(3),
        'cgroup/memory/memory.oom_control': control(8),
      },
      'cgroup/memory/user/me/memory.oom_control',
    ],
    [
      'that of our own group where controllers share a hierarchy',
      { 'proc/self/cgroup': '4:cpu,memory,pids:/a:b\n', 'cgroup/memory/a:b/memory.oom_control': control(3) },
      'cgroup/memory/a:b/memory.oom_control',
    ],
    [
      'in a container what it sees as the root (v1)',
      { 'proc/self/cgroup': '4:memory:/docker/12ab\n', 'cgroup/memory/memory.oom_control': control(3) },
      'cgroup/memory/memory.oom_control',
    ],
    [
      'in a container what it sees as the root (v2)',
      { 'proc/self/cgroup': '0::/../12ab\n', 'cgroup/memory.events': events(3) },
      'cgroup/memory.events',
    ],
    [
      "the machine's, where no group keeps one",
      { 'proc/self/cgroup': '0::/\n', 'proc/vmstat': vmstat(3) },
      'proc/vmstat',
    ],
    [
      "the machine's, where the group's is too old to count",
      {
        'proc/self/cgroup': v1,
        'cgroup/memory/user/me/memory.oom_control': 'oom_kill_disable 0\nunder_oom 0\n',
        'proc/vmstat': vmstat(3),
      },
      'proc/vmstat',
    ],
  ])('%s', (_, files, expected) => {
    const { account, file } = kernelShows(files);
    expect(file).toBe(expected);
    expect(account?.count()).toBe(3);
  });

  it('nowhere on a system that keeps none, and then no end is put down to the kernel', () => {
    const { account } = kernelShows({});
    expect(account).toBeUndefined();
    const watch = watchOf(new KernelKills(account));
    expect(watch.claim()).toBeUndefined();
  });

  it.runIf(process.platform === 'linux')('there on this machine, and counts', () => {
    expect(killAccount()?.count()).toBeGreaterThanOrEqual(0);
  });
});

/** Kills by a kernel that is the test's. */
function rig(count = 0) {
  const kernel: { count: number | undefined; reads: number } = { count, reads: 0 };
  const account = {
    file: '/the/account',
    count: () => {
      kernel.reads += 1;
      return kernel.count;
    },
  };
  return { kernel, kills: new KernelKills(account) };
}

/** A child that is started now. */
function watchOf(kills: KernelKills): KillWatch {
  const watch = kills.watch();
  atEndOfTest(() => watch.end());
  return watch;
}

/** Long enough for what the kernel has done before to have been done to others. Milliseconds. */
const longMs = 60_000;

describe('a child that SIGKILL has ended', () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it('was killed by the kernel when the count has risen since its start', () => {
    const { kernel, kills } = rig(41);
    const watch = watchOf(kills);
    kernel.count = 42;
    expect(watch.claim()).toBe('the kernel killed it because memory ran out (oom_kill 42 in /the/account)');
  });

  it('was not when it has not, however often the kernel has killed before', () => {
    const { kills } = rig(41);
    expect(watchOf(kills).claim()).toBeUndefined();
  });

  it('was killed by the kernel however long it has run, also when that is noticed some seconds later', () => {
    const { kernel, kills } = rig();
    const watch = watchOf(kills);
    vi.advanceTimersByTime(24 * longMs);
    for (let seconds = 0; seconds < 10; seconds += 1) {
      // Somewhere between two looks at the count, or across one.
      vi.advanceTimersByTime(longMs + 1_000);
      kernel.count = (kernel.count ?? 0) + 1;
      vi.advanceTimersByTime(9_000);
      expect(watch.claim()).toContain(`oom_kill ${kernel.count} `);
    }
  });

  it('by hand is not put down to what the kernel did to somebody else long before', () => {
    const { kernel, kills } = rig();
    const watch = watchOf(kills);
    // A stranger in our group: nobody claims it.
    kernel.count = 1;
    vi.advanceTimersByTime(longMs);
    expect(watch.claim()).toBeUndefined();
  });

  it('was killed by the kernel however late its end is looked into', () => {
    const { kernel, kills } = rig();
    const other = watchOf(kills);
    const watch = kills.watch();
    vi.advanceTimersByTime(longMs);
    kernel.count = 1;
    watch.end();
    vi.advanceTimersByTime(longMs);
    expect(other.claim()).toBeUndefined();
    expect(watch.claim()).toContain('oom_kill 1 ');
  });

  it('is not taken for one that the kernel has killed when another child was', () => {
    const { kernel, kills } = rig();
    const [first, second] = [watchOf(kills), watchOf(kills)];
    kernel.count = 1;
    expect(first.claim()).toBeDefined();
    expect(second.claim()).toBeUndefined();
  });

  it('was killed by the kernel also when an earlier kill is claimed only after its start', () => {
    const { kernel, kills } = rig();
    const earlier = watchOf(kills);
    kernel.count = 1;
    const later = watchOf(kills);
    kernel.count = 2;
    expect(earlier.claim()).toContain('oom_kill 1 ');
    expect(later.claim()).toContain('oom_kill 2 ');
  });

  it('is left alone when the account could not be read at its start or its end', () => {
    const { kernel, kills } = rig();
    kernel.count = undefined;
    const unread = watchOf(kills);
    kernel.count = 5;
    expect(unread.claim()).toBeUndefined();
    const watch = watchOf(kills);
    kernel.count = undefined;
    expect(watch.claim()).toBeUndefined();
  });

  it('was watched as long as it ran, and nothing is read when none runs', () => {
    const { kernel, kills } = rig();
    const [first, second] = [kills.watch(), kills.watch()];
    first.end();
    first.end();
    const before = kernel.reads;
    vi.advanceTimersByTime(longMs);
    expect(kernel.reads).toBeGreaterThan(before);
    second.end();
    expect(vi.getTimerCount()).toBe(0);
    const third = kills.watch();
    expect(vi.getTimerCount()).toBe(1);
    third.end();
  });

  it('is never one of more than the kernel has killed, and all that it has killed are known', () => {
    // Children start, and are killed: by the kernel, or by hand. Each end is looked into some time later.
    const step = fc.record({
      what: fc.constantFrom('start', 'kernel kills', 'killed by hand', 'noticed', 'time passes'),
      which: fc.nat(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const { kernel, kills } = rig();
        const running: KillWatch[] = [];
        const dead: KillWatch[] = [];
        let named = 0;
        const notice = (at: number) => {
          for (const watch of dead.splice(at, 1)) named += watch.claim() === undefined ? 0 : 1;
        };
        let killed = 0;
        for (const { what, which } of steps) {
          const at = which % Math.max(1, what === 'noticed' ? dead.length : running.length);
          if (what === 'start') running.push(kills.watch());
          else if (what === 'noticed') notice(at);
          else if (what === 'time passes') vi.advanceTimersByTime(which % longMs);
          else {
            for (const watch of running.splice(at, 1)) {
              if (what === 'kernel kills') killed += 1;
              kernel.count = killed;
              watch.end();
              dead.push(watch);
            }
          }
          expect(named).toBeLessThanOrEqual(killed);
        }
        while (dead.length > 0) notice(0);
        for (const watch of running) watch.end();
        expect(named).toBe(killed);
      }),
    );
  });
});
