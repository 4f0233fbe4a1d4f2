import { symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { findTrees } from '../../../../src/models/watching/watch-scope.js';
import { NET_MS, setTrap } from '../../../../src/models/watching/watch-trap.js';
import { atEndOfTest } from '../../../helpers/cleanup.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile } from '../tree.js';

/** Whether a trap in the models directory 'dir', in which nothing happens, springs within a minute, by the fake clock. */
async function springsByItself(dir: string, { usePolling = false } = {}): Promise<boolean> {
  const scope = await findTrees({ hubCaches: [], flatCaches: [], modelsDirs: [dir], files: [] });
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  atEndOfTest(() => void vi.useRealTimers());
  const trap = await setTrap(scope, { usePolling, signal: new AbortController().signal });
  let isSprung = false;
  void trap.sprung.then(() => (isSprung = true));
  await vi.advanceTimersByTimeAsync(NET_MS - 1);
  expect(isSprung).toBe(false);
  await vi.advanceTimersByTimeAsync(1);
  await trap.close();
  return isSprung;
}

describe('a trap in which nothing happens', () => {
  it('springs within a minute when polling', async () => {
    expect(NET_MS).toBeLessThan(60_000);
    expect(await springsByItself(tempDir(), { usePolling: true })).toBe(true);
  });

  it('springs within a minute when there are more links than are looked at', async () => {
    const [dir, far] = [tempDir(), tempDir()];
    const file = writeFile(join(far, 'a.gguf'));
    for (let number = 0; number < 1_001; number += 1) symlinkSync(file, join(dir, `${number}.gguf`));
    expect(await springsByItself(dir)).toBe(true);
  });

  it('does not spring when nothing can be missed', async () => {
    const [dir, far] = [tempDir(), tempDir()];
    symlinkSync(far, join(dir, 'sub'));
    symlinkSync(writeFile(join(far, 'a.gguf')), join(dir, 'a.gguf'));
    expect(await springsByItself(dir)).toBe(false);
  });
});
