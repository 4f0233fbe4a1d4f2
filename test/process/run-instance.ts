import { pino } from 'pino';
import { EventBus, type SupervisorEvent } from '../../src/events/events.js';
import { childEnvironment } from '../../src/instance/child-environment.js';
import { NvidiaSmi } from '../../src/instance/hang/nvidia-evidence.js';
import { Instance, type InstanceContext, type LaunchSpec } from '../../src/instance/instance.js';
import { killAccount, KernelKills } from '../../src/instance/kernel-kills.js';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import type { InstanceState, Outcome } from '../../src/instance/state.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { fakeLlamaServer, writeFakeModel, type FakeBehaviour } from '../helpers/fake-llama-server.js';
import { newJournal, type Journal } from '../helpers/journal.js';
import { alive } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';

export interface RunOptions extends Partial<Omit<LaunchSpec, 'modelId'>> {
  /** How the fake llama-server behaves. */
  readonly behaviour?: FakeBehaviour;
  /** What the fake is started by: a command that takes it and its arguments. */
  readonly wrapper?: readonly string[];
  /** More arguments for the fake. */
  readonly args?: readonly string[];
  readonly freePort?: InstanceContext['freePort'];
  readonly kernelKills?: KernelKills;
}

export interface InstanceRun {
  readonly instance: Instance;
  readonly journal: Journal;
  readonly events: readonly SupervisorEvent[];
  /** The name of the state at each change, so far. */
  readonly states: readonly InstanceState['name'][];
  /** The messages of our own log, and every line that the child printed. */
  readonly log: readonly string[];
  /** Authorization that its current child takes. */
  authorization(): { authorization: string };
  /** Waits for a state, 10 s at most. */
  reaches(name: InstanceState['name']): Promise<void>;
  /** Waits until every process of it is gone, those that a child started included, 5 s at most. */
  nothingLeft(): Promise<void>;
  /** Its end, 10 s at most. */
  outcome(): Promise<Outcome>;
}

/** Runs one instance, of the model `alpha` on a fake llama-server unless told otherwise; killed at the end of the test. */
export function runInstance({
  behaviour = {},
  wrapper = [],
  args = [],
  freePort,
  kernelKills = new KernelKills(killAccount()),
  ...spec
}: RunOptions = {}): InstanceRun {
  const journal = newJournal();
  const model = writeFakeModel(tempDir(), 'alpha', behaviour);
  const log: string[] = [];
  const events: SupervisorEvent[] = [];
  const states: InstanceState['name'][] = [];

  const logger = pino(
    { level: 'debug' },
    {
      write: (record: string) => {
        const { msg, line } = JSON.parse(record) as { msg: string; line?: string };
        log.push(line ?? msg);
      },
    },
  );
  const bus = new EventBus((error) => {
    throw error;
  });
  bus.subscribe((event) => events.push(event));
  const guard = new OrphanGuard(logger);
  const instance = new Instance(
    {
      modelId: 'alpha',
      command: (port) => [
        ...wrapper,
        fakeLlamaServer,
        ...['--host', '127.0.0.1', '--port', String(port), '--alias', 'alpha', '--model', model, ...args],
      ],
      environment: childEnvironment({ ...process.env, ...journal.env }),
      apiPrefix: '',
      loadTimeoutMs: 20_000,
      stopTimeoutMs: 10_000,
      silenceTimeoutMs: 10_000,
      hangTimeoutMs: 0,
      ...spec,
    },
    {
      guard,
      events: bus,
      log: logger,
      kernelKills,
      nvidiaSmi: new NvidiaSmi(),
      ...(freePort === undefined ? {} : { freePort }),
    },
    ({ state }) => states.push(state.name),
  );
  atEndOfTest(async () => {
    instance.kill();
    await withDeadline('the instance is gone', instance.exited, 10_000);
    guard.close();
  });

  return {
    instance,
    journal,
    events,
    states,
    log,
    authorization: () => ({
      authorization: `Bearer ${journal.of('start').at(-1)?.env['LLAMA_API_KEY'] ?? ''}`,
    }),
    reaches: async (name) => {
      await eventually(`the instance is ${name}`, () => instance.state.name === name);
    },
    nothingLeft: async () => {
      const members = [
        ...journal.of('start').map(({ pid }) => pid),
        ...journal.of('grandchild').map(({ grandchildPid }) => grandchildPid),
      ];
      if (members.length === 0) throw new Error('there never was a process of this instance');
      await eventually('no process is left', () => !members.some(alive), { deadlineMs: 5_000 });
    },
    outcome: () => withDeadline('the instance ends', instance.exited, 10_000),
  };
}
