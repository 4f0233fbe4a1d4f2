import { execFileSync, spawn } from 'node:child_process';
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it, onTestFinished } from 'vitest';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';

const repository = fileURLToPath(new URL('../../..', import.meta.url));

/** The log compiled as it is now, beside a program that reads statements from its arguments. */
function compileLog(): string {
  const directory = tempDir();
  const source = readFileSync(join(repository, 'src/observe/log.ts'), 'utf8');
  const { outputText } = ts.transpileModule(source, {
    compilerOptions: {
      module: ts.ModuleKind.ESNext,
      target: ts.ScriptTarget.ES2023,
      verbatimModuleSyntax: true,
    },
  });
  writeFileSync(join(directory, 'package.json'), '{"type":"module"}');
  writeFileSync(join(directory, 'log.js'), outputText);
  symlinkSync(join(repository, 'node_modules'), join(directory, 'node_modules'));
  return directory;
}

const compiled = compileLog();

/** A program that logs like this. */
function programOf(format: 'json' | 'text' | 'auto', statements: string, level = 'info'): string {
  const program = join(tempDir(), 'program.mjs');
  const log = JSON.stringify(join(compiled, 'log.js'));
  writeFileSync(
    program,
    `import { createLog } from ${log};
    const log = await createLog({ level: ${JSON.stringify(level)}, format: ${JSON.stringify(format)} });
    ${statements}`,
  );
  return program;
}

/** What it writes to its standard output. */
function written(format: 'json' | 'text' | 'auto', statements: string, level?: string): string {
  const program = programOf(format, statements, level);
  return execFileSync(process.execPath, [program], { encoding: 'utf8', timeout: 20_000, env: {} });
}

/** Everything that ends a line, moves a cursor, changes a colour or turns the direction of what follows. */
const HARMFUL = /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u;
const evil =
  'a\\nb\\rc\\u001b[2J\\u0007\\u0000\\u0085\\u009b31m\\u007f\\t\\u2028\\u2029\\u202e\\u2066\\u2069\\u200f\\u061c';
const escaped =
  'a\\u000ab\\u000dc\\u001b[2J\\u0007\\u0000\\u0085\\u009b31m\\u007f\\u0009\\u2028\\u2029\\u202e\\u2066\\u2069\\u200f\\u061c';

/** The lines, without the ends of lines; throws if there is no end at the end. */
function linesOf(text: string): string[] {
  expect(text.endsWith('\n')).toBe(true);
  return text.slice(0, -1).split('\n');
}

describe('in text', () => {
  it('a record is one line: time, level, message, fields', () => {
    const [line = '', ...others] = linesOf(written('text', `log.info({ model: 'm' }, 'loaded');`));
    expect(line).toMatch(/^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: loaded \{"model":"m"\}$/);
    expect(others).toEqual([]);
  });

  it.each([
    ['the message', `log.warn('${evil}');`],
    ['a value in the message', `log.warn('%s', '${evil}');`],
    ['a field', `log.warn({ model: '${evil}' }, 'x');`],
    ['a field of a field', `log.warn({ a: [{ b: '${evil}' }] }, 'x');`],
  ])('what could end a line or command a terminal is written out in %s', (_where, statement) => {
    const lines = linesOf(written('text', statement));
    expect(lines).toHaveLength(1);
    expect(lines[0]).not.toMatch(HARMFUL);
    expect(lines[0]).toContain(escaped);
  });

  it('in an error, too, whose stack keeps its lines', () => {
    const text = written(
      'text',
      `const cause = new Error('cause ${evil}');
      const error = Object.assign(new Error('outer ${evil}', { cause }), { code: 'C${evil}' });
      log.error({ err: error }, 'failed');
      log.error({ err: new AggregateError([error], 'several ${evil}') }, 'failed');`,
    );
    const lines = linesOf(text);
    expect(lines.filter((line) => HARMFUL.test(line))).toEqual([]);
    expect(text).toContain(`Error: outer ${escaped}\n`);
    expect(text).toMatch(/\n +at file:.*program\.mjs:3:/);
    expect(lines.filter((line) => /ERROR: failed/.test(line))).toHaveLength(2);
  });

  it('a name cannot forge a line of the log', () => {
    const forged = '\\n[12:00:00.000] INFO: forged {}\\n';
    const lines = linesOf(written('text', `log.error({ err: new Error('${forged}') }, 'm${forged}');`));
    expect(lines.filter((line) => line.startsWith('['))).toHaveLength(1);
  });

  it('other characters stay as they are', () => {
    const name = 'café 🦙🏽 名前 "quoted" back\\\\slash 100%';
    expect(written('text', `log.info('${name}');`)).toContain('café 🦙🏽 名前 "quoted" back\\slash 100%');
  });

  it('values of every kind come through', () => {
    const fields = `{ n: 1.5, yes: true, none: null, list: ['x', 2], nested: { a: {} } }`;
    expect(written('text', `log.info(${fields}, 'x');`)).toContain(
      '{"n":1.5,"yes":true,"none":null,"list":["x",2],"nested":{"a":{}}}',
    );
  });
});

describe('in JSON', () => {
  it.each(['json', 'auto'] as const)(
    'a record is one object on one line: %s without a terminal',
    (format) => {
      const lines = linesOf(written(format, `log.info({ model: '${evil}' }, 'loaded');`));
      expect(lines).toHaveLength(1);
      const record = JSON.parse(lines[0] ?? '') as Record<string, unknown>;
      expect(record).toEqual({
        level: 30,
        time: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/) as string,
        model: JSON.parse(`"${evil}"`) as string,
        msg: 'loaded',
      });
    },
  );
});

it('what is below the level is not written', () => {
  const statements = `log.debug('a'); log.info('b'); log.warn('c'); log.error('d');`;
  const messages = (level: string): unknown[] =>
    written('json', statements, level)
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => (JSON.parse(line) as { msg: unknown }).msg);
  expect(messages('warn')).toEqual(['c', 'd']);
  expect(messages('silent')).toEqual([]);
});

it('says how many lines it dropped while nobody read', async () => {
  const count = 200;
  const program = programOf(
    'json',
    // More than is kept and than a pipe holds; those that are named are told of when the reader is back.
    `for (let n = 0; n < ${count}; n++) log.info({ n }, 'x'.repeat(65_536));
    setInterval(() => log.info('alive'), 100);`,
  );
  const child = spawn(process.execPath, [program], { env: {}, stdio: ['ignore', 'pipe', 'inherit'] });
  onTestFinished(() => void child.kill('SIGKILL'));
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
  const messages = (): Record<string, unknown>[] =>
    text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  const notices = (): Record<string, unknown>[] => messages().filter(({ dropped }) => dropped !== undefined);
  await eventually('it says so', () => notices().length > 0);
  const written = messages().filter(({ n }) => n !== undefined).length;
  await eventually('it goes on', () => messages().filter(({ msg }) => msg === 'alive').length > 5);
  expect(notices()).toMatchObject([{ level: 40, dropped: count - written }]);
  expect(written).toBeGreaterThan(0);
});

it.each([
  ['ends by itself', ''],
  ['has flushed the log', 'log.flush(() => process.exit(0));'],
])('all lines are written by a process that %s', (_how, end) => {
  const statements = `for (let n = 0; n < 2_000; n++) log.info({ n }, 'x'.repeat(100)); ${end}`;
  for (const format of ['json', 'text'] as const) {
    const numbers = linesOf(written(format, statements)).map((line) => /"n":(\d+)/.exec(line)?.[1]);
    expect(numbers).toEqual(Array.from({ length: 2_000 }, (_, n) => String(n)));
  }
});
