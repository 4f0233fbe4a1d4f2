import { expect, test } from 'vitest';
import { eventually, withDeadline } from '../../helpers/eventually.js';

const never = new Promise<never>(() => undefined);

test('eventually resolves with the first truthy value, whatever was thrown or returned before', async () => {
  const answers: (() => unknown)[] = [
    () => undefined,
    () => {
      throw new Error('not there');
    },
    () => Promise.resolve(0),
    () => Promise.resolve('found'),
    () => 'asked too often',
  ];
  const found = await eventually('a value', () => answers.shift()?.(), { intervalMs: 1 });
  expect(found).toBe('found');
  expect(answers).toHaveLength(1);
});

test('eventually fails with the label, the deadline and the last error, which is its cause', async () => {
  const failure = new Error('still missing');
  const waiting = eventually('the file appears', () => Promise.reject(failure), {
    deadlineMs: 40,
    intervalMs: 5,
  });
  await expect(waiting).rejects.toMatchObject({
    message: 'the file appears: not within 40 ms; last error: still missing',
    cause: failure,
  });
});

test('eventually fails with the last value when nothing was thrown', async () => {
  await expect(eventually('a pid', () => undefined, { deadlineMs: 20, intervalMs: 5 })).rejects.toThrow(
    'a pid: not within 20 ms; last value: undefined',
  );
});

test('a check that never answers does not outlive the deadline', async () => {
  const startMs = performance.now();
  await expect(eventually('an answer', () => never, { deadlineMs: 50 })).rejects.toThrow(
    /^an answer: not within 50 ms/,
  );
  expect(performance.now() - startMs).toBeLessThan(2_000);
});

test('withDeadline hands on the outcome, and names what did not happen in time', async () => {
  const failure = new Error('broken');
  await expect(withDeadline('a value', Promise.resolve(1), 1_000)).resolves.toBe(1);
  await expect(withDeadline('a value', Promise.reject(failure), 1_000)).rejects.toBe(failure);
  await expect(withDeadline('the exit', never, 10)).rejects.toThrow('the exit: not within 10 ms');
});
