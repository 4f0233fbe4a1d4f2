import { lstat } from 'node:fs/promises';
import { RouterError } from '../../errors.js';
import type { Model } from '../model.js';
import { Source } from '../source.js';
import { unlessNowhere } from './directory.js';
import { FileUsers } from './file-users.js';
import { planFlatRemoval } from './flat-removal.js';
import { planHubRemoval } from './hub-removal.js';
import { escapeOddBytes } from './odd-names.js';
import { assertChangeable, Removal, type Removed } from './removal.js';
import { notDownloaded, notRemovable, type RemovalPlan } from './removal-plan.js';

export interface CacheDirectories {
  readonly hub: string | undefined;
  readonly flat: readonly string[];
}

/** How long the disks of the other models may take to tell whether these load the files. */
const patienceMs = 10_000;
/** How long all looking before a removal may take; a cache that takes longer is a network's that is gone. */
const planMs = 30_000;

/** What is to go from one cache, and the companions that are to go with it. */
interface Step {
  readonly plan: RemovalPlan;
  readonly companions: readonly Buffer[];
}

/**
 * Looks what is to be removed of `model` from all caches that hold it, so that its id is gone with it, and whether that
 * may be: its files, the projector and draft that no other model takes, and what is of no use without them. Nothing
 * outside the caches is ever touched, and nothing a link leads to but the blobs of its repository.
 *
 * @param others the other models of the catalog, hidden ones too; `model` itself may be among them
 * @returns removes all that. One at a time, at once, and not while its repository is being downloaded; throws RouterError
 *   `remove_failed` when a file cannot be removed, in which case the message names it and what was removed before
 * @throws RouterError `model_not_removable`: no cache holds it, no download left a file of it there, or another model
 *   loads its files; `remove_failed`: a cache cannot be read or changed, or does not answer
 */
export async function planRemoval(
  model: Model,
  caches: CacheDirectories,
  others: readonly Model[],
): Promise<() => Promise<Removed>> {
  if (!model.canRemove) throw notRemovable(model.id, ' (not from cache)');
  const looking = new Source(() => planSteps(model, caches, others), planMs);
  const { value: steps } = await looking.read().catch((error: unknown) => {
    throw error instanceof RouterError ? error : failure(model, error, sumOf([]));
  });
  if (steps === undefined) {
    throw failure(model, new Error('the cache does not answer; try again later'), sumOf([]));
  }
  return () => carryOut(model, steps);
}

async function planSteps(model: Model, caches: CacheDirectories, others: readonly Model[]): Promise<Step[]> {
  const plans = await plansOf(model, caches);
  const users = await usersOf(model, others);
  const steps = [];
  for (const plan of plans) {
    await assertUnused(model, plan, users);
    const companions = await unused(plan.companions, users);
    await assertChangeable(plan.directories);
    steps.push({ plan, companions });
  }
  return steps;
}

async function carryOut(model: Model, steps: readonly Step[]): Promise<Removed> {
  const removals: Removal[] = [];
  try {
    for (const { plan, companions } of steps) {
      const removal = new Removal(plan.root);
      removals.push(removal);
      await plan.remove(removal, companions);
    }
    return sumOf(removals);
  } catch (error) {
    throw failure(model, error, sumOf(removals));
  }
}

async function plansOf(model: Model, { hub, flat }: CacheDirectories): Promise<RemovalPlan[]> {
  const found = [
    hub === undefined ? undefined : await planHubRemoval(hub, model),
    ...(await Promise.all(flat.map((directory) => planFlatRemoval(directory, model.id)))),
  ];
  const plans = found.filter((plan) => plan !== undefined);
  const { file } = model;
  if (plans.length === 0 && file !== undefined && (await unlessNowhere(() => lstat(file))) !== undefined) {
    throw notDownloaded(model.id, file);
  }
  return plans;
}

async function usersOf(model: Model, others: readonly Model[]): Promise<FileUsers> {
  const source = new Source(() => FileUsers.of(others.filter(({ id }) => id !== model.id)), patienceMs);
  const { value } = await source.read();
  if (value !== undefined) return value;
  throw notRemovable(
    model.id,
    ': a disk does not answer, so that other models might load its files; try again later',
  );
}

async function assertUnused(model: Model, plan: RemovalPlan, users: FileUsers): Promise<void> {
  for (const file of plan.files) {
    const user = (await users.idsOf(file)).find((id) => !plan.hasOwnFiles(id));
    if (user !== undefined) throw notRemovable(model.id, `: '${user}' loads '${escapeOddBytes(file)}', too`);
  }
}

async function unused(files: readonly Buffer[], users: FileUsers): Promise<Buffer[]> {
  const free = [];
  for (const file of files) if ((await users.idsOf(file)).length === 0) free.push(file);
  return free;
}

function sumOf(removals: readonly Removal[]): Removed {
  const outcomes = removals.map(({ outcome }) => outcome);
  return {
    removed: outcomes.flatMap(({ removed }) => removed),
    freedBytes: outcomes.reduce((sum, { freedBytes }) => sum + freedBytes, 0),
  };
}

function failure({ id }: Model, cause: unknown, { removed }: Removed): RouterError {
  const why = cause instanceof Error ? cause.message : String(cause);
  const before =
    removed.length === 0
      ? 'nothing was removed'
      : `already removed: ${removed.map((path) => `'${path}'`).join(', ')}`;
  return new RouterError('remove_failed', `model name=${id} cannot be removed: ${why}; ${before}`, {
    model: id,
    cause,
  });
}
