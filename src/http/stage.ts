import type { ModelStatus } from '../scheduler/scheduler.js';

/** What a request waits for, for those who watch it wait. */
export function stageOf(
  model: string,
  { value, progress, inFlight }: ModelStatus,
  isForwarded: boolean,
): string {
  if (isForwarded) return `${model} has the request and has not begun its answer`;
  switch (value) {
    case 'unloaded':
      return `${model} waits in line to be loaded`;
    case 'loading':
      return `${model} is loading${percentOf(progress)}`;
    case 'sleeping':
      return `${model} is being woken`;
    case 'loaded':
      return `${model} is busy with ${inFlight} ${inFlight === 1 ? 'request' : 'requests'}`;
  }
}

function percentOf(progress: ModelStatus['progress']): string {
  const value = progress?.['value'];
  return typeof value === 'number' ? `: ${Math.round(value * 100)} %` : '';
}
