import type { Settings } from '../config/settings.js';
import type { Endpoint } from '../http/listening.js';
import type { Logger } from '../observe/log.js';
import type { Scheduler } from '../scheduler/scheduler.js';
import type { Launcher } from './launcher.js';
import {
  diskPatienceMs,
  isExpected,
  LoadedModels,
  nothingLoaded,
  type AbsentModel,
  type LoadedList,
  type RestoredList,
} from './loaded-models.js';
import { loadedModelsFile, readOrSetAside, writeLoadedModels } from './loaded-models-file.js';
import type { OwnLoads } from './own-loads.js';

/** What cannot be read now may be read later. */
const readAgainMs = 5_000;

export interface KeepLoadedOptions {
  readonly env: NodeJS.ProcessEnv;
  readonly settings: Settings;
  /** Where it listens. */
  readonly main: Endpoint;
  readonly launcher: Launcher;
  readonly scheduler: Scheduler;
  readonly loads: OwnLoads;
  readonly log: Logger;
}

/** The list of the models that are loaded, which begins with those that were when the last run ended. */
export async function keepLoaded({
  env,
  settings,
  main,
  launcher,
  scheduler,
  loads,
  log,
}: KeepLoadedOptions): Promise<LoadedModels> {
  // A port that the system chooses is another one each time.
  const file = loadedModelsFile(env, settings.port === 0 && !('socketPath' in main) ? { port: 0 } : main);
  const { modelsMax } = settings;
  const restored = await modelsToRestore({
    file,
    refusal: (model) => launcher.refusal(model),
    modelsMax,
    log,
  });
  const { models } = restored;
  if (models.length > 0) log.info({ models }, '--restore: loading what was loaded');
  return new LoadedModels(
    {
      write: (list) => writeLoadedModels(file, list),
      comeBack: async (absent, isWanted) => {
        const isLoaded = await loads.ifItFits(absent, isWanted, (model, err) =>
          log.warn({ model, err }, '--restore: a model that was left out could not be loaded'),
        );
        if (isLoaded) log.info({ model: absent }, '--restore: loading a model that was left out');
        return isLoaded;
      },
      onForgotten: (absent) => logForgotten(absent, log),
      usedAt: (model) => scheduler.usedAt(model),
      onError: (error) =>
        log.error({ err: error, file }, '--restore: the list of loaded models cannot be kept'),
    },
    restored,
  );
}

export interface RestoreOptions {
  readonly file: string;
  /** Why a model cannot be loaded; undefined when it can. */
  readonly refusal: (model: string) => { readonly message: string } | undefined;
  /** Number of slots; 0 = unlimited. */
  readonly modelsMax: number;
  readonly log: Logger;
}

/**
 * The list of the last run, with the models as absent that cannot be loaded now, and those that are so still because
 * there is no slot for them. What is wrong with the list, and each model that is left out, is logged. Never rejects: a
 * list that cannot be read is no reason not to start.
 */
export async function modelsToRestore(options: RestoreOptions): Promise<RestoredList> {
  const { file, refusal, modelsMax, log } = options;
  const reading = readOrSetAside(file, log);
  let listed: LoadedList;
  try {
    listed = await withPatience(reading);
  } catch (error) {
    log.warn(
      { err: error, file },
      '--restore: the list of loaded models cannot be read yet; until it can, it is not kept, either',
    );
    return { ...nothingLoaded, late: readAtLast(reading, file, log) };
  }
  const models: string[] = [];
  const absent: AbsentModel[] = [];
  const leaveOut = (left: AbsentModel, reason: string): void => {
    absent.push(left);
    log.warn({ ...left, reason }, '--restore: a model that was loaded is left out, until it can be loaded');
  };
  const since = new Date().toISOString();
  for (const model of listed.models) {
    const reason = refusal(model)?.message;
    if (reason === undefined) models.push(model);
    else leaveOut({ model, since }, reason);
  }
  for (const left of listed.absent) {
    if (listed.models.includes(left.model)) continue;
    const hasRoom = modelsMax === 0 || models.length < modelsMax;
    const reason = refusal(left.model)?.message ?? (hasRoom ? undefined : 'there is no slot for it');
    if (!isExpected(left)) logForgotten(left, log);
    else if (reason === undefined) models.push(left.model);
    else leaveOut(left, reason);
  }
  return { models, absent };
}

/** Says that a model which was left out is not waited for any longer. */
function logForgotten(absent: AbsentModel, log: Logger): void {
  log.info({ ...absent }, '--restore: a model that was left out for a week is forgotten');
}

/** What the first reading gives, or the first that succeeds. */
async function readAtLast(first: Promise<LoadedList>, file: string, log: Logger): Promise<LoadedList> {
  for (let reading = first; ; reading = readOrSetAside(file, log)) {
    try {
      return await reading;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, readAgainMs).unref());
    }
  }
}

async function withPatience<T>(reading: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(
      () => reject(new Error(`no answer within ${diskPatienceMs / 1000} s`)),
      diskPatienceMs,
    );
  });
  try {
    return await Promise.race([reading, late]);
  } finally {
    clearTimeout(timer);
  }
}
