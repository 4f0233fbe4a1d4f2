/**
 * The states of one instance. An instance is one run of one model: it only moves forward, and a model that is
 * loaded again gets a new instance.
 *
 *            spawned            ready line            sleeping line
 *   loading ─────────▶ (child) ────────────▶ ready ────────────────▶ sleeping
 *      │                                     ▲  │                        │ loading line
 *      │                                     │  │      ready line        ▼
 *      │                                     └──┼───────────────────── waking
 *      │ stop, deadline                         │ stop                   │
 *      └──────────────▶ stopping ◀──────────────┴────────────────────────┘
 *                          │
 *      child gone          ▼
 *   (from any state) ───▶ exited
 */

/** What the child says about its model in its ready line (llama-server's `/v1/models` entry). */
export type ModelInfo = Readonly<Record<string, unknown>>;

/** Progress as the child reports it: `{stages, current, value: 0..1}`. */
export type LoadProgress = Readonly<Record<string, unknown>>;

/**
 * Why an instance was told to stop. The first reason is the one that is kept. `changed`: its model would be started
 * differently now; `removed`: its model is served no more; `hung`: it got nowhere with the requests it had.
 */
export type StopReason =
  'evicted' | 'unloaded' | 'changed' | 'removed' | 'shutdown' | 'load deadline' | 'hung';

/** What made a run fail: memory ran out, it got nowhere and was ended for that, a signal that we did not send, or what its message tells. */
export type FailureCause = 'out of memory' | 'hung' | 'signal' | 'other';

/** How a run ended. A stop that was asked for is never a failure, however the child took it; that of a hung one is. */
export type Outcome =
  | { readonly kind: 'stopped'; readonly reason: StopReason; readonly exitCode: number }
  | {
      readonly kind: 'failed';
      readonly phase: 'loading' | 'running';
      /** One sentence: what happened. */
      readonly message: string;
      readonly exitCode: number;
      readonly lastLines: readonly string[];
      readonly cause: FailureCause;
      readonly at: Date;
    };

export type InstanceState =
  | { readonly name: 'loading'; readonly progress: LoadProgress | undefined }
  | { readonly name: 'ready'; readonly info: ModelInfo | undefined }
  | { readonly name: 'sleeping'; readonly info: ModelInfo | undefined }
  | {
      readonly name: 'waking';
      readonly info: ModelInfo | undefined;
      readonly progress: LoadProgress | undefined;
    }
  | {
      readonly name: 'stopping';
      readonly reason: StopReason;
      readonly was: 'loading' | 'loaded' | 'sleeping';
      readonly info: ModelInfo | undefined;
    }
  | { readonly name: 'exited'; readonly outcome: Outcome };

/** The native router's status word for a state. A stopping instance keeps the word it had until it is gone. */
export function statusWord(state: InstanceState): 'unloaded' | 'loading' | 'loaded' | 'sleeping' {
  switch (state.name) {
    case 'loading':
    case 'waking':
      return 'loading';
    case 'ready':
      return 'loaded';
    case 'sleeping':
      return 'sleeping';
    case 'stopping':
      return state.was;
    case 'exited':
      return 'unloaded';
  }
}
