import type { LlamaServerFacts } from '../config/help.js';
import type { Settings } from '../config/settings.js';
import { asRouterError, type RouterError } from '../errors.js';
import type { EventBus } from '../events/events.js';
import { findModel, unknownModel } from '../http/find-model.js';
import type { LaunchDescription } from '../http/model-entry.js';
import { childEnvironment } from '../instance/child-environment.js';
import type { NvidiaSmi } from '../instance/hang/nvidia-evidence.js';
import { Instance } from '../instance/instance.js';
import type { KernelKills } from '../instance/kernel-kills.js';
import type { OrphanGuard } from '../instance/orphan-guard.js';
import { modelArgs, modelPreset, secretsApart, withoutSecrets } from '../models/argv.js';
import type { Catalog } from '../models/catalog.js';
import type { Model } from '../models/model.js';
import { sameLaunch } from '../models/same-launch.js';
import type { Logger } from '../observe/log.js';
import type { ModelStatus } from '../scheduler/scheduler.js';

export interface LauncherOptions {
  readonly binary: string;
  readonly facts: LlamaServerFacts;
  readonly env: NodeJS.ProcessEnv;
  readonly settings: Settings;
  /** What is served now. */
  readonly catalog: () => Catalog;
  /** A child is started so long after it was asked for. */
  readonly startDelayMs: number;
  readonly guard: OrphanGuard;
  readonly events: EventBus;
  readonly log: Logger;
  readonly kernelKills: KernelKills;
  readonly nvidiaSmi: NvidiaSmi;
}

/** How models of the catalog become instances: the one place where the two meet. */
export class Launcher {
  readonly #options: LauncherOptions;
  readonly #environment: NodeJS.ProcessEnv;
  readonly #launched = new WeakMap<Instance, Model>();
  /** The form in which each model was started last. */
  readonly #lastForms = new Map<string, Model>();
  readonly #descriptions = new WeakMap<Model, LaunchDescription & { readonly port: number }>();

  constructor(options: LauncherOptions) {
    this.#options = options;
    this.#environment = childEnvironment(options.env);
  }

  /**
   * Starts an instance of the model as it is in the catalog now.
   *
   * @throws RouterError model_unknown; model_invalid, with the reason, when it cannot be served
   */
  launch(id: string, onChange: (instance: Instance) => void): Instance {
    const { binary, facts, env, settings, catalog, startDelayMs, guard, events, log } = this.#options;
    const { kernelKills, nvidiaSmi } = this.#options;
    const model = modelOf(catalog(), id);
    const { model: plain, environment } = secretsApart(model);
    const spec = {
      modelId: id,
      command: (port: number) => modelArgs(plain, binary, facts.table, port, env),
      environment: { ...this.#environment, ...environment },
      apiPrefix: settings.apiPrefix,
      startDelayMs,
      loadTimeoutMs: settings.loadTimeoutMs,
      stopTimeoutMs: model.stopTimeoutMs,
      silenceTimeoutMs: settings.timeoutMs,
      hangTimeoutMs: settings.hangTimeoutMs,
    };
    const instance = new Instance(spec, { guard, events, log, kernelKills, nvidiaSmi }, onChange);
    this.#launched.set(instance, model);
    this.#lastForms.set(id, model);
    return instance;
  }

  /** Whether a run is what its model would be started as now; `removed` when the model is served no more. */
  standing(instance: Instance): 'current' | 'changed' | 'removed' {
    const was = this.#launched.get(instance);
    const now = this.#options.catalog().resolve(instance.modelId);
    if (now?.id !== instance.modelId || now.problem !== undefined) return 'removed';
    return was !== undefined && sameLaunch(was, now) ? 'current' : 'changed';
  }

  /** Why a request for the model is refused, whatever runs; undefined when it is served. */
  refusal(id: string): RouterError | undefined {
    try {
      modelOf(this.#options.catalog(), id);
      return undefined;
    } catch (error) {
      return asRouterError(error);
    }
  }

  /** How the model was started, if it runs, or would be: rendered once, because lists are asked for often. */
  describe(model: Model, { value, port }: ModelStatus): LaunchDescription {
    const form = value === 'unloaded' ? model : (this.#lastForms.get(model.id) ?? model);
    const known = this.#descriptions.get(form);
    if (known?.port === port) return known;
    const { binary, facts, env } = this.#options;
    const shown = withoutSecrets(form);
    const description = {
      port,
      args: modelArgs(shown, binary, facts.table, port, env),
      preset: modelPreset(shown, facts.table),
    };
    this.#descriptions.set(form, description);
    return description;
  }

  /** These models are in the catalog no more. */
  forget(ids: readonly string[]): void {
    for (const id of ids) this.#lastForms.delete(id);
  }
}

/**
 * The model of that id, which is no other model's alias by now.
 *
 * @throws RouterError model_unknown; model_invalid, with the reason, when the model cannot be served
 */
function modelOf(catalog: Catalog, id: string): Model {
  const model = findModel(catalog, id);
  if (model.id !== id) throw unknownModel(id);
  return model;
}
