import { readFile, readdir, readlink } from 'node:fs/promises';
import type { Evidence, Finding } from './evidence.js';

/** Time or cycles per client and engine of a GPU, so far. */
export type EngineUse = ReadonlyMap<string, number>;

/**
 * The GPU time of a child's processes as the kernel counts it for each file that is open on a GPU: amdgpu, i915, xe and
 * others; not NVIDIA's driver.
 *
 * @see https://www.kernel.org/doc/html/latest/gpu/drm-usage-stats.html
 */
export class GpuTimeEvidence implements Evidence {
  readonly #pids: () => readonly number[];
  readonly #engineUse: (pids: readonly number[]) => Promise<EngineUse>;
  #before: EngineUse | undefined;

  constructor(pids: () => readonly number[], use = engineUse) {
    this.#pids = pids;
    this.#engineUse = use;
  }

  async look(): Promise<Finding> {
    const now = await this.#engineUse(this.#pids());
    const before = this.#before;
    this.#before = now;
    if (now.size === 0) return { kind: 'unknown' };
    if (!before) return { kind: 'first' };
    // Nothing of ours has the child use its GPU, so that the least use is work.
    for (const [engine, used] of now) if (used > (before.get(engine) ?? 0)) return { kind: 'progress' };
    return { kind: 'none', said: 'it used no GPU time' };
  }
}

/** What the processes have used of GPUs; empty where the kernel does not tell. Never rejects. */
export async function engineUse(pids: readonly number[]): Promise<EngineUse> {
  const use = new Map<string, number>();
  if (process.platform !== 'linux') return use;
  for (const pid of pids) {
    const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
    for (const descriptor of descriptors) {
      const file = await readlink(`/proc/${pid}/fd/${descriptor}`).catch(() => '');
      if (!/^\/dev\/(?:dri|accel)\//.test(file)) continue;
      const info = await readFile(`/proc/${pid}/fdinfo/${descriptor}`, 'latin1').catch(() => '');
      for (const [engine, used] of parseFdinfo(info)) use.set(engine, used);
    }
  }
  return use;
}

/**
 * Reads `drm-engine-render: 9288864723 ns` and, where a driver counts so, `drm-cycles-rcs: 28257900`. Descriptors that
 * are copies of one another have the same client, and must not count twice.
 */
export function parseFdinfo(info: string): EngineUse {
  const field = (name: string): string => new RegExp(`^${name}:\\s*(\\S+)`, 'm').exec(info)?.[1] ?? '';
  const client = `${field('drm-pdev')} ${field('drm-client-id')}`;
  const engines = info.matchAll(/^(drm-(?:engine|cycles)-(?!capacity-)\S+):\s*(\d+)/gm);
  return new Map(Array.from(engines, ([, engine = '', used]) => [`${client} ${engine}`, Number(used)]));
}
