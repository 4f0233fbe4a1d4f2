import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';
import { OWN_ROWS, ROUTER_ROWS } from '../../src/config/settings.js';
import { namingProblem } from './named-tests.js';

/** Where a fault can strike, each with a chapter of its own. */
const CHAPTERS = [
  "A model's process",
  'The waiting line',
  'Overload',
  'The supervisor itself',
  'Bad input',
  'The surface',
];

/** What is said of each fault, in this order. */
const ASPECTS = ['Client', 'Operator', 'Next', 'Options', 'Tests'];

/** Told to nobody: its client has left. */
const UNREAD = 'client_gone';

interface Fault {
  readonly title: string;
  readonly aspects: ReadonlyMap<string, string>;
}

const root = new URL('../../', import.meta.url);
const docs = readFileSync(new URL('docs/failure-modes.md', root), 'utf8');
const [, ...chapters] = docs.split(/^## /m);
const faults = chapters.flatMap(faultsIn);
const catalogue = new Map(
  [...readFileSync(new URL('src/errors.ts', root), 'utf8').matchAll(/^ {2}(\w+): \{ status: (\d{3}),/gm)].map(
    ([, code = '', status = '']) => [code, status],
  ),
);

function faultsIn(chapter: string): Fault[] {
  const [, ...parts] = chapter.split(/^### /m);
  return parts.map((part) => {
    const [title = ''] = part.split('\n');
    const aspects = [...part.matchAll(/^- \*\*(\w+):\*\*([^]*?)(?=^- \*\*|(?![^]))/gm)];
    return { title, aspects: new Map(aspects.map(([, name = '', text = '']) => [name, text.trim()])) };
  });
}

/** A line of the log: its message and its level. */
type LogLine = `${string} (${string})`;

const LEVELS = new Set(['trace', 'debug', 'info', 'warn', 'error', 'fatal']);
const sources = readdirSync(new URL('src', root), { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .map((file) => {
    const text = readFileSync(new URL(join('src', file), root), 'utf8');
    return ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
  });
const logged = new Set(sources.flatMap((source) => linesLoggedIn(source)));

/** What is logged in a piece of source, as far as it stands there; `…` is what is known at run time only. */
function linesLoggedIn(node: ts.Node): LogLine[] {
  const lines: LogLine[] = [];
  ts.forEachChild(node, (child) => void lines.push(...linesLoggedIn(child)));
  if (!ts.isCallExpression(node) || !ts.isPropertyAccessExpression(node.expression)) return lines;
  const { expression: logger, name } = node.expression;
  const message = node.arguments.at(-1);
  if (!LEVELS.has(name.text) || !/log$/i.test(logger.getText()) || message === undefined) return lines;
  return [...lines, ...textsOf(message).map((text): LogLine => `${text} (${name.text})`)];
}

/** The texts that an expression can stand for: its own, that of a constant, or the cases in which it is logged. */
function textsOf(message: ts.Expression): readonly string[] {
  const text = textOf(message);
  if (text !== undefined) return [text];
  if (!ts.isIdentifier(message)) return [];
  for (let scope: ts.Node = message; !ts.isSourceFile(scope); scope = scope.parent) {
    if (ts.isCaseClause(scope) && isOf(message.text, scope)) return labelsOf(scope);
    if (!ts.isBlock(scope)) continue;
    for (const statement of scope.statements.filter(ts.isVariableStatement)) {
      for (const { name, initializer } of statement.declarationList.declarations) {
        if (name.getText() === message.text && initializer !== undefined) {
          return textsOf(initializer);
        }
      }
    }
  }
  return [];
}

function textOf(node: ts.Expression): string | undefined {
  if (ts.isStringLiteralLike(node)) return node.text;
  if (ts.isTemplateExpression(node)) {
    return [node.head, ...node.templateSpans.map(({ literal }) => literal)].map(({ text }) => text).join('…');
  }
  if (!ts.isBinaryExpression(node)) return undefined;
  const [left, right] = [textOf(node.left), textOf(node.right)];
  return left === undefined || right === undefined ? undefined : left + right;
}

/** Whether the cases are those of a variable, or of a member of this name. */
function isOf(name: string, { parent }: ts.CaseClause): boolean {
  return parent.parent.expression.getText().split('.').at(-1) === name;
}

/** Its own, and those of the empty clauses before it, which fall through to it. */
function labelsOf(clause: ts.CaseClause): readonly string[] {
  const { clauses } = clause.parent;
  const labels: string[] = [];
  for (let at = clauses.indexOf(clause); at >= 0; at -= 1) {
    const each = clauses[at];
    if (!each || !ts.isCaseClause(each) || (each !== clause && each.statements.length > 0)) break;
    if (ts.isStringLiteral(each.expression)) labels.push(each.expression.text);
  }
  return labels;
}

/** Prose breaks lines where it likes. */
const prose = docs.replaceAll(/\s+/g, ' ');
const toldLines = [...prose.matchAll(/`([^`]+)` \((\w+)\)/g)]
  // An option with its default looks the same.
  .filter(([, message = '', level = '']) => LEVELS.has(level) && !/^--[a-z-]+$/.test(message))
  .map(([, message = '', level = '']): LogLine => `${message} (${level})`);
const toldReasons = [...prose.matchAll(/(\d{3}) `(\w+)`/g)].map(([, status = '', code = '']) => ({
  status,
  code,
}));

it('docs/failure-modes.md names every file of the fault suite', () => {
  const files = readdirSync(new URL('test/faults', root)).filter((file) => file.endsWith('.test.ts'));
  expect(files.filter((file) => !docs.includes(`test/faults/${file}`))).toEqual([]);
});

it('docs/failure-modes.md goes through every place where a fault can strike', () => {
  expect(chapters.map((chapter) => chapter.split('\n')[0])).toEqual(CHAPTERS);
});

it('tells each fault once', () => {
  const titles = faults.map(({ title }) => title);
  expect(titles.filter((title, at) => titles.indexOf(title) !== at)).toEqual([]);
});

it.each(faults.map((fault) => [fault.title, fault.aspects] as const))('%s', (_, aspects) => {
  expect([...aspects.keys()]).toEqual(ASPECTS);
  for (const [aspect, text] of aspects) expect(text, aspect).not.toBe('');
  const tests = [...(aspects.get('Tests') ?? '').matchAll(/^ *- (.+)$/gm)].map(([, test = '']) => test);
  expect(tests).not.toEqual([]);
  expect(tests.map(namingProblem).filter((problem) => problem !== undefined)).toEqual([]);
});

it('every reason that a client can be told is there, with its status', () => {
  expect(catalogue.size).toBeGreaterThan(0);
  const untold = [...catalogue.keys()].filter((code) => !toldReasons.some((told) => told.code === code));
  expect(untold).toEqual([UNREAD]);
  expect(toldReasons.filter(({ status, code }) => catalogue.get(code) !== status)).toEqual([]);
});

it('every line of the log that it quotes is logged, at that level', () => {
  expect(toldLines.filter((line) => !logged.has(line))).toEqual([]);
});

it('every line of the log that warns is there', () => {
  const told = new Set(toldLines);
  const warning = [...logged].filter((line) => /\((?:warn|error|fatal)\)$/.test(line));
  expect(warning.filter((line) => !told.has(line))).toEqual([]);
});

describe('the options', () => {
  const rows = new Map(
    Object.values({ ...ROUTER_ROWS, ...OWN_ROWS }).map(({ name, initial }): [string, string] => [
      name,
      initial,
    ]),
  );

  it('that it names are options', () => {
    const named = [...prose.matchAll(/`(--[a-z][a-z-]*)/g)].map(([, name = '']) => name);
    expect(named.filter((name) => !rows.has(name))).toEqual([]);
  });

  it('have the default that it tells', () => {
    const told = [...prose.matchAll(/`(--[a-z-]+)` \(([^)]+)\)/g)];
    expect(told.length).toBeGreaterThan(0);
    for (const [, name = '', initial = ''] of told)
      expect(initial.replace(/ s$/, ''), name).toBe(rows.get(name));
  });
});

describe('what is logged is found', () => {
  const found = (code: string): readonly LogLine[] =>
    linesLoggedIn(ts.createSourceFile('x.ts', code, ts.ScriptTarget.Latest, true));

  it.each([
    ['as it stands', `this.#log.warn({ a: 1 }, 'one')`, ['one (warn)']],
    ['alone', `log.info('one')`, ['one (info)']],
    ['in pieces', "log.warn(`the ${a} of ${b}` + ' is wrong')", ['the … of … is wrong (warn)']],
    ['as a constant', `{ const text = 'one'; log.error({ a: 1 }, text); }`, ['one (error)']],
    [
      'as the case that it is',
      `switch (a.type) { case 'z': log.info({}, 'z'); return; case 'a': case 'b': if (x) log.warn({}, type); }`,
      ['z (info)', 'b (warn)', 'a (warn)'],
    ],
  ])('%s', (_, code, lines) => {
    expect(found(code)).toEqual(lines);
  });

  it.each([
    ['known at run time only', 'log.warn(a)'],
    ['another case', `switch (a.kind) { case 'one': log.warn({}, type); }`],
    ['passed to something else', `list.push('one'); console.warn('one')`],
  ])('but not what is %s', (_, code) => {
    expect(found(code)).toEqual([]);
  });
});
