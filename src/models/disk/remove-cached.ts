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
import { notRemovable, type RemovalPlan } from './removal-plan.js';

export interface CacheDirectories {
  readonly hub: string | undefined;
  readonly flat: readonly string[];
}

/** How long the disks of the other models may take to tell whether these load the files. */
const patienceMs = 10_000;

/**
 * Removes `model` from all caches that hold it, so that its id is gone with it: its files, the projector and draft that
 * no other model takes, and what is of no use without them. Nothing outside the caches is touched, and nothing a
 * link leads to but the blobs of its repository. One at a time, and not while its repository is being downloaded.
 *
 * @param others the other models of the catalog, hidden ones too; `model` itself may be among them
 * @throws RouterError `model_not_removable`, and nothing was removed: no cache holds it, or another model loads its
 *   files; `internal`: a file cannot be removed, in which case the message names it and what was removed before
 */
export async function removeFromCache(
  model: Model,
  caches: CacheDirectories,
  others: readonly Model[],
): Promise<Removed> {
  if (!model.canRemove) throw notRemovable(model.id, ' (not from cache)');
  const removals: Removal[] = [];
  try {
    const plans = await planRemoval(model, caches);
    const users = await usersOf(model, others);
    const steps = [];
    for (const plan of plans) {
      await assertUnused(model, plan, users);
      const companions = await unused(plan.companions, users);
      await assertChangeable(plan.directories);
      steps.push({ plan, companions });
    }
    for (const { plan, companions } of steps) {
      const removal = new Removal(plan.root);
      removals.push(removal);
      await plan.remove(removal, companions);
    }
    return sumOf(removals);
  } catch (error) {
    throw error instanceof RouterError ? error : failure(model, error, sumOf(removals));
  }
}

async function planRemoval(model: Model, { hub, flat }: CacheDirectories): Promise<RemovalPlan[]> {
  const found = [
    hub === undefined ? undefined : await planHubRemoval(hub, model),
    ...(await Promise.all(flat.map((directory) => planFlatRemoval(directory, model.id)))),
  ];
  const plans = found.filter((plan) => plan !== undefined);
  const { file } = model;
  if (plans.length === 0 && file !== undefined && (await unlessNowhere(() => lstat(file))) !== undefined) {
    throw notRemovable(model.id, `: no download left '${file}' in the cache; remove it yourself`);
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
