import { expect, it } from 'vitest';
import { eventually } from '../../helpers/eventually.js';
import { Source } from '../../../src/models/source.js';

it('a source gives what it reads, and is given what it gave last', async () => {
  const source = new Source<number>((previous = 0) => Promise.resolve(previous + 1), 10_000);
  expect(await source.read()).toEqual({ value: 1, late: false });
  expect(await source.read()).toEqual({ value: 2, late: false });
});

it('a source that is silent gives what it gave last, is not asked again, and counts again once it has answered', async () => {
  const answers: ((value: string) => void)[] = [];
  const source = new Source<string>(() => new Promise((resolve) => answers.push(resolve)), 20);
  const first = source.read();
  answers[0]?.('first');
  expect(await first).toEqual({ value: 'first', late: false });
  expect(await source.read()).toEqual({ value: 'first', late: true });
  expect(await source.read()).toEqual({ value: 'first', late: true });
  expect(answers).toHaveLength(2);

  answers[1]?.('second');
  const next = await eventually('it is asked again', () => {
    const reading = source.read();
    return answers.length === 3 && { reading };
  });
  answers[2]?.('third');
  expect(await next.reading).toEqual({ value: 'third', late: false });
});

it('a source that fails says so, and is asked again', async () => {
  let fails = true;
  const source = new Source(() => (fails ? Promise.reject(new Error('gone')) : Promise.resolve(1)), 10_000);
  await expect(source.read()).rejects.toThrow('gone');
  fails = false;
  expect(await source.read()).toEqual({ value: 1, late: false });
});

it('a source that never gave anything has nothing to give when it is silent, and may fail late unheard', async () => {
  let fail: (error: Error) => void = () => undefined;
  const source = new Source<string>(() => new Promise((_, reject) => (fail = reject)), 20);
  expect(await source.read()).toEqual({ value: undefined, late: true });
  fail(new Error('too late'));
  await eventually('it is asked again', async () => {
    const asked = fail;
    void source.read().catch(() => undefined);
    return Promise.resolve(fail !== asked);
  });
});
