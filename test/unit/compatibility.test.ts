import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { namingProblem } from './named-tests.js';

/** The parts of what the native router does, each with a table of its own. */
const SECTIONS = [
  'Options and presets',
  'Where models come from',
  'The child protocol',
  'States',
  'The list',
  'Routes',
  'Which model is meant',
  'Answers before a child is asked',
  'Keys and CORS',
  'The proxied path',
  'Tools, the proxy for MCP servers, Vertex AI',
  'The scheduler',
  'Events',
  'Download and delete',
  'The router’s own answers',
  'Resumable streams',
  'The web UI',
  'Weaknesses of the native router',
];

interface Row {
  readonly behaviour: string;
  readonly here: string;
  /** As they are written, one each. */
  readonly tests: readonly string[];
  /** The row as it is written, to find it by. */
  readonly line: string;
}

interface Section {
  readonly title: string;
  readonly rows: readonly Row[];
}

const root = new URL('../../', import.meta.url);
const docs = readFileSync(new URL('docs/compatibility.md', root), 'utf8');
const sections = sectionsOf(between(docs, '\n## The contract, behaviour by behaviour\n', '\n## '));
const rows = sections.flatMap((section) => section.rows);

function between(text: string, start: string, end: string): string {
  const from = text.indexOf(start);
  if (from === -1) throw new Error(`docs/compatibility.md has no line '${start.trim()}'`);
  const inside = text.slice(from + start.length);
  const to = inside.indexOf(end);
  return to === -1 ? inside : inside.slice(0, to);
}

function sectionsOf(chapter: string): Section[] {
  const [, ...parts] = chapter.split(/^### /m);
  return parts.map((part) => {
    const [title = '', ...lines] = part.split('\n');
    const [head = '', , ...body] = lines.filter((line) => line.startsWith('|'));
    expect(cellsOf(head), title).toEqual(['behaviour', 'here', 'test']);
    return { title, rows: body.map(rowOf) };
  });
}

function rowOf(line: string): Row {
  const cells = cellsOf(line);
  expect(cells, line).toHaveLength(3);
  const [behaviour = '', here = '', tests = ''] = cells;
  return { behaviour, here, tests: tests === '' ? [] : tests.split(/\s*<br>\s*/), line };
}

/** The cells of a row of a table; a bar within one is written `\|`. */
function cellsOf(line: string): string[] {
  return line
    .split(/(?<!\\)\|/)
    .slice(1, -1)
    .map((cell) => cell.trim().replaceAll('\\|', '|'));
}

it('docs/compatibility.md goes through every part of what the native router does', () => {
  expect(sections.map(({ title }) => title)).toEqual(SECTIONS);
  for (const { title, rows: its } of sections) expect(its.length, title).toBeGreaterThan(0);
});

it('tells each behaviour once', () => {
  const told = rows.map(({ behaviour }) => behaviour);
  expect(told.filter((behaviour, at) => told.indexOf(behaviour) !== at)).toEqual([]);
});

describe.each(sections)('$title', ({ rows: its }) => {
  it.each(its.map((row) => [row.behaviour, row] as const))('%s', (_, { behaviour, here, tests, line }) => {
    expect(behaviour, line).not.toBe('');
    expect(here, line).toMatch(/^(same$|same: .|better: .|not: .)/);
    if (!here.startsWith('not')) expect(tests, `no test is named in: ${line}`).not.toEqual([]);
    const problems = tests.map(namingProblem).filter((problem) => problem !== undefined);
    expect(problems, line).toEqual([]);
  });
});

describe('a row that names no test that is there is found:', () => {
  const itself = '`test/unit/compatibility.test.ts`';
  // Put together, so that this file does not say it.
  const said = ['a title', 'that nobody', 'has given'].join(' ');

  it.each([
    ['a file that is not there', '`test/unit/nowhere.test.ts`: tells each behaviour once', 'cannot be read'],
    ['a title that the file does not have', `${itself}: ${said}`, 'has no test called'],
    ['a few letters', `${itself}: tells`, 'too short'],
    ['another form', 'see the tests', 'not of the form'],
  ])('%s', (_, test, problem) => {
    expect(namingProblem(test)).toContain(problem);
    expect(namingProblem(`${itself}: tells each behaviour once`)).toBeUndefined();
  });
});
